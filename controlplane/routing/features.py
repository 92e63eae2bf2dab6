"""What a request is, from any of its sources: HAProxy's record, the body, or a gRPC caller's parts."""

from __future__ import annotations

from controlplane.routing.body import from_body, from_parts
from controlplane.routing.errors import MalformedFeatures
from controlplane.routing.record import (
    EMPTY_BODY,
    KIND_NUMBERS,
    KINDS,
    MODEL_AMBIGUOUS,
    MODEL_NOT_SEEN,
    MODEL_SEEN,
    MULTIPART,
    NOT_AN_OBJECT,
    WHOLE_BODY,
    Request,
    parse,
    record,
)
from controlplane.routing.whole import from_whole

__all__ = [
    "EMPTY_BODY",
    "KINDS",
    "KIND_NUMBERS",
    "MODEL_AMBIGUOUS",
    "MODEL_NOT_SEEN",
    "MODEL_SEEN",
    "MULTIPART",
    "NOT_AN_OBJECT",
    "WHOLE_BODY",
    "MalformedFeatures",
    "Request",
    "from_body",
    "from_parts",
    "from_whole",
    "parse",
    "record",
]
