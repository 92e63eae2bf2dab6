"""Reports of engines: what is taken, what is ignored, and why."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.router import convert, topology_file, unix_sockets
from controlplane.router.counters import Counters
from controlplane.router.log_feed import LogFeed
from controlplane.router.log_feed import parse as parse_log
from controlplane.router.report_feed import INTERVAL_S, ReportFeed
from controlplane.router.reports import MAX_TOKENS, Reports, parse
from controlplane.routing.core import RoutingCore
from controlplane.routing.events import CacheCleared, EngineReport, FirstByte
from controlplane.routing.features import parse as parse_features
from dataplane.pb import routing_pb2 as pb
from dataplane.state_dir import StateDir
from tests.controlplane.router import world
from tests.controlplane.router.gateway import state_dir, until
from tests.controlplane.router.test_process import api, connected, router, status

SERVER = b"tiny-mixed-0.g1"
HEAD = b"S " + SERVER + b" 0"


class World:
    """A core with one request in flight at the one replica, and its reports."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.core = RoutingCore(receipt_capacity=16)
        self.core.install(convert.topology(world.topology(servers=(("tiny-mixed-0.g1", 1001),))), self.now_s)
        self.reports = Reports(self.core, lambda: self.now_s)
        self.reports.servers = {SERVER}

    def decide(self, request_id: bytes) -> None:
        request = parse_features(world.record(hashes=b"12345678" * 8))
        assert self.core.decide(request_id, request, self.now_s).server == SERVER

    def tell(self, *lines: bytes, head: bytes = HEAD) -> None:
        self.reports.datagram(b"\n".join((head, *lines)))

    def ignored(self) -> dict[str, int]:
        return {reason: count for reason, count in self.reports.ignored.items() if count}

    def taken(self) -> dict[str, int]:
        return {kind: count for kind, count in self.reports.taken.items() if count}


def test_lines() -> None:
    told = parse(HEAD + b"\nF c-1\nE c-1 10 8 3 1500000 -1\nC")
    assert told is not None
    assert told.events == [
        FirstByte(b"c-1", SERVER),
        EngineReport(b"c-1", SERVER, 10, 8, 3, 1.5, -1.0),
        CacheCleared(SERVER),
    ]
    assert (told.server, told.dropped, told.malformed) == (SERVER, 0, 0)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.binary(max_size=80))
def test_no_bytes_are_too_odd(data: bytes) -> None:
    core = RoutingCore(receipt_capacity=1)
    for datagram in (data, HEAD + b"\n" + data, HEAD + b"\nE " + data):
        reports = Reports(core, lambda: 0.0)
        reports.servers = {SERVER}
        reports.datagram(datagram)
        assert not reports.taken.total() or b"C" in datagram


def test_a_request_goes_from_waiting_to_told() -> None:
    one = World()
    one.decide(b"c-1")
    (load,) = one.core.loads(one.now_s)
    assert (load.waiting, load.in_flight) == (1, 1) and load.queued_tokens > 0
    one.tell(b"F c-1")
    (load,) = one.core.loads(one.now_s)
    assert (load.waiting, load.queued_tokens, load.in_flight) == (0, 0, 1)
    one.tell(b"E c-1 100 40 7 1000 250000")
    assert one.taken() == {"first_token": 1, "finished": 1}
    assert one.ignored() == {}
    (prediction,) = (p for p in one.core.cache_predictions() if p.model == "tiny" and not p.adapter)
    assert prediction.reported_tokens in (0, 40)  # a policy that predicts nothing compares nothing


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([b"F c-2"], "not_in_flight"),
        ([b"E c-2 10 5 1 0 0"], "not_in_flight"),
        ([b"E c-1 10 5 1 0 0", b"E c-1 10 5 1 0 0"], "replayed"),
        ([b"E c-1 10 11 1 0 0"], "impossible"),
        ([b"E c-1 -2 -1 1 0 0"], "impossible"),
        ([b"E c-1 %d 0 1 0 0" % (MAX_TOKENS + 1)], "impossible"),
        ([b"E c-1 10 0 1 0 999999999999999999"], "impossible"),
        ([b"E c-1 10 0 1 0"], "malformed"),
        ([b"E c-1 10 0 1 0 x"], "malformed"),
        ([b"F c-1 c-1"], "malformed"),
        ([b"F "], "malformed"),
        ([b"F " + b"x" * 129], "malformed"),
        ([b"G c-1"], "malformed"),
        ([b""], "malformed"),
    ],
)
def test_what_is_not_believed_is_counted_and_changes_nothing(lines: list[bytes], reason: str) -> None:
    one = World()
    one.decide(b"c-1")
    *good, _ = lines
    one.tell(*good)
    before = one.core.loads(one.now_s), one.core.cache_predictions()
    one.tell(*lines[len(good) :])
    assert one.ignored() == {reason: 1}
    assert (one.core.loads(one.now_s), one.core.cache_predictions()) == before


