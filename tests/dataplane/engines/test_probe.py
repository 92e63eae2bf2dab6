"""Probing real and broken servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from dataplane.engines import probe as probing
from dataplane.engines.probe import ProbeResult, kv_sizes, probe
from tests.dataplane.engines.replicas import Running, replica
from tests.ports import lease


async def test_a_ready_replica_tells_its_sizes(server: Running) -> None:
    assert await probe("127.0.0.1", server.port, 5) == ProbeResult(True, "", 65536, 16)


async def test_nothing_listens() -> None:
    result = await probe("127.0.0.1", lease()[0], 5)
    assert not result.ready and "Connect" in result.detail


async def test_an_unhealthy_replica() -> None:
    with replica() as running:
        running.post("/simulated/faults", {"unhealthy": True})
        assert await probe("127.0.0.1", running.port, 5) == ProbeResult(False, "/health answered 503")


@asynccontextmanager
async def answering(data: bytes, close: bool = True) -> AsyncIterator[int]:
    served: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        if close:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for writer in served:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("data", "ready"),
    [
        (b"", False),
        (b"SSH-2.0-x\r\n\r\n", False),
        (OK + b"x: " + b"y" * 100_000, False),
        (OK + b"content-length: 0\r\n\r\n", True),
        (OK + b"\r\nuntil the end", True),
        (OK + b"content-length: 9\r\n\r\nshort", False),
        (OK + b"content-length: 99999999999\r\n\r\n", False),
        (OK + b"content-length: -1\r\n\r\n", False),
        (OK + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", True),
        (OK + b"transfer-encoding: chunked\r\n\r\n-5\r\nab\r\n0\r\n\r\n", False),
        (OK + b"transfer-encoding: chunked\r\n\r\nffffffff\r\n", False),
        (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", False),
        (b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", False),
    ],
)
async def test_answers(data: bytes, ready: bool) -> None:
    async with answering(data) as port:
        result = await probe("127.0.0.1", port, 5)
        assert result.ready is ready
        assert ready or result.detail


async def test_silence_ends_with_the_timeout() -> None:
    async with answering(b"", close=False) as port:
        assert await probe("127.0.0.1", port, 0.1) == ProbeResult(False, "no answer within 0.1 s")


async def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MAX_RESPONSE_BYTES", 1000)
    async with answering(OK + b"\r\n" + b"x" * 5000) as port:
        assert (await probe("127.0.0.1", port, 5)).detail == "the answer is too long"


@pytest.mark.parametrize(
    ("line", "sizes"),
    [
        ('vllm:cache_config_info{block_size="32",kv_cache_size_tokens="65536"} 1.0', (65536, 32)),
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0', (1600, 16)),
        ('vllm:cache_config_info{x="a\\"b,block_size=1",block_size="16"} 1.0', (0, 16)),
        ('vllm:cache_config_info{block_size="None"} 1.0', (0, 0)),
        ('vllm:cache_config_info{block_size="' + "9" * 30 + '"} 1.0', (0, 0)),
        ("nothing", (0, 0)),
    ],
)
def test_kv_sizes(line: str, sizes: tuple[int, int]) -> None:
    assert kv_sizes(f"# HELP\n{line}\n") == sizes
