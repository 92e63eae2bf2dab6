"""Logs: bounded on disk while their writer knows nothing of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataplane.launchers import LocalLauncher, logs
from tests.dataplane.launchers.programs import python
from tests.dataplane.launchers.waiting import eventually


def test_a_log_within_its_cap_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"x" * 100)
    assert not logs.cap(path, 100)
    assert path.read_bytes() == b"x" * 100
    assert not logs.cap(tmp_path / "absent.log", 100)


def test_the_newest_bytes_are_kept_and_the_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    writer = logs.open_fresh(path)
    os.write(writer, b"old " * 100)
    os.write(writer, b"new " * 25)
    assert logs.cap(path, 100)
    assert path.read_bytes() == b""
    assert logs.previous(path).read_bytes() == b"new " * 25
    os.write(writer, b"next")
    os.close(writer)
    assert path.read_bytes() == b"next"  # no hole: the descriptor appends
    assert logs.previous(path).stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.log", "a.log.1"]


def test_without_room_for_the_copy_the_log_is_cut_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"x" * 200)
    (tmp_path / ".a.log.tmp").mkdir()  # the copy cannot be made
    logs.previous(path).write_bytes(b"older")
    with pytest.raises(OSError):
        (tmp_path / ".a.log.tmp").open("wb")
    assert logs.cap(path, 100)
    assert path.read_bytes() == b""


def test_the_log_before_is_kept_once_and_an_empty_one_never(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    for text in (b"1", b"2", b""):
        descriptor = logs.open_fresh(path)
        os.write(descriptor, text)
        os.close(descriptor)
    os.close(logs.open_fresh(path))
    assert logs.previous(path).read_bytes() == b"2"


def test_the_tail_is_the_last_lines_that_say_something(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    assert logs.tail(path, 20) == []
    path.write_bytes(b"".join(b"line %d\n\n" % i for i in range(100)) + b"\xff bad " + b"y" * 2000)
    lines = logs.tail(path, 20)
    assert lines[:2] == ["line 81", "line 82"]
    assert len(lines) == 20
    assert len(lines[-1]) == logs.MAX_LINE_CHARS
    path.write_bytes(b"z" * 100_000 + b"\nlast\n")
    assert logs.tail(path, 20) == ["last"]


async def test_a_launcher_caps_the_logs_of_what_it_runs(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "CAP_INTERVAL_S", 0.02)
    monkeypatch.setattr(logs.cap, "__defaults__", (1000,))
    source = "import time\nwhile True: print('x' * 99, flush=True); time.sleep(0.002)"
    process = await launcher.start(python("a-0", source))
    await eventually(lambda: logs.previous(process.log).exists())
    first = logs.previous(process.log).stat().st_ino
    await eventually(lambda: logs.previous(process.log).stat().st_ino != first)
    assert process.alive
