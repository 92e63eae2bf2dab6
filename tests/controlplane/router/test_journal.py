from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.router import journal_lines as lines
from controlplane.router import journal_writer
from controlplane.router.journal import Journal, JournalledCore
from controlplane.router.journal_files import JournalFiles, journals, run_name
from controlplane.router.journal_run import Journals, open_run
from controlplane.router.journal_settings import JournalInfo, WatchedTopology
from controlplane.router.journal_writer import JournalWriter
from controlplane.routing.core import RoutingCore
from controlplane.routing.events import CacheCleared, EngineReport, FirstByte, Telemetry
from tests.controlplane.routing.worlds import completion, request, topology
from tests.controlplane.simulation.lived import Life

RUN = run_name(1.78e9, 7, 1)


def read(folder: Path) -> list[lines.AnyLine]:
    return [lines.decode(line) for path in journals(folder) for line in path.read_bytes().splitlines()]


def head(number: int) -> bytes:
    return lines.encode(lines.Header(lines.VERSION, "0", lines.FULL, RUN, number, True, 0))


def test_every_call_is_a_line_in_its_order(tmp_path: Path) -> None:
    core = JournalledCore(receipt_capacity=100)
    writer = open_run(tmp_path, core, 1.78e9, JournalInfo())
    core.install(topology(2, "cost"), 1.0)
    decision = core.decide(b"one", request(blocks=["a"], tenant=b"acme"), 2.0)
    core.finished(completion(b"one", decision.server), 3.5)
    core.reconcile({"p-0.g1": 3}, 4.25)
    assert core.decide(b"two", request(model="none"), 5.0).outcome == "error"
    assert writer.close()
    header, install, decide, finished, reconcile, refused = read(tmp_path)
    assert isinstance(header, lines.Header) and header.from_start
    assert isinstance(install, lines.Install) and install.topology == core.topology
    assert isinstance(decide, lines.Decide) and decide.request == request(blocks=["a"], tenant=b"acme")
    assert (decide.at, decide.id, decide.made.outcome, decide.made.server) == (
        2.0,
        b"one",
        "go",
        decision.server.decode(),
    )
    assert finished == lines.Finished(3.5, completion(b"one", decision.server))
    assert reconcile == lines.Reconcile(4.25, {"p-0.g1": 3})
    assert isinstance(refused, lines.Decide) and refused.made.error == "model_not_found"


def test_a_journal_decides_nothing() -> None:
    servers: list[list[bytes]] = []
    for core in (RoutingCore(receipt_capacity=100), JournalledCore(receipt_capacity=100)):
        if isinstance(core, JournalledCore):
            core.journal = Journal(lambda line: None)
        core.install(topology(5, "cost"), 0.0)
        made = [core.decide(b"%d" % i, request(blocks=[i % 7, i]), float(i)).server for i in range(300)]
        servers.append(made)
    assert servers[0] == servers[1]


def test_a_journal_that_begins_later_says_so_and_has_the_topology(tmp_path: Path) -> None:
    core = JournalledCore(receipt_capacity=100)
    core.install(topology(2, "cost"), 1.0)
    core.decide(b"one", request(), 2.0)
    assert open_run(tmp_path, core, 3.0, JournalInfo()).close()
    header, install = read(tmp_path)
    assert isinstance(header, lines.Header) and not header.from_start
    assert isinstance(install, lines.Install) and install.at == 3.0


def test_a_sampled_journal_holds_receipts_of_its_share_and_no_prompt(tmp_path: Path) -> None:
    core = JournalledCore(receipt_capacity=100)
    writer = open_run(tmp_path, core, 0.0, JournalInfo(0.25))
    core.install(topology(3, "cost"), 0.0)
    for number in range(400):
        decision = core.decide(b"r%d" % number, request(blocks=[number]), float(number))
        core.finished(completion(b"r%d" % number, decision.server), number + 0.5)
    assert writer.close()
    header, *kept = read(tmp_path)
    assert isinstance(header, lines.Header) and (header.mode, header.share) == (lines.SAMPLED, 0.25)
    receipts = [line.receipt for line in kept if isinstance(line, lines.Sample)]
    ends = [line.event.request_id for line in kept if isinstance(line, lines.Finished)]
    assert 60 < len(receipts) < 140
    assert [receipt.request_id for receipt in receipts] == ends
    assert receipts[-1].candidates[0].signals


