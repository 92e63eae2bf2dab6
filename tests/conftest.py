"""Temporary folders with short names: a unix socket's path has at most 107 bytes, and pytest's own numbers grow."""

from __future__ import annotations

import shutil
import tempfile

import pytest

_OURS = pytest.StashKey[str]()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    if not config.option.basetemp and not hasattr(config, "workerinput"):
        config.option.basetemp = config.stash[_OURS] = tempfile.mkdtemp(prefix="slipstream-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if _OURS in config.stash:
        shutil.rmtree(config.stash[_OURS], ignore_errors=True)
