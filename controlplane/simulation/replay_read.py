"""Reads a journal: which files belong together, and every line checked before any is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from controlplane.errors import InvalidRequest, NotFound
from controlplane.router import journal_lines as lines
from controlplane.router.journal_files import NAME, journals
from controlplane.routing.fleet import Topology

#: A topology of 65,536 replicas takes some 16 MB; nothing else is near.
MAX_LINE_BYTES = 64 << 20
#: Bytes between two calls of ``progress``.
PROGRESS_BYTES = 1 << 20

#: Model, policy, and its parameters as they are set.
ModelPolicy: TypeAlias = tuple[str, str, tuple[tuple[str, float], ...]]
#: Called with bytes read of all bytes.
Progress = Callable[[int, int], None]


class BrokenJournal(InvalidRequest):
    """A journal cannot be replayed; the message names file, line and what was expected."""

    code = "broken_journal"


def silent(done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A journal that was read once and is whole.

    ``start`` is the first header; ``policies`` are (model, policy, parameters) of all ``topologies``. ``gaps`` are
    lines that the router could not write; ``cut`` tells that the last line was not finished, and left out.
    """

    paths: tuple[Path, ...]
    start: lines.Header
    cluster: str
    policies: frozenset[ModelPolicy]
    topologies: int
    decisions: int
    gaps: int
    cut: bool
    began_s: float
    ended_s: float
    bytes: int

    @property
    def exact(self) -> bool:
        """Whether a replay can be bit-exact: the router's start is there, and nothing is missing after it."""
        return self.start.from_start and self.start.file == 1 and not self.gaps


def find(path: Path) -> list[Path]:
    """Return the files to replay: a folder's newest run, or a file and those that follow it in its run.

    Raises NotFound.
    """
    if path.is_dir():
        known = journals(path)
        if not known:
            raise NotFound(f"{path} has no journal; routing.journal in the spec starts one")
        run = _run(known[-1])
        return [file for file in known if _run(file) == run]
    if not path.is_file():
        raise NotFound(f"there is no journal {path}")
    if NAME.fullmatch(path.name) is None:
        return [path]
    return [file for file in journals(path.parent) if _run(file) == _run(path) and file.name >= path.name]


def _run(path: Path) -> str:
    return path.name.rpartition("-")[0]


def read(paths: Sequence[Path], progress: Progress = silent) -> Recorded:
    """Check every line of a run's files. Raises BrokenJournal, NotFound, OSError."""
    start: lines.Header | None = None
    cluster = ""
    policies: set[ModelPolicy] = set()
    topologies = decisions = gaps = 0
    began_s = ended_s = 0.0
    source = _Source(paths, progress)
    for line, _ in source:
        match line:
            case lines.Header():
                _check_header(line, start, source)
                start = start or line
                continue
            case lines.Gap():
                gaps += line.lines
                continue
            case lines.Install() | lines.InForce():
                if isinstance(line, lines.Install) or source.file == 0:
                    topologies += 1
                    cluster = line.topology.cluster
                    policies.update(_policies(line.topology))
            case lines.Decide():
                decisions += 1
            case lines.Sample():
                raise source.broken("a call of the routing core, not a receipt of a sampled journal")
        began_s = began_s or line.at
        ended_s = line.at
    if start is None:
        raise BrokenJournal(f"{paths[0]}: expected a journal, found an empty file")
    if not topologies:
        raise BrokenJournal(f"{paths[0]}: the journal has no topology, so there is nothing to replay")
    return Recorded(
        tuple(paths),
        start,
        cluster,
        frozenset(policies),
        topologies,
        decisions,
        gaps,
        source.cut,
        began_s,
        ended_s,
        source.total,
    )


def _policies(topology: Topology) -> Iterator[ModelPolicy]:
    for model in topology.models:
        yield model.name, model.policy, tuple(sorted(model.parameters.items()))


def calls(recorded: Recorded, progress: Progress = silent) -> Iterator[tuple[lines.InForce | lines.Call, bytes, str]]:
    """Yield the calls in their order, each with its line as it stands there and where that is (``file:line``)."""
    source = _Source(recorded.paths, progress)
    for line, raw in source:
        if isinstance(line, lines.Header | lines.Gap | lines.Sample):
            continue
        if isinstance(line, lines.InForce) and source.file:
            continue  # what was installed before is still there
        yield line, raw, source.place


def _check_header(line: lines.Header, start: lines.Header | None, source: _Source) -> None:
    if line.version != lines.VERSION:
        raise source.broken(f"a journal of version {lines.VERSION}, not {line.version}")
    if line.mode != lines.FULL:
        raise source.broken(
            "a full journal: a sampled one holds receipts of some requests, which do not rebuild the router's state. "
            "`routing: {journal: full}` in the spec writes one that can be replayed"
        )
    if start is not None and (line.run, line.seed, line.file) != (start.run, start.seed, start.file + source.file):
        raise source.broken(f"file {start.file + source.file} of the run {start.run}, not {line.file} of {line.run}")


class _Source:
    """The lines of some files, decoded; knows where it is."""

    def __init__(self, paths: Sequence[Path], progress: Progress) -> None:
        self.paths = paths
        self.file = 0
        self.number = 0
        self.cut = False
        self._progress = progress
        self._done = 0
        self.total = sum(path.stat().st_size for path in paths)

    @property
    def place(self) -> str:
        """``file:line`` of the newest line."""
        return f"{self.paths[self.file].name}:{self.number}"

    def broken(self, expected: str) -> BrokenJournal:
        """Return the error about the newest line."""
        return BrokenJournal(f"{self.paths[self.file]}, line {self.number}: expected {expected}")

    def __iter__(self) -> Iterator[tuple[lines.AnyLine, bytes]]:
        shown = 0
        for file, path in enumerate(self.paths):
            self.file = file
            with path.open("rb") as opened:
                self.number = 0
                while raw := opened.readline(MAX_LINE_BYTES + 1):
                    self.number += 1
                    self._done += len(raw)
                    line = self._decode(raw)
                    if line is None:
                        break
                    yield line, raw.rstrip(b"\n")
                    if self._done - shown >= PROGRESS_BYTES:
                        shown = self._done
                        self._progress(self._done, self.total)
        self._progress(self._done, self.total)

    def _decode(self, raw: bytes) -> lines.AnyLine | None:
        """Return the line; None for one that a crash cut off at the very end."""
        if len(raw) > MAX_LINE_BYTES:
            raise self.broken(f"a line of at most {MAX_LINE_BYTES} bytes")
        if not raw.endswith(b"\n"):
            if self.file < len(self.paths) - 1 or self.number == 1:
                raise self.broken("the end of the line")
            self.cut = True
            return None
        try:
            line: lines.AnyLine = lines.decode(raw)
        except msgspec.ValidationError as error:
            raise self.broken(f"a line of the journal as docs/replay.md describes it: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self.broken(f"one JSON object: {error}") from error
        if isinstance(line, lines.Header) != (self.number == 1):
            raise self.broken("a journal's header" if self.number == 1 else "a call, not a second header")
        if isinstance(line, lines.InForce) and self.number != 2:
            raise self.broken("a topology only after a header")
        return line
