"""A state directory and a launcher whose processes are all ended with the test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dataplane.launchers import LocalLauncher
from dataplane.launchers.leftovers import end_all
from dataplane.state_dir import StateDir


@pytest.fixture
def state() -> Iterator[StateDir]:
    root = Path(tempfile.mkdtemp(prefix="sl"))  # pytest's own folders are too long for unix sockets
    made = StateDir(root)
    made.create()
    yield made
    shutil.rmtree(root)


@pytest.fixture
async def launcher(state: StateDir) -> AsyncIterator[LocalLauncher]:
    made = LocalLauncher(state)
    yield made
    made.close()
    await end_all(state, 0.0)
