"""The ASGI application: paths to endpoints, errors to answers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from dataplane.engines.simulated import audio, messages, operations, pooling, responses
from dataplane.engines.simulated.chat import chat_completions
from dataplane.engines.simulated.completions import completions
from dataplane.engines.simulated.errors import ApiError, FrameworkError, no_route, wrong_method
from dataplane.engines.simulated.http import ClientGone, Exchange
from dataplane.engines.simulated.replica import Replica
from dataplane.engines.simulated.streaming import Cut
from dataplane.middleware.asgi import Receive, Scope, Send

Endpoint = Callable[[Replica, Exchange], Awaitable[None]]

log = logging.getLogger("slipstream.simulated")

#: Paths whose requests /load counts, as in vLLM.
COUNTED: dict[str, Endpoint] = {
    "/v1/chat/completions": chat_completions,
    "/v1/completions": completions,
    "/v1/responses": responses.create_response,
    "/v1/messages": messages.messages,
    "/v1/embeddings": pooling.embeddings,
    "/v1/score": pooling.score,
    "/score": pooling.score,
    "/v1/rerank": pooling.rerank,
    "/v2/rerank": pooling.rerank,
    "/rerank": pooling.rerank,
    "/pooling": pooling.pooling,
    "/classify": pooling.classify,
    "/v1/audio/transcriptions": audio.transcriptions,
    "/v1/audio/translations": audio.translations,
}
OPERATIONS: dict[str, dict[str, Endpoint]] = {
    "/health": {"GET": operations.health},
    "/ping": {"GET": operations.health, "POST": operations.health},
    "/version": {"GET": operations.version},
    "/load": {"GET": operations.load},
    "/metrics": {"GET": operations.show_metrics},
    "/v1/models": {"GET": operations.models},
    "/v1/messages/count_tokens": {"POST": messages.count_tokens},
    "/tokenize": {"POST": operations.tokenize},
    "/detokenize": {"POST": operations.detokenize},
    "/reset_prefix_cache": {"POST": operations.reset_prefix_cache},
}
FAULTS: dict[str, dict[str, Endpoint]] = {
    "/simulated/faults": {"GET": operations.show_faults, "POST": operations.set_faults},
}


class SimulatedApp:
    """Serves one replica. A stream that a fault cuts ends in an exception: the server closes its connection."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._routes = dict(OPERATIONS)
        self._routes.update({path: {"POST": endpoint} for path, endpoint in COUNTED.items()})
        if replica.settings.fault_switches:
            self._routes.update(FAULTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection; anything but HTTP is refused by returning."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        counted = exchange.path in COUNTED
        self._replica.requests += counted
        try:
            endpoint = self._endpoint(exchange.path, scope["method"])
            await endpoint(self._replica, exchange)
        except ApiError as error:
            await _refuse(exchange, error)
        except ClientGone:
            return  # nobody is left to answer
        except Cut:
            log.warning("a stream was cut by the fault switch")
            raise
        except Exception:
            if exchange.started:
                raise  # the server closes the connection: visibly truncated
            log.exception("%s failed", exchange.path)
            await _refuse(exchange, ApiError(500, "Internal server error", "InternalServerError"))
        finally:
            self._replica.requests -= counted

    def _endpoint(self, path: str, method: str) -> Endpoint:
        methods = self._routes.get(path) or _response_methods(path)
        endpoint = methods.get(method)
        if endpoint is None:
            raise wrong_method(", ".join(methods))
        return endpoint


def _response_methods(path: str) -> dict[str, Endpoint]:
    """Return the methods of the two paths that hold a response's id."""
    if responses.is_response(path):
        return {"GET": responses.get_response}
    if responses.is_cancel(path):
        return {"POST": responses.cancel_response}
    raise no_route()


async def _refuse(exchange: Exchange, error: ApiError) -> None:
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, FrameworkError) and error.allow:
        headers = ((b"allow", error.allow.encode()),)
    anthropic = exchange.path.startswith("/v1/messages") and error.type not in ("Bad Request",)
    await exchange.reply(error.anthropic() if anthropic else error.content(), error.status, headers)
