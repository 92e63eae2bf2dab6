"""Starting and ending the processes of a benchmark: each on given cores, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

STOP_TIMEOUT_S = 20.0
POLL_S = 0.05

Cores = frozenset[int]


class DidNotStart(Exception):
    """A program ended or did not answer in time; the message ends with the last lines of its log."""


def start(
    command: Sequence[str], cores: Cores, log: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start ``command`` on ``cores`` in a session of its own, its output in ``log``."""
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=None if env is None else {**os.environ, **env},
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),  # noqa: PLW1509 - no threads here; children inherit it
        )


def stop(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
    """Ask ``process`` to end, and end it when it does not."""
    if process.poll() is not None:
        return
    process.send_signal(number)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Poll ``ready``; raises DidNotStart when ``process`` ends first or ``seconds`` pass."""
    deadline = time.monotonic() + seconds
    while not ready():
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            words = f"ended with {process.returncode}" if ended else f"was not ready within {seconds:g} s"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise DidNotStart(f"{Path(str(process.args[0])).name} {words}\n{tail}")  # type: ignore[index]
        time.sleep(POLL_S)