def test_files_are_private_rotate_and_are_bounded(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    files = JournalFiles(folder, RUN, file_bytes=10_000, files=3)
    writer = JournalWriter(files, head)
    core = JournalledCore(receipt_capacity=100)
    core.journal = Journal(writer.put)
    core.install(topology(2, "cost"), 0.0)
    for turn in range(8):
        for number in range(100):
            core.decide(b"%d-%d" % (turn, number), request(), float(number))
        _until(lambda: not writer.pending_bytes)
    assert writer.close()
    known = journals(folder)
    assert len(known) == 3 and known[-1].name > known[0].name
    assert {stat.S_IMODE(path.stat().st_mode) for path in known} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in known:
        first, second, *_ = [lines.decode(line) for line in path.read_bytes().splitlines()]
        assert isinstance(first, lines.Header) and f"{first.run}-{first.file:06d}.jsonl" == path.name
        assert isinstance(second, lines.InForce) and second.topology == core.topology


def test_a_slow_disk_drops_lines_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_writer, "MAX_PENDING_BYTES", 400)
    monkeypatch.setattr(journal_writer, "INTERVAL_S", 0.02)
    files = _Refusing(tmp_path, RUN)
    files.moves.clear()
    writer = JournalWriter(files, head)
    line = lines.encode(lines.Reconcile(1.0, {"x" * 50: 1}))
    for _ in range(20):
        writer.put(line)  # never waits, whatever the disk does
    assert writer.dropped >= 10
    dropped = writer.dropped
    files.moves.set()
    _until(lambda: not writer.pending_bytes)
    writer.put(line)
    assert writer.close()
    kept = read(tmp_path)[1:]
    assert lines.Gap(dropped) in kept
    assert len(kept) == 20 - dropped + 1 + 1
    assert isinstance(kept[-1], lines.Reconcile)


def test_a_full_disk_loses_lines_but_never_half_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_writer, "RETRY_S", 0.05)
    monkeypatch.setattr(journal_writer, "INTERVAL_S", 0.02)
    files = _Refusing(tmp_path, RUN)
    writer = JournalWriter(files, head)
    line = lines.encode(lines.Reconcile(1.0, {"x": 1}))
    writer.put(line)
    # What is taken from the queue is not yet on the disk.
    _until(lambda: any(line in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()))
    files.refuses = True
    for _ in range(3):
        writer.put(line)
    _until(lambda: writer.lost >= 3)
    files.refuses = False
    writer.put(line)
    assert writer.close()
    assert read(tmp_path)[1:] == [lines.decode(line), lines.Gap(writer.lost), lines.decode(line)]


def test_a_short_write_is_cut_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = JournalFiles(tmp_path, RUN)
    files.next(b"head\n")
    real = os.write

    def half(descriptor: int, data: memoryview) -> int:
        if len(data) < 6:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space"):
        files.append(b"0123456789\n")
    monkeypatch.undo()
    files.append(b"whole\n")
    files.close()
    assert journals(tmp_path)[0].read_bytes() == b"head\nwhole\n"


def test_a_folder_that_cannot_be_made_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    core = JournalledCore(receipt_capacity=100)
    writer = open_run(tmp_path / "file" / "journal", core, 0.0, JournalInfo())
    core.install(topology(2, "cost"), 0.0)
    assert core.decide(b"one", request(), 1.0).outcome == "go"
    writer.close()
    assert writer.lost


