"""Runs a journal again through the routing core that wrote it, and compares each decision.

The state is rebuilt from the calls alone: recorded outcomes, candidates and scores are read for nothing but the
comparison, after the core has decided.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from controlplane.router import journal_lines as lines
from controlplane.router.journal import FAILED, JournalledCore
from controlplane.router.journal_settings import WatchedTopology
from controlplane.routing.errors import UnknownPolicy
from controlplane.routing.load import Decision
from controlplane.simulation.replay_observed import Observed
from controlplane.simulation.replay_read import BrokenJournal, Progress, Recorded, calls, silent

#: In the place of a decision that was made only once.
NO_DECISION = lines.Made("none")


@dataclass(frozen=True, slots=True)
class Difference:
    """The first decision that came out otherwise: where it stands, and each part that differs as (recorded, now)."""

    place: str
    request_id: bytes
    parts: dict[str, tuple[object, object]]


@dataclass(slots=True)
class Replay:
    """What came of a replay; ``digest`` is the SHA-256 of all decisions that were made now, with their scores."""

    recorded: Recorded
    decisions: int = 0
    different: int = 0
    #: Of these, named another server or gave another answer.
    different_choices: int = 0
    first: Difference | None = None
    digest: str = ""
    _hash: hashlib._Hash = field(default_factory=hashlib.sha256, repr=False)

    @property
    def identical(self) -> bool:
        """Whether every decision came out as recorded, to the bit."""
        return not self.different


def replay(recorded: Recorded, progress: Progress = silent, observed: Observed | None = None) -> Replay:
    """Run the journal again with the policies that it was written with; ``observed`` is filled on the way.

    Raises BrokenJournal, OSError.
    """
    core = JournalledCore(seed=recorded.start.seed)
    core.keeps_choices = True
    result = Replay(recorded)
    for line, raw, place in calls(recorded, progress):
        if isinstance(line, lines.Decide):
            decision = _decide(core, line, raw, place, result)
            if observed is not None:
                observed.decided(core, line, decision.server_name)
            continue
        if isinstance(line, lines.Release):
            released = core.release(line.at)
            _compare(core.released(released, line.at), line, raw, place, result)
            if observed is not None:
                observed.released(core, released, line.at)
            continue
        if observed is not None:
            observed.heard(core, line)
        repeat(core, line, place)
    if observed is not None:
        observed.learn(core)
    result.digest = result._hash.hexdigest()
    return result


def repeat(core: JournalledCore, line: lines.InForce | lines.Call, place: str) -> None:
    """Make one recorded call again, but for those that decide. Raises BrokenJournal for what no core ever took."""
    match line:
        case lines.Install() | lines.InForce():
            installed(core, line.topology, line.at, place)
        case lines.First():
            core.first_byte(line.event, line.at)
        case lines.Finished():
            core.finished(line.event, line.at)
        case lines.Reported():
            core.reported(line.event, line.at)
        case lines.Observed():
            core.observed(line.event, line.at)
        case lines.Leave():
            core.leave(line.id, line.at)
        case lines.Cleared():
            core.cache_cleared(line.event, line.at)
        case lines.Reconcile():
            core.reconcile(line.streams, line.at)


def installed(core: JournalledCore, topology: WatchedTopology, now_s: float, place: str) -> None:
    """Install a topology. Raises BrokenJournal when it has a policy or a parameter that is not known."""
    try:
        core.install(topology, now_s)
    except UnknownPolicy as error:
        raise BrokenJournal(f"{place}: expected a topology that this version can use: {error}") from error


def _decide(core: JournalledCore, line: lines.Decide, raw: bytes, place: str, result: Replay) -> Decision:
    held = held_of(line)
    core.choice = None
    try:
        decision = core.decide(line.id, line.request, line.at, held, line.priority)
    except Exception:
        if line.made.outcome != FAILED.outcome:
            raise
        decision = FAILED  # as it was when it was recorded
    now = core.decided(line.id, line.request, line.at, held, line.priority, decision)
    result.decisions += 1
    _compare(now, line, raw, place, result)
    return decision


def held_of(line: lines.Decide) -> dict[bytes, int] | None:
    """Return what was known of the prompt's cached tokens, as the core takes it."""
    return None if line.held is None else {server.encode(): tokens for server, tokens in line.held.items()}


def _compare(
    now: lines.Decide | lines.Release,
    recorded: lines.Decide | lines.Release,
    raw: bytes,
    place: str,
    result: Replay,
) -> None:
    """Compare what was decided now with what was recorded, bytes first."""
    written = lines.encode(now)
    result._hash.update(written)
    if written == raw:
        return
    for request_id, was, came in _pairs(recorded, lines.decode(written)):
        parts = _parts(was, came)
        if not parts:  # the same, written in another way
            continue
        result.different += 1
        result.different_choices += bool(parts.keys() & {"outcome", "server", "error"})
        if result.first is None:
            result.first = Difference(place, request_id, parts)


def _pairs(recorded: lines.AnyLine, now: lines.AnyLine) -> list[tuple[bytes, lines.Made, lines.Made]]:
    """Return each decision of two lines, as recorded and now; NO_DECISION where one of them has none."""
    if isinstance(recorded, lines.Decide) and isinstance(now, lines.Decide):
        return [(recorded.id, recorded.made, now.made)]
    assert isinstance(recorded, lines.Release)
    assert isinstance(now, lines.Release)
    was, came = dict(recorded.made), dict(now.made)
    return [(known, was.get(known, NO_DECISION), came.get(known, NO_DECISION)) for known in {**was, **came}]


def _parts(recorded: lines.Made, now: lines.Made) -> dict[str, tuple[object, object]]:
    """Return what differs between two decisions, by name."""
    return {
        name: (getattr(recorded, name), getattr(now, name))
        for name in lines.Made.__struct_fields__
        if getattr(recorded, name) != getattr(now, name)
    }
