"""Real processes: start, end, adopt, stop, and what they leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dataplane.errors import InvalidName
from dataplane.launchers import LaunchError, LocalLauncher, ProcessSpec, RunningProcess, procfs
from dataplane.launchers.records import Records
from dataplane.state_dir import StateDir
from tests.dataplane.launchers.programs import DEAF, PARENT, SHOW, SLEEPER, python
from tests.dataplane.launchers.waiting import eventually


def said(process: RunningProcess, word: str) -> bool:
    return word in process.log.read_text()


def gone(pid: int) -> bool:
    found = procfs.stat(pid)
    return found is None or found.dead


def worker_of(process: RunningProcess) -> int:
    return int(process.log.read_text().split()[1])


async def test_a_process_gets_its_own_session_and_only_what_it_is_given(
    launcher: LocalLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_SECRET", "canary")
    inherited = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    process = await launcher.start(replace(python("a-0", SHOW), env={"MINE": "1"}))
    assert await process.exited == 0
    shown = json.loads(process.log.read_text())
    os.close(inherited)
    assert shown["sid"] == process.pid
    assert shown["env"]["MINE"] == "1"
    assert shown["env"]["PATH"] == os.environ["PATH"]
    assert "SOME_SECRET" not in shown["env"]
    assert len(shown["fds"]) == 4  # its three and the one that lists them
    assert process.log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("source", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9), ("", 0)]
)
async def test_the_exit_code_is_told(launcher: LocalLauncher, source: str, code: int) -> None:
    process = await launcher.start(python("a-0", source))
    assert await process.exited == code


async def test_a_program_that_is_not_there_exits_with_127(launcher: LocalLauncher) -> None:
    process = await launcher.start(ProcessSpec("a-0", "replica", ("/nonexistent/engine", "--port", "1")))
    assert await process.exited == 127
    assert said(process, "/nonexistent/engine")


async def test_a_second_process_of_a_living_name_is_refused(launcher: LocalLauncher, state: StateDir) -> None:
    first = await launcher.start(python("a-0", SLEEPER))
    for other in (launcher, LocalLauncher(state)):
        with pytest.raises(LaunchError, match=f"already runs as pid {first.pid}"):
            await other.start(python("a-0", SLEEPER))
    assert first.alive


async def test_stop_ends_the_process_and_forgets_it(launcher: LocalLauncher, state: StateDir) -> None:
    process = await launcher.start(python("a-0", SLEEPER))
    await eventually(lambda: said(process, "up"))
    await asyncio.gather(launcher.stop(process, 10.0), launcher.stop(process, 10.0))
    assert process.exited.result() == -signal.SIGTERM
    assert gone(process.pid)
    assert Records(state).all() == []
    await launcher.stop(process, 10.0)


async def test_a_deaf_process_is_killed_after_its_grace(launcher: LocalLauncher) -> None:
    process = await launcher.start(python("a-0", DEAF))
    await eventually(lambda: said(process, "up"))
    await launcher.stop(process, 0.1)
    assert process.exited.result() == -signal.SIGKILL


@pytest.mark.parametrize("end", ["stop", "crash"])
async def test_nothing_of_a_session_outlives_its_leader(launcher: LocalLauncher, end: str) -> None:
    process = await launcher.start(python("a-0", PARENT))
    await eventually(lambda: said(process, "\n"))
    worker = worker_of(process)
    assert not gone(worker)
    if end == "stop":
        await launcher.stop(process, 10.0)
    else:
        os.kill(process.pid, signal.SIGKILL)
        assert await process.exited == -signal.SIGKILL
    await eventually(lambda: gone(worker))
    await eventually(lambda: procfs.stat(process.pid) is None)  # reaped, no zombie


async def test_the_next_start_waits_until_the_session_before_is_gone(launcher: LocalLauncher) -> None:
    first = await launcher.start(python("a-0", PARENT))
    await eventually(lambda: said(first, "\n"))
    worker = worker_of(first)
    os.kill(first.pid, signal.SIGKILL)
    await first.exited
    second = await launcher.start(python("a-0", SLEEPER))
    assert gone(worker)
    assert second.pid != first.pid
    assert "worker" in Path(f"{second.log}.1").read_text()  # the log before is kept


async def test_another_launcher_adopts_without_touching(launcher: LocalLauncher, state: StateDir) -> None:
    process = await launcher.start(python("a-0", SLEEPER, server="a-0.g7", generation="7", port="8000"))
    other = LocalLauncher(state, roles=("replica",))
    await launcher.start(python("router", SLEEPER, role="router"))
    (adopted,) = await other.adopt()
    assert (adopted.pid, adopted.start_ticks, adopted.log) == (process.pid, process.start_ticks, process.log)
    assert adopted.labels == {"server": "a-0.g7", "generation": "7", "port": "8000"}
    assert adopted.started_unix_ms == process.started_unix_ms
    assert await other.adopt() == [adopted]
    await other.stop(adopted, 10.0)
    assert adopted.exited.result() is None  # it is not a child of that launcher
    assert await process.exited == -signal.SIGTERM
    other.close()


async def test_a_closed_launcher_lets_its_processes_run(launcher: LocalLauncher, state: StateDir) -> None:
    first = LocalLauncher(state)
    process = await first.start(python("a-0", SLEEPER))
    first.close()
    assert not gone(process.pid)
    assert [p.pid for p in await launcher.adopt()] == [process.pid]


async def test_a_reused_pid_is_neither_adopted_nor_signalled(launcher: LocalLauncher, state: StateDir) -> None:
    stranger = subprocess.Popen([sys.executable, "-S", "-c", PARENT], start_new_session=True, stdout=subprocess.PIPE)
    try:
        assert stranger.stdout is not None
        worker = int(stranger.stdout.readline().split()[1])
        ours = await launcher.start(python("a-0", ""))
        await ours.exited
        record = Records(state).read("a-0")
        assert record is not None
        # What is left when our process ended while no agent was there, and a stranger was given its pid.
        Records(state).write(replace(record, name="b-0", pid=stranger.pid))
        assert [p.name for p in await launcher.adopt()] == []
        assert stranger.poll() is None
        assert not gone(worker)
    finally:
        os.killpg(stranger.pid, signal.SIGKILL)
        stranger.communicate()


async def test_a_record_of_another_boot_is_stale(launcher: LocalLauncher, state: StateDir) -> None:
    process = await launcher.start(python("a-0", SLEEPER))
    record = Records(state).read("a-0")
    assert record is not None
    assert record.lives()
    assert not replace(record, boot_id="another").lives()
    Records(state).write(replace(record, boot_id="another"))
    other = LocalLauncher(state)
    assert await other.adopt() == []
    Records(state).write(record)
    assert process.alive


async def test_workers_of_an_engine_that_died_alone_are_killed_on_adoption(
    launcher: LocalLauncher, state: StateDir
) -> None:
    first = LocalLauncher(state)
    process = await first.start(python("a-0", PARENT))
    await eventually(lambda: said(process, "\n"))
    worker = worker_of(process)
    first.close()  # nobody watches now
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    assert not gone(worker)
    assert await launcher.adopt() == []
    assert gone(worker)


async def test_without_room_for_the_record_nothing_runs(
    launcher: LocalLauncher, state: StateDir, tmp_path: Path
) -> None:
    witness = tmp_path / "ran"
    state.processes.rename(state.root / "elsewhere")  # fails as a full disk does: an OSError while writing
    with pytest.raises(LaunchError, match="cannot be started"):
        await launcher.start(python("a-0", f"open({str(witness)!r}, 'w')"))
    (state.root / "elsewhere").rename(state.processes)
    process = await launcher.start(python("a-0", ""))
    assert await process.exited == 0
    assert not witness.exists()
    assert not [p for p in procfs.every() if p.parent == os.getpid() and p.session == p.pid and not p.dead]


@pytest.mark.parametrize("name", ["", "../a", "a/b", "a\n", ".a", "A", "a" * 121])
def test_a_name_that_cannot_be_a_file_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        ProcessSpec(name, "replica", ("true",))


async def test_the_starter_can_die_at_any_moment(state: StateDir, launcher: LocalLauncher) -> None:
    """Killed between the fork and the record: the child sees its gate close and never runs its program."""
    source = (
        "import os, signal, sys\nfrom dataplane.launchers.spawn import spawn\n"
        "def record(pid):\n    print(pid, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "log = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n"
        "spawn((sys.executable, '-S', '-c', 'print(1)'), {}, log, record)\n"
    )
    log = state.logs / "x.log"
    starter = subprocess.run([sys.executable, "-c", source, str(log)], stdout=subprocess.PIPE, check=False)
    assert starter.returncode == -signal.SIGKILL
    await eventually(lambda: gone(int(starter.stdout)))
    assert log.read_text() == ""
