"""HAProxy's own count of the streams of every server, read from its runtime sockets.

After a reload the old workers keep their streams until these end; they are asked through the master's socket.
"""

from __future__ import annotations

import asyncio
import csv
import re
from collections.abc import Iterator
from pathlib import Path

#: Servers only (type 4), of all proxies.
_SHOW_SERVERS = "show stat -1 4 -1"
#: 4,096 servers take about a megabyte.
MAX_ANSWER_BYTES = 16 << 20
#: HAProxy answers within 20 ms at 4,096 servers; a stopped one never does.
ANSWER_TIMEOUT_S = 2.0
#: Reloads in quick succession leave old workers behind; only the newest are worth asking.
MAX_OLD_WORKERS = 8

_OLD_WORKERS = re.compile(r"# old workers\n((?:\d[^\n]*\n)*)")
_PID = re.compile(r"^(\d{1,10}) ", re.MULTILINE)


class StatsUnavailable(Exception):
    """HAProxy did not answer, or not with what ``show stat`` gives."""


async def ask(path: Path, command: str) -> str:
    """Send one command to a runtime socket and return the answer. Raises StatsUnavailable."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(command.encode() + b"\n")
                return await _read_answer(reader)
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise StatsUnavailable(f"{path.name}: {type(error).__name__}") from error


async def _read_answer(reader: asyncio.StreamReader) -> str:
    answer = bytearray()
    while chunk := await reader.read(65_536):
        answer += chunk
        if len(answer) > MAX_ANSWER_BYTES:
            raise StatsUnavailable(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
    return answer.decode("utf-8", "replace")


def streams_by_server(answer: str) -> dict[str, int]:
    """Return server name -> streams that it has or that wait for it, from ``show stat``. Raises StatsUnavailable."""
    lines = answer.lstrip().splitlines()
    if not lines or not lines[0].startswith("# "):
        raise StatsUnavailable("the answer of `show stat` has no head")
    columns = lines[0][2:].split(",")
    try:
        name, current, queued = (columns.index(column) for column in ("svname", "scur", "qcur"))
    except ValueError as error:
        raise StatsUnavailable("the answer of `show stat` lacks a column") from error
    streams: dict[str, int] = {}
    for row in csv.reader(lines[1:]):
        if len(row) > max(name, current, queued):
            count = _count(row[current]) + _count(row[queued])
            streams[row[name]] = streams.get(row[name], 0) + count
    return streams


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def old_workers(answer: str) -> Iterator[int]:
    """Yield the process ids of the old workers in the master's ``show proc``, at most MAX_OLD_WORKERS."""
    section = _OLD_WORKERS.search(answer)
    if section is not None:
        yield from [int(pid) for pid in _PID.findall(section[1])][:MAX_OLD_WORKERS]


async def current_streams(socket_path: Path, master_path: Path) -> dict[str, int]:
    """Return server name -> streams over the current worker and the old ones.

    Raises StatsUnavailable when the current worker cannot be asked; an old worker that cannot is ending.
    """
    streams = streams_by_server(await ask(socket_path, _SHOW_SERVERS))
    try:
        pids = tuple(old_workers(await ask(master_path, "show proc"))) if master_path.exists() else ()
    except StatsUnavailable:
        pids = ()
    for pid in pids:
        try:
            older = streams_by_server(await ask(master_path, f"@!{pid} {_SHOW_SERVERS}"))
        except StatsUnavailable:
            continue
        for server, count in older.items():
            streams[server] = streams.get(server, 0) + count
    return streams
