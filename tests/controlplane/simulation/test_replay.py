from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from controlplane.errors import NotFound
from controlplane.router import journal_lines as lines
from controlplane.router.journal import JournalledCore
from controlplane.router.journal_files import FILE_BYTES_RANGE, journals
from controlplane.router.journal_run import open_run
from controlplane.router.journal_settings import JournalInfo
from controlplane.routing.policies.registry import POLICIES
from controlplane.simulation.replay import Replay, replay
from controlplane.simulation.replay_read import BrokenJournal, find, read
from tests.controlplane.simulation.lived import START_S, Life

DECISIONS = 10_000

#: Lives so long, writes a journal of it and prints what a replay in the same process comes to.
ANOTHER_PROCESS = """
import sys
from pathlib import Path
from tests.controlplane.simulation.test_replay import write, replayed
write(Path(sys.argv[1]), int(sys.argv[2]))
print(replayed(Path(sys.argv[1])).digest)
"""


#: The same for each policy there is, with few decisions.
EVERY_POLICY = """
import sys
from pathlib import Path
from controlplane.routing.policies.registry import POLICIES
from tests.controlplane.simulation.test_replay import write, replayed
for policy in sorted(POLICIES):
    folder = Path(sys.argv[1]) / policy
    write(folder, 800, policies={"chat": policy, "code": policy})
    result = replayed(folder)
    print(policy, result.different, result.digest)
"""


def write(folder: Path, decisions: int, share: float = 1.0, policies: dict[str, str] | None = None) -> JournalledCore:
    core = JournalledCore(receipt_capacity=1_000)
    writer = open_run(folder, core, START_S, JournalInfo(share))
    Life(core, policies=policies).live(decisions)
    assert writer.close()
    assert not writer.dropped
    assert not writer.lost
    return core


def replayed(path: Path) -> Replay:
    return replay(read(find(path)))


@pytest.fixture(scope="module")
def long_journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    write(folder, DECISIONS)
    return folder


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    write(tmp_path, 300)
    return journals(tmp_path)[0]


def rewrite(path: Path, change: Callable[[lines.AnyLine], lines.AnyLine]) -> None:
    """Change each line of a journal."""
    changed = [lines.encode(change(lines.decode(line))) for line in path.read_bytes().splitlines()]
    path.write_bytes(b"".join(line + b"\n" for line in changed))


def test_ten_thousand_decisions_come_out_to_the_bit(long_journal: Path) -> None:
    recorded = read(find(long_journal))
    assert recorded.exact
    result = replay(recorded)
    assert (result.decisions, result.different, result.first) == (DECISIONS, 0, None)
    weighed = [line.made for line in decided(long_journal) if line.made.candidates]
    assert len(weighed) > 0.6 * DECISIONS
    assert len({line.reason for line in weighed}) >= 6
    assert {"go", "wait", "shed", "error", "more"} <= {line.made.outcome for line in decided(long_journal)}
    assert sum(len(line.candidates) > 1 and len(line.scores) > 1 for line in weighed) > 0.5 * DECISIONS


def decided(folder: Path) -> list[lines.Decide]:
    found = [lines.decode(line) for path in journals(folder) for line in path.read_bytes().splitlines()]
    return [line for line in found if isinstance(line, lines.Decide)]


def test_recorded_decisions_are_not_read_to_make_them_again(long_journal: Path, tmp_path: Path) -> None:
    pick = random.Random(5)

    def corrupt(line: lines.AnyLine) -> lines.AnyLine:
        if not isinstance(line, lines.Decide):
            return line
        nonsense = lines.Made(
            outcome="shed",
            server=f"nobody-{pick.randrange(9)}.g1",
            error="overloaded",
            reason=99,
            candidates=[f"nobody-{pick.randrange(9)}.g1"],
            scores=[pick.random()],
            terms=[pick.random()],
        )
        return msgspec.structs.replace(line, made=nonsense)

    (original,) = journals(long_journal)
    corrupted = tmp_path / original.name
    corrupted.write_bytes(original.read_bytes())
    rewrite(corrupted, corrupt)
    result = replayed(corrupted)
    assert result.different == result.different_choices == DECISIONS
    assert result.digest == replayed(original).digest


