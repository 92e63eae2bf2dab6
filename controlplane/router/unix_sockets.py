"""Unix sockets that appear whole, with mode 0600, and of which a process removes only its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Only the user that runs the router and HAProxy may connect.
MODE = 0o600


def temporary_path(path: Path) -> Path:
    """Return where a socket is bound before it takes its name; short, because the kernel allows 107 bytes."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


@contextmanager
def only_ours() -> Iterator[None]:
    """Let the files made within have mode 0600 from their first moment."""
    previous = os.umask(0o777 & ~MODE)
    try:
        yield
    finally:
        os.umask(previous)


def bind(path: Path, kind: socket.SocketKind) -> socket.socket:
    """Return a non-blocking unix socket bound to ``path``, in the place of whatever a dead process left there.

    It is bound under another name and renamed: a peer finds the old socket or the new one, never none.
    """
    temporary = temporary_path(path)
    temporary.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with only_ours():
            bound.bind(str(temporary))
        temporary.rename(path)
    except OSError:
        bound.close()
        temporary.unlink(missing_ok=True)
        raise
    return bound


def publish(temporary: Path, path: Path) -> None:
    """Give a socket that something else bound to ``temporary`` its name."""
    temporary.chmod(MODE)
    temporary.rename(path)


def inode(path: Path) -> int:
    """Return the file's inode, 0 when there is none."""
    try:
        return path.stat(follow_symlinks=False).st_ino
    except OSError:
        return 0


def remove(path: Path, own_inode: int) -> None:
    """Remove ``path`` if it is still the file with ``own_inode``."""
    if own_inode and inode(path) == own_inode:
        with suppress(OSError):
            path.unlink()
