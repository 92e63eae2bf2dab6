"""HAProxy's Runtime API and its master's command line, over their unix sockets."""

from __future__ import annotations

import asyncio
import csv
from dataclasses import dataclass
from pathlib import Path

from dataplane.gateway.delta import Step
from dataplane.gateway.errors import GatewayError

#: A command answers within microseconds, `show stat` of 4,096 servers within 20 ms.
COMMAND_TIMEOUT_S = 5.0
#: The master answers `reload` when the new worker has started.
RELOAD_TIMEOUT_S = 30.0
#: Longest answer that is read: `show stat` of 16,384 servers.
MAX_ANSWER_BYTES = 16 << 20
#: A server with pooled connections is deleted as soon as they are closed.
PATIENCE_S = 2.0
PATIENT_INTERVAL_S = 0.05
#: Columns of `show servers state`.
_BACKEND, _SERVER, _ADMIN, _WEIGHT = 1, 3, 6, 7
#: Bits of the admin state that stand for maintenance.
_MAINTENANCE = 0x01 | 0x02 | 0x04


@dataclass(frozen=True, slots=True)
class ServerState:
    """A server as the running process has it."""

    weight: int
    in_maintenance: bool


async def ask(socket: Path, command: str, timeout_s: float = COMMAND_TIMEOUT_S, *, end: bool = False) -> str:
    """Send one command, return the whole answer without surrounding white space. Raises GatewayError.

    ``end`` says that no other command follows: the master answers for ever otherwise, but takes it for a hang-up while
    it reloads.
    """
    if "\n" in command or ";" in command:
        raise GatewayError("a command must be one line and one command")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=MAX_ANSWER_BYTES)
            try:
                writer.write(command.encode() + b"\n")
                if end:
                    writer.write_eof()
                await writer.drain()
                answer = await reader.read(MAX_ANSWER_BYTES)
                while chunk := await reader.read(MAX_ANSWER_BYTES):
                    answer += chunk
                    if len(answer) > MAX_ANSWER_BYTES:
                        raise GatewayError(f"the answer to {command[:60]!r} is too long")
            finally:
                writer.close()
    except TimeoutError:
        raise GatewayError(f"HAProxy did not answer {command[:60]!r} within {timeout_s:g} s") from None
    except OSError as error:
        raise GatewayError(f"HAProxy's socket {socket.name}: {error.strerror or error}") from None
    return answer.decode("utf-8", "replace").strip()


async def take(socket: Path, step: Step) -> None:
    """Carry out one step. Raises GatewayError with HAProxy's words when it is refused."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while True:
        answer = await ask(socket, step.command)
        if answer == step.answer:
            return
        if not step.patient or "still has connections" not in answer or loop.time() > deadline:
            raise GatewayError(f"{step.command!r}: {answer or 'no answer'}")
        await asyncio.sleep(PATIENT_INTERVAL_S)


async def server_states(socket: Path) -> dict[tuple[str, str], ServerState]:
    """Return (backend, server) -> state of the process behind ``socket``."""
    answer = await ask(socket, "show servers state")
    states = {}
    for line in answer.splitlines()[2:]:
        fields = line.split()
        if len(fields) > _WEIGHT and not fields[_BACKEND].startswith("_"):
            admin = int(fields[_ADMIN])
            states[fields[_BACKEND], fields[_SERVER]] = ServerState(int(fields[_WEIGHT]), bool(admin & _MAINTENANCE))
    return states


async def process_id(socket: Path) -> int:
    """Return the pid of the worker behind the Runtime API."""
    for line in (await ask(socket, "show info")).splitlines():
        if line.startswith("Pid: "):
            return int(line[5:])
    raise GatewayError("HAProxy did not tell its pid")


async def worker_ids(master: Path) -> tuple[list[int], list[int]]:
    """Return the pids of the current workers and of the old ones that still finish streams."""
    current: list[int] = []
    old: list[int] = []
    into: list[int] | None = None
    for line in (await ask(master, "show proc", end=True)).splitlines():
        if line.startswith("#"):
            into = old if "old workers" in line else current if "workers" in line else None
        elif into is not None and (fields := line.split()) and fields[0].isdigit():
            into.append(int(fields[0]))
    return current, old


async def reload(master: Path) -> None:
    """Make the master load its files again. Raises GatewayError with HAProxy's words when it cannot."""
    answer = await ask(master, "reload", RELOAD_TIMEOUT_S)
    if not answer.startswith("Success=1"):
        raise GatewayError("reload failed: " + " ".join(answer.split())[:500])


async def server_rows(master: Path, pid: int) -> list[dict[str, str]]:
    """Return one row of `show stat` for each server of one worker, by column name."""
    answer = await ask(master, f"@!{pid} show stat -1 4 -1", end=True)
    lines = answer.removeprefix("# ").splitlines()
    return [row for row in csv.DictReader(lines) if row.get("svname") and not row["pxname"].startswith("_")]
