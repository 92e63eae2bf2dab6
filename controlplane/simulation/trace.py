"""Trace files: Mooncake's JSON lines and Azure's CSV, plain or gzipped, read whole before anything runs."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from controlplane.simulation.cache import BLOCK_TOKENS
from controlplane.simulation.errors import InvalidTrace

#: Rows of one trace; a longer one is cut by its owner.
MAX_ROWS = 4_000_000
#: Characters of one line: a prompt of 16 million tokens has 32,768 hash ids.
MAX_LINE = 1 << 20
#: Tokens of one prompt or answer.
MAX_TOKENS = 1 << 24
MAX_ID = 1 << 40
#: Part of a bad value that an error shows.
SHOWN = 60

AZURE_HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True, slots=True)
class Row:
    """One request: seconds since the trace began, tokens, and an id for each ``id_tokens`` of the prompt.

    Equal ids are equal content after equal content. What has no id is shared with nothing.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    ids: tuple[int, ...]
    id_tokens: int = BLOCK_TOKENS


def read(path: Path) -> list[Row]:
    """Return a trace's rows in the order of time, the first at 0. ``.csv`` is Azure's format, all else Mooncake's.

    An id stands for 512 tokens as in Mooncake's own traces, or for the most that is a power of two and leaves no line
    with more ids than its prompt has room for: other tools write such traces with smaller blocks. Raises InvalidTrace
    with file, line and what was expected there.
    """
    azure = path.name.removesuffix(".gz").endswith(".csv")
    rows = list(_azure(path) if azure else _mooncake(path))
    if not rows:
        raise InvalidTrace(f"{path}: the trace has no requests")
    rows.sort(key=lambda row: row.at_s)
    start = rows[0].at_s
    size = BLOCK_TOKENS
    for row in rows:
        while len(row.ids) > math.ceil(row.prompt_tokens / size):
            size //= 2
    return [Row(row.at_s - start, row.prompt_tokens, row.output_tokens, row.ids, size) for row in rows]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Return (number, line) of each line that is not blank. The number of the first is 1."""
    number = 0
    try:
        with (gzip.open if path.name.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise _broken(path, number, f"a line of at most {MAX_LINE:,} characters")
                if number > MAX_ROWS:
                    raise _broken(path, number, f"the end: a trace has at most {MAX_ROWS:,} lines")
                if line.strip():
                    yield number, line.strip()
    except FileNotFoundError:
        raise InvalidTrace(f"{path}: there is no such trace file") from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InvalidTrace(f"{path}: line {number + 1}: the file cannot be read: {error}") from None


def _broken(path: Path, number: int, expected: str, found: object = None) -> InvalidTrace:
    told = "" if found is None else f", found {str(found)[:SHOWN]!r}"
    return InvalidTrace(f"{path}: line {number}: expected {expected}{told}")


def _mooncake(path: Path) -> Iterator[Row]:
    decode = msgspec.json.Decoder().decode
    for number, line in _lines(path):
        try:
            fields = decode(line)
        except (msgspec.DecodeError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise _broken(path, number, "a JSON object with timestamp, input_length, output_length, hash_ids", line)
        where = _Where(path, number, fields)
        at_ms = where.number("timestamp", "milliseconds, at least 0", lambda value: value >= 0)
        prompt = where.whole("input_length", 1)
        output = where.whole("output_length", 0)
        ids = fields.get("hash_ids", [])
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < MAX_ID for i in ids):
            raise _broken(path, number, "hash_ids to be a list of whole numbers from 0", ids)
        if len(ids) > prompt:
            raise _broken(path, number, f"at most {prompt} hash_ids, one for each token of the prompt", len(ids))
        yield Row(at_ms / 1e3, prompt, max(1, output), tuple(ids))


def _azure(path: Path) -> Iterator[Row]:
    lines = _lines(path)
    header = next(lines, (1, ""))
    if tuple(header[1].split(",")) != AZURE_HEADER:
        raise _broken(path, header[0], f"the header {','.join(AZURE_HEADER)}", header[1])
    for number, line in lines:
        cells = line.split(",")
        if len(cells) != len(AZURE_HEADER):
            raise _broken(path, number, f"{len(AZURE_HEADER)} cells: {', '.join(AZURE_HEADER)}", line)
        when, _, fraction = cells[0].partition(".")
        try:
            # The trace has seven digits of a second; datetime reads six.
            at_s = datetime.strptime(f"{when}+0000", "%Y-%m-%d %H:%M:%S%z").timestamp() + float(f"0.{fraction or 0}")
        except ValueError:
            raise _broken(path, number, "TIMESTAMP as YYYY-MM-DD HH:MM:SS.fraction", cells[0]) from None
        numbers = [int(cell) if cell.isascii() and cell.isdecimal() and len(cell) < 12 else -1 for cell in cells[1:]]
        where = _Where(path, number, dict(zip(AZURE_HEADER[1:], numbers, strict=True)))
        prompt, output = where.whole(AZURE_HEADER[1], 1), where.whole(AZURE_HEADER[2], 0)
        yield Row(at_s, prompt, max(1, output), ())


@dataclass(frozen=True, slots=True)
class _Where:
    """The fields of one line, and what to say when one is wrong."""

    path: Path
    line: int
    fields: dict[str, Any]

    def number(self, name: str, expected: str, good: Callable[[float], bool]) -> float:
        value = self.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not good(value):
            raise _broken(self.path, self.line, f"{name} to be {expected}", value if name in self.fields else "nothing")
        return value

    def whole(self, name: str, least: int) -> int:
        value = self.number(
            name,
            f"a whole number of tokens, {least} to {MAX_TOKENS}",
            lambda value: type(value) is int and least <= value <= MAX_TOKENS,
        )
        return int(value)