def test_everything_that_a_core_hears_is_written(tmp_path: Path) -> None:
    core = JournalledCore(receipt_capacity=100)
    writer = open_run(tmp_path, core, 0.0, JournalInfo())
    Life(core).live(3_000)
    assert writer.close()
    assert {type(line) for line in read(tmp_path)} == {
        lines.Header,
        lines.Install,
        lines.Decide,
        lines.Release,
        lines.Leave,
        lines.First,
        lines.Finished,
        lines.Reported,
        lines.Observed,
        lines.Cleared,
        lines.Reconcile,
    }


def test_what_the_core_ignores_is_not_written(tmp_path: Path) -> None:
    core = JournalledCore(receipt_capacity=100)
    writer = open_run(tmp_path, core, 0.0, JournalInfo())
    core.install(topology(1, "cost"), 0.0)
    core.decide(b"one", request(), 1.0)
    nan = float("nan")
    assert not core.observed(Telemetry(b"p-0.g1", 1, 1, nan, 0, 0, 0, 0), 2.0)
    assert not core.reported(EngineReport(b"one", b"p-0.g1", 5, 5, 5, nan, float("inf")), 2.0)
    assert not core.first_byte(FirstByte(b"none", b"p-0.g1"), 2.0)
    assert not core.cache_cleared(CacheCleared(b"p-0.g9"), 2.0)
    assert core.first_byte(FirstByte(b"one", b"p-0.g1"), 3.0)
    assert not core.finished(completion(b"none", b"p-0.g1"), 4.0)  # counts: somebody else's request ended
    assert writer.close()
    assert [type(line) for line in read(tmp_path)[2:]] == [lines.Decide, lines.First, lines.Finished]


def test_a_decision_that_fails_is_written_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = JournalledCore(receipt_capacity=100)
    writer = open_run(tmp_path, core, 0.0, JournalInfo())
    core.install(topology(2, "cost"), 0.0)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(type(core._views[b"m"].policy), "choose", fail)
        with pytest.raises(ZeroDivisionError):
            core.decide(b"one", request(), 1.0)
    assert core.decide(b"two", request(), 2.0).outcome == "go"
    assert writer.close()
    failed, good = (line for line in read(tmp_path) if isinstance(line, lines.Decide))
    assert (failed.id, failed.made) == (b"one", lines.Made("failed"))
    assert (good.id, good.made.outcome) == (b"two", "go")


def test_topologies_begin_and_end_journals(tmp_path: Path) -> None:
    journals_kept = Journals(tmp_path)
    core = JournalledCore(receipt_capacity=100, follow=journals_kept.follow)
    plain = topology(2, "cost")
    for number, info in enumerate((None, JournalInfo(), JournalInfo(), None, JournalInfo(0.5), JournalInfo()), 1):
        core.install(WatchedTopology(number, "test", plain.models, plain.replicas, info), float(number))
        core.decide(b"%d" % number, request(), float(number))
        counts = core.journal.counts() if core.journal is not None else None
        assert (counts is None) == (info is None)
        assert counts is None or info is None or counts.share == info.share
    journals_kept.close()
    _until(lambda: len(journals(tmp_path)) == 3)
    first, sampled, last = journals(tmp_path)
    assert b'"from_start":false' in first.read_bytes()
    _until(lambda: first.read_bytes().count(b'"call":"decide"') == 2)
    assert b'"mode":"sampled"' in sampled.read_bytes()
    assert last.read_bytes().count(b'"call":"decide"') == 1


class _Refusing(JournalFiles):
    """A disk that can be full, or stand still."""

    def __init__(self, folder: Path, run: str) -> None:
        super().__init__(folder, run)
        self.refuses = False
        self.moves = threading.Event()
        self.moves.set()

    def append(self, lines: bytes) -> None:
        assert self.moves.wait(10.0)
        if self.refuses:
            raise OSError(28, "No space left on device")
        super().append(lines)


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10.0
    while not done():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)