def test_processes_with_other_hash_seeds_decide_the_same(long_journal: Path, tmp_path: Path) -> None:
    digests = {replayed(long_journal).digest}
    calls = {b"".join(path.read_bytes().partition(b"\n")[2] for path in journals(long_journal))}
    for seed in ("1", "4711"):
        folder = tmp_path / seed
        ran = subprocess.run(
            [sys.executable, "-c", ANOTHER_PROCESS, str(folder), str(DECISIONS)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(ran.stdout.strip())
        calls.add(journals(folder)[0].read_bytes().partition(b"\n")[2])
    assert len(digests) == len(calls) == 1


def test_every_policy_comes_out_again_whatever_the_hash_seed(tmp_path: Path) -> None:
    told = set()
    for seed in ("2", "99"):
        (tmp_path / seed).mkdir()
        ran = subprocess.run(
            [sys.executable, "-c", EVERY_POLICY, str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        told.add(ran.stdout)
    (only,) = told
    lines_told = [line.split() for line in only.splitlines()]
    assert [line[0] for line in lines_told] == sorted(POLICIES)
    assert {line[1] for line in lines_told} == {"0"}
    assert len({line[2] for line in lines_told}) == len(POLICIES)


def test_the_first_difference_is_named(journal: Path) -> None:
    numbers = [n for n, line in enumerate(journal.read_bytes().splitlines(), 1) if b'"outcome":"go"' in line]
    chosen = lines.decode(journal.read_bytes().splitlines()[numbers[20] - 1])
    assert isinstance(chosen, lines.Decide)

    def change(line: lines.AnyLine) -> lines.AnyLine:
        if line != chosen:
            return line
        return msgspec.structs.replace(chosen, made=msgspec.structs.replace(chosen.made, server="chat-9.g9"))

    rewrite(journal, change)
    result = replayed(journal)
    assert (result.different, result.different_choices) == (1, 1)
    assert result.first is not None
    assert result.first.place == f"{journal.name}:{numbers[20]}"
    assert result.first.request_id == chosen.id
    assert result.first.parts == {"server": ("chat-9.g9", chosen.made.server)}


def test_one_event_left_out_is_noticed(journal: Path) -> None:
    kept = journal.read_bytes().splitlines(keepends=True)
    at = next(n for n, line in enumerate(kept) if b'"call":"finished"' in line)
    journal.write_bytes(b"".join(kept[:at] + kept[at + 1 :]))
    assert replayed(journal).different


@pytest.mark.parametrize(
    ("number", "line", "expected"),
    [
        (1, b"{}", "line 1: expected a line of the journal"),
        (1, b'{"call":"reconcile","at":1.0,"streams":{}}', "line 1: expected a journal's header"),
        (40, b"{", "line 40: expected one JSON object"),
        (40, b"\xff\xfe", "line 40: expected one JSON object"),
        (40, b"", "line 40: expected one JSON object"),
        (40, b'{"call":"first_byte","at":"soon","event":["",""]}', "line 40: expected .*`float`.*at"),
        (40, b'{"call":"dance"}', "line 40: expected .*dance"),
        (40, b'{"call":"gap","lines":1,"why":"x"}', "line 40: expected .*why"),
        (
            41,
            b'{"call":"topology","at":1.0,"topology":{"number":1,"cluster":"c"}}',
            "line 41: expected a topology only",
        ),
    ],
)
def test_a_broken_line_is_named_and_nothing_runs(journal: Path, number: int, line: bytes, expected: str) -> None:
    whole = journal.read_bytes().splitlines()
    whole[number - 1] = line
    journal.write_bytes(b"\n".join(whole) + b"\n")
    with pytest.raises(BrokenJournal, match=expected):
        read(find(journal))


def test_a_journal_of_another_version_is_refused(journal: Path) -> None:
    whole = journal.read_bytes()
    journal.write_bytes(whole.replace(b'"version":1', b'"version":2', 1))
    with pytest.raises(BrokenJournal, match="line 1: expected a journal of version 1, not 2"):
        read(find(journal))


def test_a_sampled_journal_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 200, share=0.5)
    with pytest.raises(BrokenJournal, match="expected a full journal: a sampled one holds receipts"):
        read(find(tmp_path))


def test_a_line_that_a_crash_cut_off_is_left_out(journal: Path) -> None:
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-10])
    recorded = read(find(journal))
    assert recorded.cut
    assert replay(recorded).identical


def test_files_of_a_run_are_one_journal_and_a_later_one_starts_cold(tmp_path: Path) -> None:
    core = JournalledCore(receipt_capacity=1_000)
    writer = open_run(tmp_path, core, START_S, JournalInfo(file_bytes=FILE_BYTES_RANGE[0]))
    Life(core).live(DECISIONS // 2)
    assert writer.close()
    first, second, *_ = journals(tmp_path)
    whole = read(find(first))
    assert whole.paths == tuple(journals(tmp_path))
    assert whole.exact
    assert replay(whole).identical
    assert replay(read(find(tmp_path))).decisions == DECISIONS // 2
    late = read(find(second))
    assert not late.exact
    assert late.start.file == 2
    assert {model for model, _, _ in late.policies} == {"chat", "code", "mail", "dice"}
    cold = replay(late)
    assert cold.decisions == late.decisions < DECISIONS // 2


def split(folder: Path) -> None:
    """Make two files of one, as the rotation does."""
    (path,) = journals(folder)
    found = path.read_bytes().splitlines()
    middle = len(found) // 2
    installs = [line for line in found[:middle] if line.startswith(lines.INSTALL_START)]
    header = lines.decode(found[0])
    assert isinstance(header, lines.Header)
    second = [
        lines.encode(msgspec.structs.replace(header, file=2)),
        lines.IN_FORCE_START + installs[-1][len(lines.INSTALL_START) :],
        *found[middle:],
    ]
    path.write_bytes(b"\n".join(found[:middle]) + b"\n")
    path.with_name(path.name.replace("-000001.", "-000002.")).write_bytes(b"\n".join(second) + b"\n")


def test_a_missing_file_in_the_middle_is_named(tmp_path: Path) -> None:
    write(tmp_path, 300)
    split(tmp_path)
    _, second = journals(tmp_path)
    second.rename(second.with_name(second.name.replace("-000002.", "-000003.")))
    renumbered = journals(tmp_path)[1]
    rewrite(renumbered, lambda line: msgspec.structs.replace(line, file=3) if isinstance(line, lines.Header) else line)
    with pytest.raises(BrokenJournal, match="expected file 2 of the run"):
        read(find(tmp_path))


def test_a_gap_makes_a_journal_inexact(journal: Path) -> None:
    whole = journal.read_bytes().splitlines()
    whole[100:103] = [lines.encode(lines.Gap(3))]
    journal.write_bytes(b"\n".join(whole) + b"\n")
    recorded = read(find(journal))
    assert (recorded.gaps, recorded.exact) == (3, False)
    replay(recorded)


def test_a_policy_that_this_version_does_not_have_is_named(journal: Path) -> None:
    def change(line: lines.AnyLine) -> lines.AnyLine:
        if not isinstance(line, lines.Install):
            return line
        models = tuple(replace(model, policy="astrology") for model in line.topology.models)
        return msgspec.structs.replace(line, topology=replace(line.topology, models=models))

    rewrite(journal, change)
    with pytest.raises(BrokenJournal, match=r":2: expected a topology .* unknown policy 'astrology'"):
        replayed(journal)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no journal"):
        find(tmp_path)
    with pytest.raises(NotFound, match="no journal"):
        find(tmp_path / "none.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"")
    with pytest.raises(BrokenJournal, match="empty file"):
        read(find(empty))
