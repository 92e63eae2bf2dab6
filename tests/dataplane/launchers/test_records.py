"""Records: whole or not at all, and never taken for another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.launchers import procfs
from dataplane.launchers.records import MAX_RECORD_BYTES, ProcessRecord, Records
from dataplane.state_dir import StateDir


def record(name: str = "a-0", **fields: object) -> ProcessRecord:
    own = procfs.stat(os.getpid())
    assert own is not None
    known: dict[str, object] = {
        "name": name,
        "role": "replica",
        "pid": own.pid,
        "start_ticks": own.start_ticks,
        "argv": ("python", "-m", "x"),
        "log": "/tmp/a.log",
        "started_unix_ms": 1,
        "labels": {"server": "a-0.g1"},
        "boot_id": procfs.boot_id(),
    }
    return ProcessRecord(**(known | fields))  # type: ignore[arg-type]


def test_what_is_written_is_read(state: StateDir) -> None:
    records = Records(state)
    records.write(record())
    assert records.read("a-0") == record()
    assert records.all() == [record()]
    path = state.processes / "a-0.json"
    assert path.stat().st_mode & 0o777 == 0o600
    named = {"name", "role", "pid", "start_ticks", "argv", "log", "started_unix_ms", "labels", "boot_id"}
    assert json.loads(path.read_text()).keys() == named


def test_only_the_record_of_this_very_process_is_removed(state: StateDir) -> None:
    records = Records(state)
    records.write(record())
    records.remove("a-0", os.getpid(), 1)
    assert records.read("a-0") is not None
    records.remove("a-0", record().pid, record().start_ticks)
    assert records.read("a-0") is None
    records.remove("a-0", record().pid, record().start_ticks)


def test_a_process_lives_only_with_the_same_pid_start_and_boot() -> None:
    assert record().lives()
    assert record(boot_id="").lives()
    assert not record(start_ticks=1).lives()
    assert not record(boot_id="another").lives()
    assert not record(pid=2**22 + 1).lives()


def test_an_ended_child_that_is_not_reaped_does_not_live() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    found = procfs.stat(child.pid)
    assert found is not None
    assert not record(pid=child.pid, start_ticks=found.start_ticks).lives()
    child.wait()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'{"name": "a-0"}',
        b"\xff\xfe",
        b'{"name":"b","role":"r","pid":5,"start_ticks":1,"argv":[],"log":"","started_unix_ms":1,"labels":{}}',
        b'{"name":"a-0","role":"r","pid":1,"start_ticks":1,"argv":[],"log":"","started_unix_ms":1,"labels":{}}',
        b" " * (MAX_RECORD_BYTES + 1),
    ],
)
def test_a_file_that_is_no_record_is_left_alone(state: StateDir, data: bytes) -> None:
    (state.processes / "a-0.json").write_bytes(data)
    (state.processes / "notes.txt").write_text("not ours")
    records = Records(state)
    records.write(record("c-0"))
    assert records.read("a-0") is None
    assert [r.name for r in records.all()] == ["c-0"]
    assert (state.processes / "a-0.json").read_bytes() == data


def test_a_disk_without_room_keeps_the_old_record(state: StateDir) -> None:
    """The limit on file sizes makes the kernel refuse the write half way, as a full disk does, without root."""
    source = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from dataplane.launchers.atomic import write_atomically\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try: write_atomically(Path(sys.argv[1]), b'x' * 101)\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    Records(state).write(record())
    path = state.processes / "a-0.json"
    ran = subprocess.run([sys.executable, "-c", source, str(path)], stdout=subprocess.PIPE, check=True, text=True)
    assert ran.stdout == "OSError\n"
    assert Records(state).read("a-0") == record()
    assert [p.name for p in state.processes.iterdir()] == ["a-0.json"]


@given(st.text(max_size=40), st.integers(0, 2**40), st.sampled_from("RSDZTtXxKWPI"))
@settings(max_examples=200, derandomize=True)
def test_a_stat_line_is_read_whatever_the_command_is_called(command: str, ticks: int, letter: str) -> None:
    fields = [letter, "11", "12", "13", *["0"] * 15, str(ticks), "0"]
    found = procfs.parse_stat(f"77 ({command}) {' '.join(fields)}\n")
    assert (found.pid, found.state, found.parent, found.session, found.start_ticks) == (77, letter, 11, 13, ticks)


def test_own_stat_is_true() -> None:
    own = procfs.stat(os.getpid())
    assert own is not None
    assert (own.parent, own.session, own.dead) == (os.getppid(), os.getsid(0), False)
    assert procfs.stat(2**22 + 1) is None
    assert [p.start_ticks for p in procfs.every() if p.pid == own.pid] == [own.start_ticks]


def test_whether_a_process_writes_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    with path.open("ab") as file:
        child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=file)
    try:
        assert procfs.writes_to(child.pid, path)
        assert not procfs.writes_to(child.pid, Path("/dev/zero"))
    finally:
        child.kill()
        child.wait()
    assert not procfs.writes_to(child.pid, path)
