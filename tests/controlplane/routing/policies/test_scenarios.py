from __future__ import annotations

from pathlib import Path

import pytest

from tests.controlplane.routing import scenario

FILES = sorted((Path(__file__).parent / "testdata").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    scenario.check(path)


def test_every_peer_policy_has_a_scenario() -> None:
    peers = {"cache_aware", "kv_overlap", "prefix_tree", "sticky_until_saturated", "weighted_blend"}
    assert {path.stem for path in FILES} == peers
