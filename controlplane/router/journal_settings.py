"""What a topology tells the router beside what its routing core needs: a journal, and shadow policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.routing.fleet import Topology
from controlplane.routing.shadow import ShadowInfo


@dataclass(frozen=True, slots=True)
class JournalInfo:
    """What is written down: everything with a ``share`` of 1, else the receipts of that part of the requests.

    Sizes of 0 are the router's own (journal_files.py).
    """

    share: float = 1.0
    file_bytes: int = 0
    files: int = 0


@dataclass(frozen=True, slots=True)
class JournalCounts:
    """What became of a run's lines: ``dropped`` because the disk was too slow, ``lost`` because it refused them."""

    run: str
    share: float
    lines: int
    dropped: int
    lost: int
    pending_bytes: int


@dataclass(frozen=True, slots=True)
class WatchedTopology(Topology):
    """A topology with what watches the decisions; ``shadows`` by model. None of it changes a decision."""

    journal: JournalInfo | None = None
    shadows: Mapping[str, ShadowInfo] = field(default_factory=dict)
