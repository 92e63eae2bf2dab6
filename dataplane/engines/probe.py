"""Ask an engine whether it is ready, over its own HTTP: simulated, vLLM, and external ones alike."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from dataplane.names import host_port

#: vLLM's /metrics is about 60 KB with one model and grows with adapters and connectors.
MAX_RESPONSE_BYTES = 4 << 20
MAX_HEAD_BYTES = 64 << 10
#: Words of an error that go into a report.
MAX_DETAIL_CHARS = 200

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: [^\r\n]*)?")
_CACHE_CONFIG = re.compile(r"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')
#: Larger numbers are not a KV cache (64-bit fields of the protocol).
_MAX_NUMBER = (1 << 63) - 1
_MAX_BLOCK_TOKENS = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """``detail`` says why the engine is not ready, '' when it is. Sizes are 0 when the engine does not tell them."""

    ready: bool
    detail: str = ""
    kv_capacity_tokens: int = 0
    kv_block_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Response:
    """Status and body of one answer."""

    status: int
    body: bytes


class ProbeFailed(Exception):
    """No usable answer came; the message says why."""


async def probe(host: str, port: int, timeout_s: float) -> ProbeResult:
    """GET /health and, once that is 200, /metrics for the KV cache's size. Never raises but for cancellation.

    ``timeout_s`` bounds both together. An engine without vLLM's /metrics is ready all the same, its sizes 0.
    """
    try:
        async with asyncio.timeout(timeout_s):
            health = await get(host, port, "/health")
            if health.status != 200:
                return ProbeResult(False, f"/health answered {health.status}")
            return await _with_sizes(host, port)
    except TimeoutError:
        return ProbeResult(False, f"no answer within {timeout_s:g} s")
    except (ProbeFailed, OSError) as error:
        return ProbeResult(False, str(error)[:MAX_DETAIL_CHARS] or type(error).__name__)


async def _with_sizes(host: str, port: int) -> ProbeResult:
    try:
        metrics = await get(host, port, "/metrics")
    except (ProbeFailed, OSError):
        return ProbeResult(True)
    if metrics.status != 200:
        return ProbeResult(True)
    capacity, block = kv_sizes(metrics.body.decode("utf-8", "replace"))
    return ProbeResult(True, "", capacity, block)


def kv_sizes(metrics: str) -> tuple[int, int]:
    """Return tokens in the KV cache and in one block, from the text of /metrics; 0 for what it does not tell."""
    found = _CACHE_CONFIG.search(metrics)
    if found is None:
        return 0, 0
    labels = dict(_LABEL.findall(found.group(1)))
    block = _number(labels.get("block_size"), _MAX_BLOCK_TOKENS)
    capacity = _number(labels.get("kv_cache_size_tokens"), _MAX_NUMBER)
    if not capacity:  # releases before the label: blocks times their size
        capacity = min(_number(labels.get("num_gpu_blocks"), _MAX_NUMBER) * block, _MAX_NUMBER)
    return capacity, block


def _number(text: str | None, largest: int) -> int:
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 20:
        return 0
    return min(int(text), largest)


async def get(host: str, port: int, path: str) -> Response:
    """GET ``path`` on a connection of its own. Raises OSError, ProbeFailed; the caller sets the time limit."""
    reader, writer = await asyncio.open_connection(host, port, limit=MAX_HEAD_BYTES)
    try:
        head = f"GET {path} HTTP/1.1\r\nHost: {host_port(host, port)}\r\nConnection: close\r\nAccept: */*\r\n\r\n"
        writer.write(head.encode("ascii"))
        await writer.drain()
        return await _response(reader)
    finally:
        writer.close()


async def _response(reader: asyncio.StreamReader) -> Response:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        raise ProbeFailed("the engine closed the connection without an answer") from error
    except asyncio.LimitOverrunError as error:
        raise ProbeFailed("the answer's headers are too long") from error
    lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(lines[0])
    if status is None:
        raise ProbeFailed("the answer is not HTTP/1")
    headers = {k.strip().lower(): v.strip().lower() for k, _, v in (line.partition(b":") for line in lines[1:])}
    code = int(status.group(1))
    try:
        if headers.get(b"transfer-encoding") == b"chunked":
            return Response(code, await _chunked(reader))
        if b"content-length" in headers:
            return Response(code, await _sized(reader, headers[b"content-length"]))
        return Response(code, await _until_closed(reader))
    except asyncio.IncompleteReadError as error:
        raise ProbeFailed("the answer ended early") from error


async def _sized(reader: asyncio.StreamReader, length: bytes) -> bytes:
    if not length.isdigit() or int(length[:20]) > MAX_RESPONSE_BYTES:
        raise ProbeFailed("the answer is too long")
    return await reader.readexactly(int(length))


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        try:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        except (ValueError, asyncio.LimitOverrunError) as error:
            raise ProbeFailed("the answer's chunks are malformed") from error
        if size == 0:
            return bytes(body)
        if not 0 < size <= MAX_RESPONSE_BYTES - len(body):
            raise ProbeFailed("the answer is too long")
        body += await reader.readexactly(size)
        await reader.readexactly(2)


async def _until_closed(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while data := await reader.read(64 << 10):
        body += data
        if len(body) > MAX_RESPONSE_BYTES:
            raise ProbeFailed("the answer is too long")
    return bytes(body)
