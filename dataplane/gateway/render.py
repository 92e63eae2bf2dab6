"""PURE: an order becomes HAProxy's files. Every value is checked before it is written.

Names in the files are relative to the folder that holds ``haproxy.cfg`` (``default-path config``), so the same text can
be checked in one folder and used through the link ``current``.
"""

from __future__ import annotations

from collections.abc import Set
from functools import lru_cache
from http import HTTPStatus

from jinja2 import Environment, StrictUndefined, Template

from dataplane.errors import EDGE_ERRORS, EdgeError
from dataplane.gateway import limits, lua_settings, pools, salts, session_keys, waits
from dataplane.gateway.limits import number
from dataplane.gateway.site import InvalidGateway, Site, Templates
from dataplane.names import LABEL, PATH, checked
from dataplane.pb import gateway_pb2

#: POST path -> request kind, as docs/contracts.md numbers them.
KINDS = {
    "/v1/chat/completions": 1,
    "/v1/completions": 2,
    "/v1/responses": 3,
    "/v1/messages": 4,
    "/v1/messages/count_tokens": 4,
    "/v1/embeddings": 5,
    "/v1/score": 6,
    "/score": 6,
    "/v1/rerank": 7,
    "/v2/rerank": 7,
    "/rerank": 7,
    "/pooling": 8,
    "/classify": 9,
    "/v1/audio/transcriptions": 10,
    "/v1/audio/translations": 11,
    "/tokenize": 12,
    "/detokenize": 13,
}
#: Kinds whose bodies the router gets as they are; forms and stored responses are left to Lua. HAProxy's ranges.
WHOLE_KINDS = "1:9 12:13"
#: Every status that HAProxy itself can answer with -> the error that it means.
STATUS_ERRORS = {
    400: "bad_request",
    401: "invalid_api_key",
    403: "bad_request",
    404: "path_not_found",
    405: "method_not_allowed",
    407: "invalid_api_key",
    408: "request_timeout",
    410: "path_not_found",
    413: "body_too_large",
    421: "bad_request",
    422: "bad_request",
    425: "bad_request",
    429: "overloaded",
    500: "internal_error",
    501: "bad_request",
    502: "replica_failed",
    503: "no_replica_available",
    504: "replica_timeout",
}
#: Environment variable of every HAProxy: the folder that holds haproxy.cfg.
FOLDER_VARIABLE = "SLIPSTREAM_GATEWAY"
_environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # noqa: S701


@lru_cache(maxsize=8)
def _compiled(text: str) -> Template:
    return _environment.from_string(text)


def render(
    order: gateway_pb2.GatewayOrder, site: Site, templates: Templates, lost: Set[str] = frozenset()
) -> dict[str, str]:
    """Return file name -> text. Servers in ``lost`` are written as disabled.

    Raises InvalidName or InvalidGateway for a value that may not be written.
    """
    backends = pools.backends(order.topology, lost)
    values = _values(order, site, backends)
    salt_map = salts.salt_map(order.topology, order.api_keys, site.salt_key)
    values["salts"] = bool(salt_map)
    files = {
        "haproxy.cfg": _compiled(templates.haproxy).render(values),
        "spoe.cfg": _compiled(templates.spoe).render(values),
        "features.lua": lua_settings.settings(order) + templates.features_lua + templates.gateway_lua,
        "models.map": pools.map_text(pools.model_map(order.topology)),
        "pins.map": pools.map_text(pools.pin_map(backends)),
        "keys.map": pools.map_text(pools.key_map(order.api_keys)),
        "priorities.map": pools.map_text(pools.priority_map(order.api_keys)),
        "salts.map": pools.map_text(salt_map),
        "kinds.map": pools.map_text({path: str(kind) for path, kind in KINDS.items()}),
    }
    for status, code in STATUS_ERRORS.items():
        files[f"errors/{status}.http"] = _error_file(status, EDGE_ERRORS[code], templates.error)
    return files


