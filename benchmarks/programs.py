"""The two C programs of a benchmark, compiled on the spot: the compiler of the machine that is measured makes them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent / "c"
FLAGS = ("-O2", "-std=c11", "-Wall", "-Wextra", "-Werror")
COMPILE_TIMEOUT_S = 60


class CannotCompile(Exception):
    """There is no C compiler, or it refused."""


def cache_root() -> Path:
    """Return ``$XDG_CACHE_HOME/slipstream``, else ``~/.cache/slipstream``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "slipstream"


def _digest(compiler: str) -> str:
    digest = hashlib.sha256(f"{compiler} {FLAGS}".encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def program(name: str) -> Path:
    """Return the compiled ``replica`` or ``load``; compiles when its sources, compiler or flags are new.

    Raises CannotCompile with the compiler's words.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise CannotCompile("no C compiler: install gcc, or name one in CC")
    folder = cache_root() / f"bench-{_digest(compiler)}"
    binary = folder / name
    if binary.exists():
        return binary
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f".{name}.{os.getpid()}"
    command = [compiler, *FLAGS, "-o", str(made), str(SOURCES / f"{name}.c"), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise CannotCompile(done.stderr)
    made.replace(binary)
    return binary
