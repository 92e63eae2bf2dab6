"""The control plane's errors, each with a stable code and its gRPC status."""

from __future__ import annotations

from typing import ClassVar


class ControlplaneError(Exception):
    """Root of every error that the control plane raises on purpose.

    ``code`` is stable snake_case; ``grpc_status`` is the name of a ``grpc.StatusCode``.
    """

    code: ClassVar[str] = "internal_error"
    grpc_status: ClassVar[str] = "INTERNAL"


class InvalidSpec(ControlplaneError):
    """A spec says something that it may not; the message names file, line and key."""

    code = "invalid_spec"
    grpc_status = "INVALID_ARGUMENT"


class NotFound(ControlplaneError):
    """The object that was named does not exist."""

    code = "not_found"
    grpc_status = "NOT_FOUND"


class Conflict(ControlplaneError):
    """Something else changed first."""

    code = "conflict"
    grpc_status = "ABORTED"


class InvalidRequest(ControlplaneError):
    """The request cannot be carried out as it was put."""

    code = "invalid_request"
    grpc_status = "INVALID_ARGUMENT"


class StoreFull(ControlplaneError):
    """The disk that holds the store is full; nothing was written."""

    code = "store_full"
    grpc_status = "RESOURCE_EXHAUSTED"
