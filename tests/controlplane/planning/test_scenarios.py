"""SLIPSTREAM_REWRITE=1 writes what planning says now into the scenario files; the diff is the review."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.controlplane.planning.scenario import played

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    text = path.read_text()
    now = played(text)
    if os.environ.get("SLIPSTREAM_REWRITE"):
        path.write_text(now)
    else:
        assert now == text
