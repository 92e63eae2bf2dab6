"""The folder in every engine's PYTHONPATH, as Python's own machinery reads it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from dataplane.node.engine_path import make_engine_path
from dataplane.state_dir import StateDir


def test_vllm_finds_our_stat_logger_in_it(tmp_path: Path) -> None:
    folder = make_engine_path(StateDir(tmp_path))
    assert make_engine_path(StateDir(tmp_path)) == folder
    (found,) = importlib.metadata.distributions(path=[str(folder)])
    (entry,) = found.entry_points
    assert (entry.group, entry.name) == ("vllm.stat_logger_plugins", "slipstream")
    module, _, name = entry.value.partition(":")
    text = (folder / f"{module.replace('.', '/')}.py").read_text()
    assert f"class {name}(" in text
