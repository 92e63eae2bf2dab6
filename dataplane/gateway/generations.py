"""The folders of rendered files: one for each order, and the link ``current`` to the one in use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

#: Folders that are kept besides the one in use, to look at what was before.
KEPT = 5


class Generations:
    """Writes and swaps folders below ``root``; names are growing numbers."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def link(self) -> Path:
        """The link that HAProxy's command line names."""
        return self._root / "current"

    def current(self) -> str | None:
        """Return the name of the folder in use."""
        try:
            name = self.link.readlink().name
        except OSError:
            return None
        return name if (self._root / name).is_dir() else None

    def folder(self, name: str) -> Path:
        """Return the folder called ``name``."""
        return self._root / name

    def write(self, files: Mapping[str, str], record: bytes) -> str:
        """Write a new folder and return its name; ``record`` is the order, serialized."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = str(max(self._numbers(), default=0) + 1)
        folder = self._root / name
        folder.mkdir(mode=0o700)
        for relative, text in files.items():
            path = folder / relative
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.write_bytes(text.encode())
        (folder / "order.bin").write_bytes(record)
        return name

    def record(self, name: str) -> bytes:
        """Return the order that the folder was made from. Raises OSError."""
        return (self._root / name / "order.bin").read_bytes()

    def use(self, name: str) -> None:
        """Point ``current`` to the folder, in one step."""
        fresh = self._root / "current.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(name)
        fresh.rename(self.link)
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def forget(self, name: str) -> None:
        """Delete a folder that was never used."""
        shutil.rmtree(self._root / name, ignore_errors=True)

    def prune(self) -> None:
        """Delete all but the newest folders and the one in use."""
        current = self.current()
        for number in sorted(self._numbers())[:-KEPT]:
            if str(number) != current:
                self.forget(str(number))

    def _numbers(self) -> list[int]:
        return [int(entry.name) for entry in self._root.iterdir() if entry.name.isdigit() and entry.is_dir()]
