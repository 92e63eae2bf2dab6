"""What the middleware tells of requests, read from the socket that the router would read."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.middleware import SlipstreamMiddleware, accounts, datagrams
from dataplane.middleware.accounts import MAX_LATE, Figures
from dataplane.middleware.asgi import App, Message, Receive, Scope, Send
from dataplane.middleware.datagrams import LINES_PER_DATAGRAM, MAX_PENDING, Datagrams

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
REFUSED: Message = {"type": "http.response.start", "status": 400, "headers": []}
FIGURES = Figures(100, 64, 7, 0.25, 0.5)


def body(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


class Router:
    """The router's end of the socket."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "reports.sock"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(self.path))

    def datagrams(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(65536))
            except BlockingIOError:
                return found

    def lines(self) -> list[bytes]:
        found = []
        for datagram in self.datagrams():
            head, *lines = datagram.split(b"\n")
            assert head == b"S demo-0.g1 0"
            found += lines
        return found


@pytest.fixture
def router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Router]:
    router = Router(tmp_path)
    monkeypatch.setenv("SLIPSTREAM_SERVER", "demo-0.g1")
    monkeypatch.setenv("SLIPSTREAM_REPORTS", str(router.path))
    monkeypatch.delenv("SLIPSTREAM_PIN", raising=False)
    yield router
    router.socket.close()
    accounts.serve("", "")


def scope(path: str = "/v1/chat/completions", name: bytes = b"abc", request_id: bytes = b"c-1") -> Scope:
    headers = [(b"x-request-id", name), (b"x-slipstream-request-id", request_id)]
    return {"type": "http", "method": "POST", "path": path, "headers": headers}


async def nothing() -> Message:
    return {"type": "http.request", "body": b"{}", "more_body": False}


async def ignore(_message: Message) -> None:
    return


async def answered(app: App, at: Scope) -> None:
    await SlipstreamMiddleware(app)(at, nothing, ignore)
    await asyncio.sleep(0)


async def test_a_stream_tells_its_first_token_and_its_figures_before_its_last_byte(router: Router) -> None:
    seen: list[list[bytes]] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        await asyncio.sleep(0)
        seen.append(router.lines())
        await send(body(b"a"))
        await asyncio.sleep(0)
        seen.append(router.lines())
        accounts.of_process.finished("chatcmpl-abc", FIGURES)
        await send(body(b"b"))
        await send(body(b"", more=False))
        seen.append(router.lines())  # without a turn of the loop: the last byte has not left yet

    await answered(app, scope())
    assert seen == [[], [b"F c-1"], [b"E c-1 100 64 7 250000 500000"]]
    assert router.lines() == []


async def test_a_whole_answer_tells_its_figures_alone(router: Router) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        accounts.of_process.finished("cmpl-abc-0", FIGURES)
        await send(START)
        await send(body(b"{}", more=False))

    await answered(app, scope("/v1/completions"))
    assert router.lines() == [b"E c-1 100 64 7 250000 500000"]


async def test_an_engine_in_the_same_task_finds_its_account(router: Router) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        account = accounts.current.get()
        assert account is not None
        account.first_token()
        account.first_token()
        account.finished(0, FIGURES)
        await send(START)
        await send(body(b"{}", more=False))

    await answered(app, scope())
    assert router.lines() == [b"F c-1", b"E c-1 100 64 7 250000 500000"]
    assert accounts.current.get() is None


async def test_prompts_add_up_and_of_choices_the_least_cached_counts(router: Router) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for name, cached in (("cmpl-abc-0", 0), ("cmpl-abc-0", 90), ("cmpl-abc-1", 32)):
            accounts.of_process.finished(name, Figures(100, cached, 5, 0.1 if cached else 0.3, -1.0))
        await send(START)
        await send(body(b"{}", more=False))

    await answered(app, scope("/v1/completions"))
    assert router.lines() == [b"E c-1 200 32 15 300000 -1"]


async def test_refusals_tell_nothing(router: Router) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(REFUSED)
        await send(body(b"{}"))
        await send(body(b"", more=False))

    await answered(app, scope())
    assert router.lines() == []
    assert accounts.of_process.find("chatcmpl-abc") is None
    assert accounts.of_process.waiting == {}


