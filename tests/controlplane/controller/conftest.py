from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from grpc import aio

from controlplane.controller.process import Controller
from controlplane.spec import Cluster, to_json
from controlplane.store.sqlite import SqliteStore
from dataplane.pb import admin_pb2_grpc
from dataplane.state_dir import StateDir
from tests.controlplane.controller.agent import Agent


def cluster(replicas: int = 2, **changes: object) -> Cluster:
    """A small cluster as its validated spec; ``changes`` replace top-level keys."""
    pool: dict[str, object] = {"name": "tiny-mixed", "replicas": replicas, "engine": {"kind": "simulated"}}
    spec: dict[str, object] = {
        "cluster": "test",
        "nodes": [{"name": "local", "ports": "21000-21019"}],
        "models": [{"name": "tiny", "pools": [pool]}],
    }
    return Cluster.model_validate(spec | changes)


def spec_json(replicas: int = 2, **changes: object) -> str:
    return to_json(cluster(replicas, **changes))


class Bench:
    """One controller in this loop, and what is needed to talk to it."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self.controller: Controller | None = None
        self.agents: list[Agent] = []
        self._channels: list[aio.Channel] = []

    async def start(self, clock: Callable[[], float] | None = None) -> Controller:
        store = SqliteStore(self.state.database)
        self.controller = Controller(self.state, store, clock) if clock else Controller(self.state, store)
        await self.controller.start()
        return self.controller

    async def stop(self) -> None:
        if self.controller is not None:
            await self.controller.stop()
            self.controller = None

    def agent(self, name: str = "local", **settings: object) -> Agent:
        made = Agent(self.state.controller_socket, name, **settings)  # type: ignore[arg-type]
        self.agents.append(made)
        made.connect()
        return made

    def channel(self) -> aio.Channel:
        channel = aio.insecure_channel(f"unix:{self.state.controller_socket}")
        self._channels.append(channel)
        return channel

    def admin(self) -> admin_pb2_grpc.AdminServiceAsyncStub:
        return admin_pb2_grpc.AdminServiceStub(self.channel())

    async def close(self) -> None:
        for agent in self.agents:
            await agent.disconnect()
        for channel in self._channels:
            await channel.close()
        await self.stop()


@pytest.fixture
def state() -> Iterator[StateDir]:
    # A unix socket's path is short: pytest's own temporary folders may be too deep.
    root = Path(tempfile.mkdtemp(prefix="ss-"))
    made = StateDir(root)
    made.create()
    yield made
    shutil.rmtree(root)


@pytest.fixture
async def bench(state: StateDir) -> AsyncIterator[Bench]:
    made = Bench(state)
    yield made
    await made.close()
