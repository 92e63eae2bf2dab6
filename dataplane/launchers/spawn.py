"""Create one process that does not run its program before its record is written."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

#: The child waits for one line on its standard input. End of file means that its starter died or could not write the
#: record: then the program never runs, so no process of ours can exist without a record. The variables are the shell's.
_GATE = 'read -r go || exit 125; unset PWD OLDPWD SHLVL _; exec "$@" </dev/null'
_SHELL = "/bin/sh"
_DEFAULT_SIGNALS = [number for number in signal.valid_signals() if number not in {signal.SIGKILL, signal.SIGSTOP}]


def spawn(argv: tuple[str, ...], env: Mapping[str, str], log: int, record: Callable[[int], None]) -> int:
    """Start ``argv`` as the leader of a new session and return its pid, which is the program's own.

    Standard output and error go to the descriptor ``log``, no other descriptor is passed on, every signal has its
    default meaning. ``record`` is called with the pid before the program runs; when it raises, the program never runs,
    the child is reaped and the error is raised. A program that cannot be executed exits with 126 or 127, as in a shell.
    """
    gate_read, gate_write = os.pipe2(os.O_CLOEXEC)
    try:
        actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inheritable()]
        actions += [(os.POSIX_SPAWN_DUP2, gate_read, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
        pid = os.posix_spawn(
            _SHELL,
            [_SHELL, "-c", _GATE, "gate", *argv],
            dict(env),
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=_DEFAULT_SIGNALS,
        )
        try:
            record(pid)
            os.write(gate_write, b"\n")
        except BaseException:
            os.close(gate_write)
            gate_write = -1
            os.waitpid(pid, 0)  # ends at once: its gate is closed
            raise
        return pid
    finally:
        os.close(gate_read)
        if gate_write >= 0:
            os.close(gate_write)


def _inheritable() -> list[int]:
    """Return our descriptors above 2 that a program would inherit: libraries do not always set close-on-exec."""
    found: list[int] = []
    for entry in Path("/proc/self/fd").iterdir():
        descriptor = int(entry.name)
        try:
            if descriptor > 2 and not fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                found.append(descriptor)
        except OSError:
            continue  # it was the listing's own
    return found
