"""``${NAME}`` and ``${NAME:-default}`` in a spec's text.

As in a shell, the default also stands in for an empty variable, and it may itself hold variables. ``$${`` is a plain
``${``. A variable's value is taken as it is: it is never expanded again, and never becomes a number or a key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Defaults within defaults; two is what a folder with an override below ${HOME} takes.
MAX_NESTED = 4
#: Characters of a variable's value and of the text that comes out.
MAX_EXPANDED = 8_192

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_ALLOWED = re.compile(r"[\x20-\x7e]*")


def escaped(text: str) -> str:
    """Return text that ``expanded`` turns back into this one."""
    return text.replace("${", "$${")


def expanded(text: str, environment: Mapping[str, str]) -> str:
    """Return ``text`` with its variables replaced.

    Raises ValueError for a variable that is not set and has no default, one whose value holds anything but printable
    ASCII, and one that is not written as above.
    """
    if "${" not in text:
        return text
    result, _ = _expand(text, 0, environment, 0)
    if len(result) > MAX_EXPANDED:
        raise ValueError(f"is longer than {MAX_EXPANDED} characters with its variables")
    return result


def _expand(text: str, at: int, environment: Mapping[str, str], nested: int) -> tuple[str, int]:
    """Return the text from ``at`` to its end, or to the brace that closes a default, and where that is."""
    made: list[str] = []
    while at < len(text):
        if text.startswith("$${", at):
            made.append("${")
            at += 3
        elif text.startswith("${", at):
            value, at = _variable(text, at + 2, environment, nested)
            made.append(value)
        elif nested and text[at] == "}":
            return "".join(made), at
        else:
            made.append(text[at])
            at += 1
    if nested:
        raise ValueError("a variable is not closed: write ${NAME} or ${NAME:-default}")
    return "".join(made), at


def _variable(text: str, at: int, environment: Mapping[str, str], nested: int) -> tuple[str, int]:
    """Return the value of the variable whose name starts at ``at``, and where the text goes on."""
    found = _NAME.match(text, at)
    if found is None:
        raise ValueError("a variable has no name: write ${NAME} or ${NAME:-default}")
    name, at = found[0], found.end()
    value = environment.get(name)
    if text.startswith(":-", at):
        if nested == MAX_NESTED:
            raise ValueError(f"variables are nested deeper than {MAX_NESTED}")
        # A default that is not needed is only read past: its own variables need not be set.
        default, at = _expand(text, at + 2, _Anything() if value else environment, nested + 1)
        value = value or default
    if not text.startswith("}", at):
        raise ValueError("a variable is not closed: write ${NAME} or ${NAME:-default}")
    if value is None:
        raise ValueError(f"the environment variable {name} is not set (a default is written ${{{name}:-default}})")
    if _ALLOWED.fullmatch(value) is None:
        raise ValueError(f"the environment variable {name} holds a character that is not printable ASCII")
    return value, at + 1


class _Anything(dict[str, str]):
    """An environment in which every variable is set."""

    def get(self, key: str, default: str | None = None) -> str:  # type: ignore[override]
        return "-"