async def test_two_requests_of_one_name_are_not_mixed_up(router: Router) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        book = accounts.of_process
        other = book.open(b"c-2", "abc")
        assert other is not None
        book.finished("chatcmpl-abc", FIGURES)
        await send(START)
        await send(body(b"a"))
        other.last_byte(200)
        await send(body(b"", more=False))

    await answered(app, scope())
    assert router.lines() == [b"F c-1"]
    assert accounts.of_process.find("chatcmpl-abc") is None


async def test_figures_that_come_late_are_told_and_forgotten(router: Router) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        await send(body(b"{}", more=False))

    await answered(app, scope())
    assert router.lines() == []
    accounts.of_process.finished("chatcmpl-abc", FIGURES)
    await asyncio.sleep(0)
    assert router.lines() == [b"E c-1 100 64 7 250000 500000"]
    accounts.of_process.finished("chatcmpl-abc", FIGURES)
    await asyncio.sleep(0)
    assert router.lines() == []


async def test_those_that_never_come_are_forgotten(router: Router) -> None:
    book = accounts.serve("demo-0.g1", str(router.path))
    for i in range(MAX_LATE + 10):
        account = book.open(b"c-%d" % i, f"n{i}")
        assert account is not None
        account.last_byte(200)
    assert book.find("x-n0") is None
    assert book.find(f"x-n{MAX_LATE + 9}") is not None


async def test_a_client_that_leaves_closes_its_account(router: Router) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await answered(app, scope())
    assert accounts.of_process.find("chatcmpl-abc") is None
    assert accounts.of_process.waiting == {}


@pytest.mark.parametrize("request_id", [b"", b"a b", b"x" * 129, b"a\nF other"])
async def test_ids_that_no_gateway_makes_have_no_account(router: Router, request_id: bytes) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        assert accounts.current.get() is None
        await send(START)
        await send(body(b"a"))

    await answered(app, scope(name=b"", request_id=request_id))
    assert router.lines() == []


@pytest.mark.parametrize("path", ["/reset_prefix_cache", "/sleep"])
async def test_a_cleared_cache_is_told_once_it_is_true(router: Router, path: str) -> None:
    status = 503

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({**START, "status": status})
        await send(body(b"", more=False))

    await answered(app, scope(path))
    assert router.lines() == []
    status = 200
    await answered(app, scope(path))
    assert router.lines() == [b"C"]


async def test_many_lines_share_datagrams(router: Router) -> None:
    sender = Datagrams("demo-0.g1", str(router.path))
    for i in range(LINES_PER_DATAGRAM + 1):
        sender.put(b"F %d" % i)
    await asyncio.sleep(0)
    assert [len(d.split(b"\n")) - 1 for d in router.datagrams()] == [LINES_PER_DATAGRAM, 1]
    sender.close()


async def test_a_full_queue_is_tried_again_and_never_waited_for(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "RETRY_S", 0.001)
    sender = Datagrams("demo-0.g1", str(router.path))
    told = 0
    async with asyncio.timeout(20):
        while sender.dropped == 0:  # the kernel's queue fills, then ours
            sender.put(b"F %d" % told)
            told += 1
            if told % MAX_PENDING == 0:
                sender.flush()
        got = 0
        while got + sender.dropped < told:
            got += sum(len(d.split(b"\n")) - 1 for d in router.datagrams())
            await asyncio.sleep(0.002)
    assert got + sender.dropped == told
    sender.put(b"F last")
    await asyncio.sleep(0)
    assert router.datagrams()[-1] == b"S demo-0.g1 %d\nF last" % sender.dropped
    sender.close()


async def test_a_router_that_is_not_there_costs_nothing_and_is_found_again(tmp_path: Path) -> None:
    sender = Datagrams("demo-0.g1", str(tmp_path / "reports.sock"))
    sender.put(b"F 1")
    await asyncio.sleep(0)
    assert sender.dropped == 1
    router = Router(tmp_path)
    sender.put(b"F 2")
    await asyncio.sleep(0)
    assert router.datagrams() == [b"S demo-0.g1 1\nF 2"]
    router.socket.close()
    sender.close()


async def test_nothing_is_told_when_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIPSTREAM_REPORTS", raising=False)
    monkeypatch.setenv("SLIPSTREAM_SERVER", "demo-0.g1")

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        assert accounts.current.get() is None
        await send(START)

    await answered(app, scope())


def test_a_server_name_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_SERVER", "demo-0.g1\n")
    with pytest.raises(ValueError, match="SLIPSTREAM_SERVER"):
        SlipstreamMiddleware(answered)  # type: ignore[arg-type]
