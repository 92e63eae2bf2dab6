"""Ending everything, and being the one that orphans come to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from dataplane.launchers import LocalLauncher, procfs
from dataplane.launchers.environment import base_environment
from dataplane.launchers.leftovers import end_all
from dataplane.launchers.records import Records
from dataplane.state_dir import StateDir
from tests.dataplane.launchers.programs import DEAF, PARENT, python
from tests.dataplane.launchers.waiting import eventually

#: Says when it was told to end, in the order in which that happened.
POLITE = (
    "import signal, sys, time\n"
    "def end(*_):\n    open(sys.argv[1], 'a').write(sys.argv[2] + '\\n'); sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, end)\nprint('up', flush=True)\nwhile True: time.sleep(600)"
)

SUPERVISOR = """
import asyncio, json, os, signal, subprocess, sys, time
from pathlib import Path
from dataplane.launchers import LocalLauncher, ProcessSpec, procfs
from dataplane.launchers.leftovers import end_all
from dataplane.launchers.subreaper import become_subreaper, reap_orphans
from dataplane.state_dir import StateDir

AGENT = '''
import asyncio, os, sys
from pathlib import Path
from dataplane.launchers import LocalLauncher, ProcessSpec
from dataplane.state_dir import StateDir
async def main():
    launcher = LocalLauncher(StateDir(Path(sys.argv[1])))
    await launcher.start(ProcessSpec("a-0", "replica", ("sleep", "600")))
    os.kill(os.getpid(), 9)
asyncio.run(main())
'''

async def main():
    state = StateDir(Path(sys.argv[1]))
    become_subreaper()
    own = subprocess.Popen(["sleep", "600"])
    subprocess.run([sys.executable, "-c", AGENT, sys.argv[1]])
    (record,) = json.loads((state.processes / "a-0.json").read_text()),
    parent = procfs.stat(record["pid"]).parent
    ended = await end_all(state, 5.0)
    reaped = reap_orphans({own.pid})
    own.kill()
    os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
    kept = reap_orphans({own.pid})
    print(json.dumps({"own_child": parent == os.getpid(), "ended": ended, "reaped": reaped, "pid": record["pid"],
                      "kept": kept, "code": own.wait()}))
asyncio.run(main())
"""


async def test_everything_with_a_record_is_ended_the_gateway_before_the_engines(
    launcher: LocalLauncher, state: StateDir
) -> None:
    told = state.root / "told"
    names = {"b-0": "replica", "a-0": "replica", "router": "router", "haproxy": "haproxy", "node": "node"}
    processes = []
    for name, role in names.items():
        spec = python(name, POLITE, role=role)
        processes.append(await launcher.start(type(spec)(name, role, (*spec.argv, str(told), role))))
    await eventually(lambda: all("up" in process.log.read_text() for process in processes))
    stranger = subprocess.Popen(["sleep", "600"])
    dead = await launcher.start(python("c-0", ""))
    await dead.exited
    try:
        assert sorted(await end_all(state, 10.0)) == sorted(names)
        assert told.read_text().split() == ["node", "haproxy", "replica", "replica", "router"]
        assert Records(state).all() == []
        assert stranger.poll() is None
        assert await end_all(state, 10.0) == []
    finally:
        stranger.kill()
        stranger.wait()


async def test_what_does_not_listen_is_killed_with_all_of_its_session(launcher: LocalLauncher, state: StateDir) -> None:
    deaf = await launcher.start(python("a-0", DEAF))
    parent = await launcher.start(python("b-0", PARENT))
    await eventually(lambda: "up" in deaf.log.read_text() and "\n" in parent.log.read_text())
    worker = int(parent.log.read_text().split()[1])
    assert sorted(await end_all(state, 0.1)) == ["a-0", "b-0"]
    assert await deaf.exited == -signal.SIGKILL
    left = procfs.stat(worker)
    assert left is None or left.dead


def test_orphans_come_to_the_subreaper_which_takes_nobody_elses_child(state: StateDir) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SUPERVISOR, str(state.root)], stdout=subprocess.PIPE, check=True, timeout=60
    )
    told = json.loads(ran.stdout)
    assert told["own_child"]
    assert told["ended"] == ["a-0"]
    assert told["reaped"] == [[told["pid"], -signal.SIGTERM]]
    assert told["kept"] == []
    assert told["code"] == -signal.SIGKILL


def test_the_base_environment_holds_no_secret() -> None:
    source = {"PATH": "/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "all"}
    secret = {
        "HF_TOKEN": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "SLIPSTREAM_SECRET": "x",
        "PYTHONPATH": "x",
        "https_proxy": "x",
    }
    assert base_environment(source | secret) == source
    assert "PATH" in base_environment(os.environ)
