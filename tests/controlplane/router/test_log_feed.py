import asyncio
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.router import calls, unix_sockets
from controlplane.router.calls import Calls
from controlplane.router.counters import Counters
from controlplane.router.log_feed import MAX_LINES_PER_TURN, LogFeed, lengthen_queue, parse
from controlplane.routing.events import Completion
from tests.controlplane.router.gateway import until
from tests.controlplane.router.test_values import RUNS

LINE = b"R 7F000001:9DE4_7F000001:2714_6B00F5B3_0000:2498 tiny-mixed tiny-mixed-1.g1 200 12 340 5120 ---- 0"


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_line_as_haproxy_sends_it(ending: bytes) -> None:
    request_id = b"7F000001:9DE4_7F000001:2714_6B00F5B3_0000:2498"
    assert parse(LINE + ending) == Completion(request_id, b"tiny-mixed-1.g1", 200, 12, 340, 5120, b"----", 0)


def test_no_server_no_answer_and_a_redispatch() -> None:
    assert parse(b"R a b <NOSRV> -1 -1 3 0 CR-- 0") == Completion(b"a", b"<NOSRV>", -1, -1, 3, 0, b"CR--", 0)
    redispatched = parse(b"R a b s.g1 502 -1 3 +120 SC-- +2")
    assert redispatched is not None
    assert (redispatched.bytes, redispatched.retries) == (120, 2)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        LINE[2:],
        LINE + b" more",
        LINE.replace(b"200", b"OK"),
        LINE.replace(b"5120", b"-5"),
        LINE.replace(b"340", b"9" * 30),
        LINE.replace(b" 12 ", b" \xd9\xa1 "),
    ],
)
def test_other_datagrams(line: bytes) -> None:
    assert parse(line) is None


@RUNS
@given(st.binary(max_size=200))
def test_any_datagram(line: bytes) -> None:
    parse(line)
    parse(b"R " + line)


@pytest.mark.parametrize("long_queue", [True, False])
async def test_lines_are_taken_in_turns_and_bad_ones_are_counted(tmp_path: Path, long_queue: bool) -> None:
    path = tmp_path / "log.sock"
    counters = Counters()
    seen: list[Completion] = []
    feed = LogFeed(unix_sockets.bind(path, socket.SOCK_DGRAM), lambda line, _: seen.append(line), lambda: 1.0, counters)
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.setblocking(False)
    sender.connect(str(path))
    sent = 0
    try:
        while sent <= MAX_LINES_PER_TURN:
            sender.send(LINE)
            sent += 1
    except BlockingIOError:
        pass  # as HAProxy: what does not fit is lost
    feed.drain()
    assert len(seen) == min(sent, MAX_LINES_PER_TURN)
    feed.drain()
    sender.send(b"?" * 5000)
    feed.drain()
    feed.drain()
    assert len(seen) == sent
    assert (counters.log_lines, counters.log_lines_malformed) == (sent + 1, 1)
    feed.start(long_queue)
    sender.send(LINE)
    await until(lambda: len(seen) == sent + 1, "the loop reads it")
    feed.stop()
    sender.close()


def test_a_core_that_fails_does_not_stop_the_feed(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    counters = Counters()
    bound = unix_sockets.bind(path, socket.SOCK_DGRAM)
    feed = LogFeed(bound, lambda *_: 1 // 0, lambda: 1.0, counters)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(path))
        for _ in range(2):
            sender.send(LINE)
            feed.drain()
    assert (counters.errors, counters.log_lines) == (2, 2)
    bound.close()


def test_the_kernels_queue(tmp_path: Path) -> None:
    setting = tmp_path / "max_dgram_qlen"
    assert not lengthen_queue(setting)
    setting.write_text("10\n")
    assert lengthen_queue(setting)
    assert setting.read_text() == "512"
    setting.write_text("4096\n")
    assert lengthen_queue(setting)
    assert setting.read_text() == "4096\n"


async def test_calls_end_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bytes] = []
    waiting = Calls(lambda completion: ended.append(completion.request_id), lifetime_s=0.02)
    waiting.begin(b"a", b"s.g1")
    await asyncio.sleep(0)
    waiting.begin(b"b", b"s.g1")
    await until(lambda: ended == [b"a", b"b"], "both end, in order")
    monkeypatch.setattr(calls, "MAX_CALLS", 2)
    crowded = Calls(lambda completion: ended.append(completion.request_id), lifetime_s=0.02)
    for name in (b"c", b"d", b"e"):
        crowded.begin(name, b"s.g1")
    assert ended[2:] == [b"c"]
    await until(lambda: len(crowded) == 0, "all end")