@pytest.mark.parametrize(
    ("head", "ignored"),
    [
        (b"S tiny-mixed-0.g0 0", {"unknown_server": 2}),
        (b"S other 0", {"unknown_server": 2}),
        (b"S tiny-mixed-0.g1", {"malformed": 1}),
        (b"S tiny-mixed-0.g1 -1", {"malformed": 1}),
        (b"T tiny-mixed-0.g1 0", {"malformed": 1}),
        (b"", {"malformed": 1}),
    ],
)
def test_other_generations_and_heads(head: bytes, ignored: dict[str, int]) -> None:
    one = World()
    one.decide(b"c-1")
    one.tell(b"F c-1", b"C", head=head)
    assert one.ignored() == ignored
    assert one.taken() == {}
    assert one.core.loads(one.now_s)[0].waiting == 1


def test_lost_reports_are_summed_up_over_engines() -> None:
    one = World()
    one.reports.servers = {SERVER, b"b"}
    for head in (b"S tiny-mixed-0.g1 3", b"S b 4", b"S tiny-mixed-0.g1 5"):
        one.tell(head=head)
    assert one.reports.dropped == 9


async def test_a_report_is_read_before_the_log_line_of_its_request(tmp_path: Path) -> None:
    """Both lie in their sockets when the log is read: the request is known to have ended only afterwards."""
    one = World()
    one.decide(b"c-1")
    paths = tmp_path / "r", tmp_path / "l"
    report_socket, log_socket = (unix_sockets.bind(path, socket.SOCK_DGRAM) for path in paths)
    counters = Counters()
    reports = ReportFeed(report_socket, one.reports.datagram, counters)
    log = LogFeed(log_socket, reports.before(one.core.finished), lambda: one.now_s, counters)
    line = b"R c-1 tiny-mixed " + SERVER + b" 200 5 6 700 -- 0"
    assert parse_log(line) is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(line, str(paths[1]))
        sender.sendto(HEAD + b"\nE c-1 100 40 7 1000 250000", str(paths[0]))
    log.drain()
    assert one.taken() == {"finished": 1}
    assert one.core.counters().completions == 1
    reports.stop()
    log.stop()


@pytest.mark.parametrize("long_queue", [False, True])
async def test_every_datagram_is_read_soon(tmp_path: Path, long_queue: bool) -> None:
    """The first after a silence, those that follow, and the first after the next silence."""
    heard: list[bytes] = []
    bound = unix_sockets.bind(tmp_path / "r", socket.SOCK_DGRAM)
    feed = ReportFeed(bound, heard.append, Counters())
    feed.start(long_queue)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for burst in range(3):
            for number in range(3):
                sender.sendto(b"%d %d" % (burst, number), str(tmp_path / "r"))
            await until(lambda count=3 * burst + 3: len(heard) == count, "all are read")  # type: ignore[misc]
            await asyncio.sleep(3 * INTERVAL_S)
    assert heard == [b"%d %d" % (burst, number) for burst in range(3) for number in range(3)]
    feed.stop()


async def test_a_running_router_takes_both_ways(tmp_path: Path) -> None:
    """The socket is ours alone; reports of requests that nobody sent are counted by their reasons."""
    state: StateDir = state_dir(tmp_path)
    topology_file.write(world.topology_path(state), world.topology())
    with router(state):
        await connected(state)
        async with api(state) as stub:
            assert state.reports_socket.stat().st_mode & 0o777 == 0o600
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(HEAD + b"\nF nobody\nC", str(state.reports_socket))
                sender.sendto(b"S tiny-mixed-0.g9 0\nF nobody", str(state.reports_socket))
            call = stub.Report()
            await call.write(pb.ReportRequest(datagrams=[b"S x 0\nF a", b"S x 0\nF b"]))
            await call.done_writing()
            assert await call == pb.ReportResponse(taken=0, ignored=2)

            async def told() -> bool:
                known = await status(stub)
                ignored = {reason: count for reason, count in known.reports_ignored.items() if count}
                return ignored == {"not_in_flight": 1, "unknown_server": 3} and known.reports["cache_cleared"] == 1

            deadline = asyncio.get_running_loop().time() + 10
            while not await told():
                assert asyncio.get_running_loop().time() < deadline, await status(stub)
                await asyncio.sleep(0.02)
