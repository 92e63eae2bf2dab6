"""Errors in vLLM's shapes: ``{"error": {message, type, param, code}}``, Anthropic's, and the framework's ``detail``."""

from __future__ import annotations

import json


class ApiError(Exception):
    """An error answer. ``type`` is vLLM's word for the reason, which depends on where the request failed."""

    def __init__(self, status: int, message: str, type_: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type_
        self.param = param

    def content(self) -> dict[str, object]:
        """Return the JSON body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.status}}

    def anthropic(self) -> dict[str, object]:
        """Return the JSON body of /v1/messages."""
        return {"type": "error", "error": {"type": self.type, "message": self.message}}


class FrameworkError(ApiError):
    """An error of the HTTP framework below vLLM: ``{"detail": ...}``."""

    def __init__(self, status: int, detail: str, allow: str | None = None) -> None:
        super().__init__(status, detail)
        self.allow = allow

    def content(self) -> dict[str, object]:
        """Return the JSON body."""
        return {"detail": self.message}


def parameter_error(message: str, param: str, value: object = None) -> ApiError:
    """Return the error of a field whose value vLLM itself refuses."""
    shown = f"{message} (parameter={param})" if value is None else f"{message} (parameter={param}, value={value})"
    return ApiError(400, shown, param=param)


def model_not_found(model: str, base: str) -> ApiError:
    """Return the 404 of an unknown model."""
    return ApiError(404, f"The model `{model}` does not exist. Valid aliases: {base}.", "NotFoundError", "model")


def validation_error(errors: list[dict[str, object]]) -> ApiError:
    """Return the error of a body that does not fit the schema; ``errors`` are pydantic's, in its order."""
    label = "error" if len(errors) == 1 else "errors"
    lines = "".join(f"  {error}\n" for error in errors[:_MAX_REPORTED])
    if len(errors) > _MAX_REPORTED:
        lines += f"  ...and {len(errors) - _MAX_REPORTED} more {label}\n"
    message = f"{len(errors)} validation {label}:\n{lines}".rstrip()
    return ApiError(400, message, "Bad Request", str(errors[0]["loc"]))


_MAX_REPORTED = 10
_MAX_INPUT_CHARS = 200


def shown_input(value: object) -> str:
    """Return how vLLM shows the input of a validation error."""
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= _MAX_INPUT_CHARS else text[:_MAX_INPUT_CHARS] + "...[truncated]"


def invalid_json(error: json.JSONDecodeError) -> ApiError:
    """Return the error of a body that is not JSON."""
    found: dict[str, object] = {"type": "json_invalid", "loc": f"body.{error.pos}", "msg": "JSON decode error"}
    return validation_error([{**found, "input": "<dict of 0 items>", "ctx": {"error": error.msg}}])


def missing_body() -> ApiError:
    """Return the error of an empty body."""
    return validation_error([{"type": "missing", "loc": "body", "msg": "Field required", "input": "None"}])


def not_an_object(value: object) -> ApiError:
    """Return the error of a body that is JSON but no object."""
    message = "Input should be a valid dictionary or object to extract fields from"
    return validation_error(
        [{"type": "model_attributes_type", "loc": "body", "msg": message, "input": shown_input(value)}]
    )


def wrong_media_type() -> ApiError:
    """Return the error of a body that is not announced as JSON."""
    message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    return ApiError(400, message, "Bad Request")


def no_route() -> FrameworkError:
    """Return the 404 of an unknown path."""
    return FrameworkError(404, "Not Found")


def wrong_method(allow: str) -> FrameworkError:
    """Return the 405 of a known path."""
    return FrameworkError(405, "Method Not Allowed", allow)


def response_not_found(response_id: str) -> ApiError:
    """Return the 404 of an unknown response id."""
    return ApiError(404, f"Response with id '{response_id}' not found.", "invalid_request_error", "response_id")
