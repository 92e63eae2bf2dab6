"""Plans of the change from one set of files to another, as text scenarios."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dataplane.gateway.delta import Reload, Rendered, plan
from dataplane.gateway.pools import backends
from dataplane.gateway.render import render
from dataplane.names import pin_key
from tests.dataplane.gateway import orders

TEXT = (Path(__file__).parent / "scenarios" / "delta.txt").read_text()
SCENARIOS = {
    block.split("\n", 1)[0].removeprefix("scenario "): block.split("\n")[1:]
    for block in re.split(r"\n\n|\n(?=scenario )", TEXT)
    if block.startswith("scenario ")
}


def rendered(words: str) -> Rendered:
    pools: list[str] = []
    replicas = []
    lost = set()
    for word in words.split():
        place, *marks = word.split(":")
        place, _, host = place.partition("@")
        pool, _, index = place.partition("/")
        if pool not in pools:
            pools.append(pool)
        state = orders.DRAINING if "draining" in marks else orders.READY
        one = orders.replica(pool, int(index), 7000 + int(index), state=state, host=host or "127.0.0.1")
        replicas.append(one)
        if "lost" in marks:
            lost.add(one.server)
    order = orders.order(8000, [orders.model(f"m-{pool}", [pool]) for pool in pools], replicas)
    return Rendered(render(order, orders.SITE, orders.TEMPLATES, lost), backends(order.topology, lost))


@pytest.mark.parametrize("name", SCENARIOS)
def test_delta(name: str) -> None:
    lines = [line for line in SCENARIOS[name] if line]
    old, new = (line.split(":", 1)[1] for line in lines[:2])
    wanted = [re.sub(r"\{pin (\S+)\}", lambda m: pin_key(f"{m[1]}.g1"), line) for line in lines[2:]]
    decision = plan(rendered(old), rendered(new))
    if isinstance(decision, Reload):
        assert [f"reload: {decision.reason}"] == wanted or (
            wanted[0].startswith("reload: changed") and decision.reason.startswith("changed")
        )
    else:
        assert [step.command for step in decision] == wanted
