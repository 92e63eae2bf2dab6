from __future__ import annotations

import sqlite3

import grpc

from controlplane.controller.process import Controller
from controlplane.store.sqlite import SqliteStore
from dataplane.pb import admin_pb2
from tests.controlplane.controller.agent import FAILED, until
from tests.controlplane.controller.conftest import Bench, spec_json
from tests.controlplane.controller.test_admin import refused


async def test_with_a_full_disk_writes_are_refused_and_the_rest_goes_on(bench: Bench) -> None:
    opened: list[sqlite3.Connection] = []

    def make(*args: object, **settings: object) -> sqlite3.Connection:
        opened.append(sqlite3.connect(*args, **settings))  # type: ignore[call-overload]
        return opened[0]

    controller = Controller(bench.state, SqliteStore(bench.state.database, make))
    bench.controller = controller
    await controller.start()
    agent = bench.agent()
    await bench.apply(1)
    await bench.until_states({"tiny-mixed-0.g1": "ready"})
    (pages,) = opened[0].execute("PRAGMA page_count").fetchone()
    opened[0].execute(f"PRAGMA max_page_count={pages}")
    big = {"api_keys": {"keys": [{"name": f"k{n}", "tenant": "t", "sha256": f"{n:064x}"} for n in range(2000)]}}
    apply = admin_pb2.ApplyRequest(spec_json=spec_json(2, **big))
    text = await refused(bench.admin().Apply(apply), grpc.StatusCode.RESOURCE_EXHAUSTED, "store_full")
    assert "full" in text
    assert controller.ledger.revision == 1
    answer = await bench.admin().Get(admin_pb2.GetRequest())
    assert answer.revision == 1
    agent.set_state("tiny-mixed-0", FAILED)
    await bench.until_states({"tiny-mixed-0.g1": "failed"})
    opened[0].execute("PRAGMA max_page_count=1000000")
    assert (await bench.admin().Apply(apply)).revision == 2
    await until(lambda: len(bench.states()) == 2, "the second is placed")
