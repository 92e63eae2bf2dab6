"""What clients and operators meet: listeners, limits, the page, API keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from controlplane.spec import fields
from controlplane.spec.engines import Part
from controlplane.spec.fields import Address, Count, Flag, Label, Number, Path, Sha256, Size

#: Bounds of a spec; see controlplane/spec/engines.py.
MAX_LISTENERS = 64
MAX_KEYS = 8_192


class ListenSpec(Part):
    """One TCP address of the gateway. In YAML, ``host:port`` alone is a listener in clear text."""

    address: Address
    """`host:port`; `[address]:port` for IPv6."""
    certificate: Path | None = None
    """PEM file with certificate and key: the listener speaks TLS. None: clear text."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"address": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Both forms of a listener."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        return {"anyOf": [{"type": "string", "title": "host:port"}, schema]}

    @property
    def host(self) -> str:
        """Address to listen on, IPv6 without brackets."""
        return fields.split_address(self.address)[0]

    @property
    def port(self) -> int:
        """TCP port."""
        return fields.split_address(self.address)[1]


#: The first 128 KiB of a body are looked at; a smaller buffer would not hold them beside the headers.
MIN_BUFFER_BYTES = 160 << 10


def _holds_a_prompt(size: int) -> int:
    if 0 < size < MIN_BUFFER_BYTES:
        raise fields.refused(f"must be 0, which lets the gateway choose, or at least {MIN_BUFFER_BYTES}")
    return size


class GatewaySpec(Part):
    """The gateway, which runs on the first node."""

    listen: Annotated[tuple[ListenSpec, ...], Field(min_length=1, max_length=MAX_LISTENERS)] = (
        ListenSpec(address="127.0.0.1:8000"),
    )
    """Where clients connect."""
    threads: Annotated[Count, Field(ge=0, le=64)] = 0
    """HAProxy's threads. 0: one fewer than the node's cores, at least 1."""
    buffer_bytes: Annotated[Size, Field(ge=0, le=16 << 20), AfterValidator(_holds_a_prompt)] = 0
    """Bytes of a request that a decision sees and a retry can replay."""
    decision_timeout_ms: Annotated[Number, Field(ge=1, le=10_000)] = 50.0
    """Milliseconds that the router gets; then HAProxy balances by itself."""
    connect_timeout_ms: Annotated[Number, Field(ge=1, le=60_000)] = 1_000.0
    """Milliseconds to connect to a replica; then another one is tried."""
    silence_timeout_s: Annotated[Number, Field(ge=1, le=86_400)] = 600.0
    """Longest silence of a replica within an answer, in seconds."""
    queue_timeout_s: Annotated[Number, Field(ge=0, le=3_600)] = 30.0
    """Longest wait of a request for a free replica, in seconds."""
    drain_timeout_s: Annotated[Number, Field(ge=1, le=604_800)] = 7_200.0
    """Longest stream, in seconds: as long a drained replica and a replaced HAProxy worker live."""
    replica_header: Flag = True
    """Answer with x-slipstream-replica."""


class LimitsSpec(Part):
    """What the gateway takes from clients."""

    max_body: Annotated[Size, Field(ge=1 << 10, le=2 << 30)] = 64 << 20
    """Largest body of a request, in bytes; a larger one gets 413."""
    max_connections: Annotated[Count, Field(ge=0, le=1_000_000)] = 0
    """Connections of clients at once. 0: as many as the file-descriptor limit allows."""


class JournalSpec(Part):
    """What the router writes down of its decisions, below its state directory; docs/replay.md.

    In YAML, ``off`` and ``full`` stand for themselves, and ``sampled: 0.01`` for a mode and a share.
    """

    mode: Literal["off", "full", "sampled"] = "off"
    """`full`: every call, so that `slipstream replay` can make the decisions again. `sampled`: some receipts."""
    share: Annotated[Number, Field(gt=0, lt=1)] = 0.01
    """Part of the requests whose receipts a sampled journal holds."""
    file_bytes: Annotated[Size, Field(ge=1 << 20, le=4 << 30)] = 64 << 20
    """Bytes after which the next file begins."""
    files: Annotated[Count, Field(ge=2, le=1_000)] = 16
    """Files that are kept; the oldest is deleted."""

    @model_validator(mode="before")
    @classmethod
    def _from_short(cls, value: Any) -> Any:
        if value is False:
            return {"mode": "off"}  # YAML's own reading of `off`
        if isinstance(value, str):
            return {"mode": value}
        if isinstance(value, dict) and "sampled" in value:
            given = {key: kept for key, kept in value.items() if key != "sampled"}
            return {"mode": "sampled", "share": value["sampled"], **given}
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """All forms of a journal."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema["properties"]["sampled"] = {
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
            "description": "Stands for mode: sampled and this share.",
        }
        return {"anyOf": [{"enum": ["off", "full", False]}, schema]}


class RouterSpec(Part):
    """What holds for the decisions of all models."""

    journal: JournalSpec = JournalSpec()
    """What the router writes down of its decisions."""


class AdminSpec(Part):
    """The page of the controller; None: no page."""

    page: Address | None = "127.0.0.1:8001"
    """`host:port` of health, metrics and the live page. None: no page."""


class ApiKeySpec(Part):
    """One client key. Only its digest is ever written down."""

    name: Label
    """Name of the key, unique in the cluster."""
    tenant: Label
    """Whose requests these are."""
    sha256: Sha256
    """Lower-case hex of the SHA-256 of the key."""
    priority: Literal["", "high", "normal", "low"] = ""
    """Most urgent priority that its requests may ask for. Empty: none, all are `normal`."""


class ApiKeysSpec(Part):
    """The keys that the spec declares; more can be made by command."""

    required: Flag = False
    """Refuse requests without a known key with 401."""
    keys: Annotated[tuple[ApiKeySpec, ...], Field(max_length=MAX_KEYS)] = ()
    """Declared keys; more can be made with `slipstream key create`."""
