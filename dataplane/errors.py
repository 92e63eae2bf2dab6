"""The data plane's errors, and the one table of errors that a client can get from the edge."""

from __future__ import annotations

import json
from dataclasses import dataclass


class DataplaneError(Exception):
    """Root of every error that the data plane raises on purpose."""


class InvalidName(DataplaneError):
    """A value may not reach a configuration file or a command line."""

    def __init__(self, what: str, value: str, pattern: str) -> None:
        shown = repr(value if len(value) <= 80 else value[:77] + "...")
        super().__init__(f"{what} {shown} is not allowed: it must match {pattern}")


@dataclass(frozen=True, slots=True)
class EdgeError:
    """One error that HAProxy or the router gives a client, in OpenAI's shape."""

    code: str
    status: int
    type: str
    message: str
    param: str | None = None

    def body(self) -> bytes:
        """Return the JSON body, UTF-8."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": fields}, separators=(",", ":")).encode()


_INVALID = "invalid_request_error"

#: code -> error. The codes are stable: clients may match on them. docs/promises.md lists them.
EDGE_ERRORS: dict[str, EdgeError] = {
    e.code: e
    for e in (
        EdgeError("bad_request", 400, _INVALID, "The HTTP request is malformed."),
        EdgeError("invalid_json", 400, _INVALID, "The request body is not valid JSON."),
        EdgeError("invalid_body", 400, _INVALID, "The request body must be a JSON object."),
        EdgeError("empty_body", 400, _INVALID, "The request body is empty."),
        EdgeError("invalid_model", 400, _INVALID, "The field 'model' must be a string.", "model"),
        EdgeError("model_required", 400, _INVALID, "The field 'model' is missing; GET /v1/models lists them.", "model"),
        EdgeError(
            "model_not_visible",
            400,
            _INVALID,
            "The request is larger than the gateway's buffer and its 'model' is not within it. "
            "Write 'model' first, or send the header x-slipstream-model.",
            "model",
        ),
        EdgeError("invalid_api_key", 401, "authentication_error", "The API key is missing or not known."),
        EdgeError("model_not_found", 404, _INVALID, "The model does not exist; GET /v1/models lists them.", "model"),
        EdgeError("path_not_found", 404, _INVALID, "There is nothing at this path."),
        EdgeError("response_not_found", 404, _INVALID, "No replica holds this response.", "response_id"),
        EdgeError("method_not_allowed", 405, _INVALID, "This path does not take this method."),
        EdgeError("request_timeout", 408, "timeout_error", "The request did not arrive in time."),
        EdgeError("body_too_large", 413, _INVALID, "The request body is larger than this gateway takes."),
        EdgeError("headers_too_large", 431, _INVALID, "The request's headers are larger than this gateway takes."),
        EdgeError("overloaded", 429, "rate_limit_error", "The service is overloaded; try again later."),
        EdgeError("internal_error", 500, "server_error", "The gateway failed."),
        EdgeError("replica_failed", 502, "server_error", "The replica failed before it answered; try again."),
        EdgeError("no_replica_available", 503, "server_error", "No replica of this model is available; try again."),
        EdgeError("replica_timeout", 504, "server_error", "The replica did not answer in time."),
    )
}
