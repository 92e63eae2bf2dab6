"""Journals of one router, as its topologies ask for them: each a run of files of its own."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

from controlplane import __version__
from controlplane.router import journal_lines as lines
from controlplane.router.journal import Journal, JournalledCore
from controlplane.router.journal_files import FILE_BYTES, FILES, JournalFiles, run_name
from controlplane.router.journal_lines import encode
from controlplane.router.journal_settings import JournalCounts, JournalInfo
from controlplane.router.journal_writer import JournalWriter

#: Folder of journals below the router's own.
FOLDER_NAME = "journal"

_runs = count(1)


class Journals:
    """Begins and ends runs; belongs to the event loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._info: JournalInfo | None = None
        self._writer: JournalWriter | None = None

    def follow(self, core: JournalledCore, info: JournalInfo | None, now_s: float) -> None:
        """Do as a topology says; never waits, and leaves a journal alone while its settings stay the same."""
        if info == self._info:
            return
        self._info = info
        if self._writer is not None:
            self._writer.end()
            self._writer = None
        core.journal = None
        core.keeps_choices = False
        if info is not None and info.share > 0.0:
            self._writer = open_run(self.folder, core, now_s, info)

    def close(self) -> None:
        """Write what waits; takes CLOSE_TIMEOUT_S at most."""
        if self._writer is not None:
            self._writer.close()


def open_run(folder: Path, core: JournalledCore, now_s: float, info: JournalInfo) -> JournalWriter:
    """Begin a journal of a core's calls from now on in a folder. The caller closes what is returned."""
    run = run_name(now_s, os.getpid(), next(_runs))
    from_start = core.topology is None

    def head(number: int) -> bytes:
        return encode(
            lines.Header(
                version=lines.VERSION,
                program=__version__,
                mode=lines.FULL if info.share >= 1.0 else lines.SAMPLED,
                run=run,
                file=number,
                from_start=from_start,
                seed=core.seed,
                share=info.share,
            )
        )

    writer = JournalWriter(JournalFiles(folder, run, info.file_bytes or FILE_BYTES, info.files or FILES), head)

    def counts() -> JournalCounts:
        return JournalCounts(run, info.share, writer.lines, writer.dropped, writer.lost, writer.pending_bytes)

    core.keeps_choices = info.share >= 1.0
    core.journal = journal = Journal(writer.put, info.share, counts)
    if core.topology is not None and journal.full:
        writer.put(encode(lines.Install(at=now_s, topology=core.topology)))
    return writer
