"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

#: Colours of the states that people scan for.
STATE_STYLE = {
    "ready": "green",
    "running": "green",
    "starting": "yellow",
    "pending": "yellow",
    "draining": "cyan",
    "stopping": "cyan",
    "failed": "bold red",
    "dead": "bold red",
}

#: Widest table, in columns.
MAX_TABLE_WIDTH = 1000

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print ``value`` (protobuf messages inside are turned into dicts) as JSON on standard output."""
    json.dump(_plain(value), sys.stdout, indent=2)
    sys.stdout.write("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return message_dict(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    return [_plain(v) for v in value]  # lists, and protobuf's own containers, which register as sequences


def message_dict(message: Message) -> dict[str, Any]:
    """Return a message as a dict with its proto field names, every field present, 64-bit integers as numbers."""
    fields = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _numbers(message, fields)


def _numbers(message: Message, fields: dict[str, Any]) -> dict[str, Any]:
    # protobuf's JSON writes 64-bit integers as strings, which every consumer would have to turn back.
    for descriptor in message.DESCRIPTOR.fields:
        name = descriptor.name
        if name not in fields:
            continue
        value = fields[name]
        if descriptor.cpp_type in (descriptor.CPPTYPE_INT64, descriptor.CPPTYPE_UINT64):
            fields[name] = [int(v) for v in value] if isinstance(value, list) else int(value)
        elif descriptor.cpp_type == descriptor.CPPTYPE_MESSAGE:
            inner = getattr(message, name)
            if isinstance(value, list):
                fields[name] = [_numbers(m, v) for m, v in zip(inner, value, strict=True)]
            elif isinstance(inner, Message):
                fields[name] = _numbers(inner, value)
    return fields


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()) -> None:
    """Print a table whose title stands in its frame; columns named in ``right`` are right-aligned."""
    view = Table(title=title, title_justify="left", title_style="bold", box=HORIZONTALS, pad_edge=False)
    aligned_right = set(right)
    for name in columns:
        view.add_column(name, justify="right" if name in aligned_right else "left", no_wrap=True)
    for row in rows:
        view.add_row(*(_styled(cell) for cell in row))
    # A table is as wide as its content, also in a pipe or a narrow terminal: a cut name cannot be copied.
    wide = console.options.update(width=MAX_TABLE_WIDTH)
    width = max(console.width, console.measure(view, options=wide).maximum)
    before, console.width = console.width, width
    console.print(view, soft_wrap=False, crop=False)
    console.width = before


def _styled(cell: str) -> str:
    style = STATE_STYLE.get(cell)
    escaped = cell.replace("[", r"\[")
    return f"[{style}]{escaped}[/]" if style else escaped


def age(seconds: float) -> str:
    """Return a duration as people say it: 0.4s, 12s, 3m, 5h, 2d; '-' when negative."""
    if seconds < 0:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f}s"
    for limit, unit, size in ((120, "s", 1), (7200, "m", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"
