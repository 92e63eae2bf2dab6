"""An agent as a process of its own, a controller, and a state directory in which nothing is left running."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dataplane.launchers import procfs
from dataplane.launchers.leftovers import end_all
from dataplane.launchers.records import Records
from dataplane.state_dir import StateDir
from tests.dataplane.node import engine_script
from tests.dataplane.node.controller import Controller


class Agent:
    """``python -m dataplane.node``, started and killed at will."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        argv = [sys.executable, "-m", "dataplane.node", "--state-dir", str(self.state.root), "--name", "local"]
        with (self.state.root / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)

    def end(self, number: signal.Signals) -> int:
        """Signal the agent and return its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the agent's end and return its exit code."""
        assert self._process is not None
        code = self._process.wait(30)
        self._process = None
        return code

    @property
    def log(self) -> str:
        return (self.state.root / "agent.log").read_text()

    @property
    def runs(self) -> bool:
        return self._process is not None


@pytest.fixture
async def state() -> AsyncIterator[StateDir]:
    made = StateDir(Path(tempfile.mkdtemp(prefix="sl")))  # pytest's own folders are too long for unix sockets
    made.create()
    yield made
    pids = [record.pid for record in Records(made).all() if record.lives()]
    await end_all(made, 0.0)
    left = [pid for pid in pids if (found := procfs.stat(pid)) is not None and not found.dead]
    sessions = [p.pid for p in procfs.every() if p.session in pids and not p.dead]
    shutil.rmtree(made.root)
    assert left + sessions == []


@pytest.fixture
async def controller(state: StateDir) -> AsyncIterator[Controller]:
    made = Controller(state)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def agent(state: StateDir) -> AsyncIterator[Agent]:
    made = Agent(state)
    made.start()
    yield made
    if made.runs:
        await asyncio.to_thread(made.end, signal.SIGTERM)
    sys.stdout.write(made.log)  # shown when the test fails


@pytest.fixture
def program(state: StateDir) -> str:
    return engine_script.write(state.root)
