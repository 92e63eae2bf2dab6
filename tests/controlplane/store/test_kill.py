"""kill -9 at every statement and at random times: what was acknowledged is there, and nothing is half there."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controlplane.store.sqlite import SqliteStore

ROOT = Path(__file__).parents[3]
RANDOM_KILLS = 12
#: Statements of one round of the writer, transactions included, with some from the next.
STATEMENTS = range(1, 46, 2)


class Acknowledged:
    """The highest numbers that the writer was told are written; numbers may not repeat."""

    def __init__(self) -> None:
        self.highest = {"generation": 0, "topology": 0, "revision": 0}

    def read(self, output: str) -> None:
        for line in output.splitlines():
            words = line.split()
            if len(words) != 2 or (not output.endswith("\n") and line == output.splitlines()[-1]):
                continue
            what, number = words[0], int(words[1])
            assert number > self.highest[what], f"{what} {number} was given before"
            self.highest[what] = number


def _run(path: Path, die_at: int, seconds: float) -> str:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.controlplane.store.writer", str(path), str(die_at)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    if not die_at:
        assert child.stdout is not None
        first = child.stdout.readline()  # it writes now
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.001)
        child.kill()
        return first + child.communicate()[0]
    try:
        return child.communicate(timeout=20)[0]
    finally:
        child.kill()


async def _check(path: Path, acknowledged: Acknowledged) -> None:
    store = SqliteStore(path)
    contents = await store.open()
    try:
        assert contents.generation >= acknowledged.highest["generation"]
        assert contents.generation % 2 == 0
        generations = [record.generation for record in contents.records]
        assert generations == ([contents.generation - 1, contents.generation] if contents.generation else [])
        assert [e.message for e in contents.events[-1:]] == ([str(contents.generation)] if contents.generation else [])
        revision = contents.revision.number if contents.revision else 0
        assert revision >= acknowledged.highest["revision"]
        reserved = await store.reserve("topology", 1)
        assert reserved > acknowledged.highest["topology"]
        acknowledged.highest["topology"] = reserved
    finally:
        await store.close()


@pytest.mark.timeout(100)
async def test_killed_at_random_times(tmp_path: Path) -> None:
    acknowledged, seeded = Acknowledged(), random.Random(7)
    path = tmp_path / "slipstream.db"
    for _ in range(RANDOM_KILLS):
        acknowledged.read(_run(path, 0, seeded.uniform(0, 0.05)))
        await _check(path, acknowledged)
    assert acknowledged.highest["generation"] > RANDOM_KILLS


@pytest.mark.timeout(100)
async def test_killed_at_every_other_statement(tmp_path: Path) -> None:
    acknowledged = Acknowledged()
    path = tmp_path / "slipstream.db"
    for statement in STATEMENTS:
        acknowledged.read(_run(path, statement, 0))
        await _check(path, acknowledged)
    assert acknowledged.highest["generation"] > 0
