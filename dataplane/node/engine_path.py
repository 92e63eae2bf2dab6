"""The folder that is first in every engine's PYTHONPATH: our package for the middleware, and nothing else of ours."""

from __future__ import annotations

import os
from pathlib import Path

import dataplane
from dataplane.launchers.atomic import write_atomically
from dataplane.state_dir import StateDir

#: The metadata of a distribution without files, by which vLLM finds our stat logger; its name is what a VLLM_PLUGINS
#: in an engine's environment has to list too.
DISTRIBUTION = "slipstream_engine-1.dist-info"
METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: slipstream-engine\nVersion: 1\n",
    "entry_points.txt": (
        "[vllm.stat_logger_plugins]\nslipstream = dataplane.middleware.vllm_plugin:SlipstreamStatLogger\n"
    ),
    "RECORD": "",
}


def make_engine_path(state: StateDir) -> Path:
    """Make the folder: the link ``dataplane``, and the metadata; return it."""
    folder = state.root / "engine-path"
    folder.mkdir(mode=0o700, exist_ok=True)
    package = Path(dataplane.__file__).resolve().parent
    link = folder / "dataplane"
    if not link.is_symlink() or link.readlink() != package:
        scratch = folder / f".dataplane.{os.getpid()}"
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(package, target_is_directory=True)
        scratch.replace(link)
    metadata = folder / DISTRIBUTION
    metadata.mkdir(mode=0o700, exist_ok=True)
    for name, text in METADATA.items():
        write_atomically(metadata / name, text.encode())
    return folder
