"""Each file in ``scenarios`` holds commands, ``----``, and what they print; SLIPSTREAM_REWRITE=1 writes the latter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.dataplane.engines.scenario import Scenario

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))
SEPARATOR = "\n----\n"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_scenario(file: Path) -> None:
    commands, _, expected = file.read_text().partition(SEPARATOR)
    printed = Scenario().run("\n".join(line for line in commands.splitlines() if not line.startswith("#")))
    if os.environ.get("SLIPSTREAM_REWRITE"):
        file.write_text(f"{commands.rstrip()}{SEPARATOR}{printed}\n")
        return
    assert printed == expected.rstrip("\n")
