from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from grpc import aio

from controlplane.controller.process import Controller
from controlplane.spec import Cluster, to_json
from controlplane.store.sqlite import SqliteStore
from dataplane.pb import admin_pb2, admin_pb2_grpc, topology_pb2
from dataplane.state_dir import StateDir
from tests.controlplane.controller.agent import Agent, until


def cluster(replicas: int = 2, **changes: object) -> Cluster:
    """A small cluster as its validated spec; ``changes`` replace top-level keys."""
    pool: dict[str, object] = {"name": "tiny-mixed", "replicas": replicas, "engine": {"kind": "simulated"}}
    spec: dict[str, object] = {
        "cluster": "test",
        "nodes": [{"name": "local", "ports": "21000-21019"}],
        "models": [{"name": "tiny", "pools": [pool]}],
    }
    return Cluster.model_validate(spec | changes)


def state_word(state: topology_pb2.ReplicaState.ValueType) -> str:
    return topology_pb2.ReplicaState.Name(state).removeprefix("REPLICA_STATE_").lower()


def spec_json(replicas: int = 2, **changes: object) -> str:
    return to_json(cluster(replicas, **changes))


class SkippingClock:
    """The monotonic clock, with time that a test lets pass at once."""

    def __init__(self) -> None:
        self.skipped_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skipped_s


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

    async def apply(self, replicas: int = 2, **changes: object) -> admin_pb2.ApplyResponse:
        return await self.admin().Apply(admin_pb2.ApplyRequest(spec_json=spec_json(replicas, **changes)))

    def states(self) -> dict[str, str]:
        """Server name -> state, as published last."""
        assert self.controller is not None
        current = self.controller.board.current
        return {r.server: state_word(r.state) for r in current.replicas} if current else {}

    def number(self) -> int:
        """The number of the topology that was published last, 0 when none was."""
        assert self.controller is not None
        return self.controller.board.current.number if self.controller.board.current else 0

    async def until_states(self, wanted: dict[str, str]) -> None:
        await until(lambda: self.states() == wanted, f"{wanted}; it is {self.states()}")

    def skip(self, clock: SkippingClock, seconds: float) -> None:
        assert self.controller is not None
        clock.skipped_s += seconds
        self.controller.reconciler.wake()

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
