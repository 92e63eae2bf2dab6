"""Read fields from a JSON body as pydantic's lax mode does, collecting its errors in its words."""

from __future__ import annotations

from typing import Any

from dataplane.engines.simulated.errors import not_an_object, shown_input, validation_error

_BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0"), False),
}


class Body:
    """A JSON object whose fields are read one by one; ``check`` raises for all that were wrong."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise not_an_object(value)
        self.value: dict[str, Any] = value
        self.errors: list[dict[str, object]] = []

    def check(self) -> None:
        """Raise ApiError 400 when any field was wrong."""
        if self.errors:
            raise validation_error(self.errors)

    def fail(self, kind: str, name: str, message: str, value: object) -> None:
        """Note an error."""
        self.errors.append({"type": kind, "loc": f"body.{name}", "msg": message, "input": shown_input(value)})

    def require(self, name: str) -> Any:
        """Return a field's value; missing is an error."""
        if name not in self.value:
            self.fail("missing", name, "Field required", self.value)
        return self.value.get(name)

    def text(self, name: str) -> str | None:
        """Return an optional string."""
        value = self.value.get(name)
        if value is None or isinstance(value, str):
            return value
        self.fail("string_type", name, "Input should be a valid string", value)
        return None

    def integer(self, name: str) -> int | None:
        """Return an optional integer."""
        value = self.value.get(name)
        if value is None or isinstance(value, int):
            return None if value is None else int(value)
        if isinstance(value, float):
            if value.is_integer():
                return int(value)
            message = "Input should be a valid integer, got a number with a fractional part"
            self.fail("int_from_float", name, message, value)
        elif isinstance(value, str):
            try:
                return int(value)
            except ValueError:
                message = "Input should be a valid integer, unable to parse string as an integer"
                self.fail("int_parsing", name, message, value)
        else:
            self.fail("int_type", name, "Input should be a valid integer", value)
        return None

    def number(self, name: str) -> float | None:
        """Return an optional number."""
        value = self.value.get(name)
        if value is None or isinstance(value, int | float):
            return None if value is None else float(value)
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                message = "Input should be a valid number, unable to parse string as a number"
                self.fail("float_parsing", name, message, value)
        else:
            self.fail("float_type", name, "Input should be a valid number", value)
        return None

    def flag(self, name: str, default: bool = False) -> bool:
        """Return an optional boolean."""
        value = self.value.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        if isinstance(value, str):
            parsed = _BOOLEANS.get(value.lower())
            if parsed is not None:
                return parsed
            message = "Input should be a valid boolean, unable to interpret input"
            self.fail("bool_parsing", name, message, value)
        else:
            self.fail("bool_type", name, "Input should be a valid boolean", value)
        return default

    def items(self, name: str) -> list[Any]:
        """Return an optional list."""
        value = self.value.get(name)
        if value is None:
            return []
        if isinstance(value, list):
            return value
        self.fail("list_type", name, "Input should be a valid list", value)
        return []

    def mapping(self, name: str) -> dict[str, Any] | None:
        """Return an optional object."""
        value = self.value.get(name)
        if value is None or isinstance(value, dict):
            return value
        self.fail("dict_type", name, "Input should be a valid dictionary", value)
        return None

    def texts(self, name: str) -> list[str]:
        """Return an optional string or list of strings as a list."""
        value = self.value.get(name)
        if value is None:
            return []
        if isinstance(value, str):
            return [value]
        if isinstance(value, list):
            for i, item in enumerate(value):
                if not isinstance(item, str):
                    self.fail("string_type", f"{name}.{i}", "Input should be a valid string", item)
            return [item for item in value if isinstance(item, str)]
        self.fail("string_type", name, "Input should be a valid string", value)
        self.fail("list_type", name, "Input should be a valid list", value)
        return []
