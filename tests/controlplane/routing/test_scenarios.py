from __future__ import annotations

from pathlib import Path

import pytest

from tests.controlplane.routing import scenario

FILES = sorted((Path(__file__).parent / "testdata").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    scenario.check(path)


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 8