def _values(order: gateway_pb2.GatewayOrder, site: Site, backends: tuple[pools.Backend, ...]) -> dict[str, object]:
    gateway = order.gateway
    servers = sum(len(backend.servers) for backend in backends)
    buffer_bytes = limits.buffer_bytes(gateway, order.topology)
    longest_wait_s = waits.longest_timeout_s(order.topology)
    max_body_bytes = number(gateway.max_body_bytes, 1, limits.MAX_BODY_BYTES, "max_body_bytes")
    return {
        "gateway": checked(LABEL, gateway.name, "gateway"),
        "cluster": site.site_id,
        "runtime_socket": site.runtime_socket,
        "spop_socket": site.spop_socket,
        "log_socket": site.log_socket,
        "fd_limit": limits.fd_limit(site),
        "max_connections": limits.max_connections(gateway, site, servers),
        "threads": limits.threads(gateway, site),
        "buffer_bytes": buffer_bytes,
        "hot_bytes": limits.HOT_BYTES,
        "rewrite_bytes": limits.REWRITE_BYTES,
        "body_bytes": limits.spoe_body_bytes(buffer_bytes),
        "max_body_bytes": max_body_bytes,
        "whole_bytes": limits.whole_bytes(buffer_bytes, max_body_bytes),
        "surely_whole_bytes": limits.surely_whole_bytes(buffer_bytes),
        "whole_kinds": WHOLE_KINDS,
        "model_header_bytes": limits.MODEL_HEADER_BYTES,
        "session_header_bytes": limits.SESSION_HEADER_BYTES,
        "session_headers": session_keys.headers(order.topology),
        "max_header_bytes": limits.MAX_HEADER_BYTES,
        "request_timeout_ms": limits.REQUEST_TIMEOUT_MS,
        "decision_timeout_ms": number(gateway.decision_timeout_ms, 1, 60_000, "decision_timeout_ms"),
        "connect_timeout_ms": number(gateway.connect_timeout_ms, 1, 60_000, "connect_timeout_ms"),
        "silence_timeout_ms": _milliseconds(gateway.silence_timeout_s, "silence_timeout_s"),
        "queue_timeout_ms": _milliseconds(gateway.queue_timeout_s, "queue_timeout_s"),
        "drain_timeout_ms": _milliseconds(gateway.drain_timeout_s, "drain_timeout_s"),
        "retries": limits.RETRIES,
        "error_statuses": list(STATUS_ERRORS),
        "binds": _binds(gateway),
        "certificates": any(listener.certificate for listener in gateway.listeners),
        "admission": longest_wait_s > 0.0,
        "folder_variable": FOLDER_VARIABLE,
        "wait_rules": waits.WAIT_RULES,
        "wait_timeout_ms": waits.processing_timeout_ms(longest_wait_s),
        "priority_header_bytes": limits.PRIORITY_HEADER_BYTES,
        "key_priorities": longest_wait_s > 0.0 and bool(order.api_keys),
        "keys": bool(order.api_keys) or gateway.require_api_key,
        "require_api_key": gateway.require_api_key,
        "replica_header": gateway.replica_header,
        "pools": backends,
    }


def _milliseconds(seconds: float, what: str) -> int:
    return int(number(seconds * 1_000, 1, 7 * 86_400_000, f"{what} in milliseconds"))


def _binds(gateway: gateway_pb2.Gateway) -> list[dict[str, str]]:
    if not gateway.listeners:
        raise InvalidGateway("the gateway has no listener")
    binds = []
    for listener in gateway.listeners:
        where, _ = pools.address(listener.host, listener.port)
        certificate = checked(PATH, listener.certificate, "certificate") if listener.certificate else ""
        binds.append({"address": where, "certificate": certificate})
    return binds


def _error_file(status: int, error: EdgeError, template: str) -> str:
    body = error.body().decode()
    text = _compiled(template).render(
        status=status, reason=HTTPStatus(status).phrase, length=len(body.encode()), body=body
    )
    return text.rstrip("\n").replace("\n", "\r\n")
