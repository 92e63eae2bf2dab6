"""The lines of a journal: JSON, one object a line, ``call`` says which.

A journal holds every call into the routing core with its arguments, and beside each decision what came out of it. What
the core takes as a NamedTuple (a request, an event) is an array of its fields in their order, bytes as base64, numbers
exactly; docs/replay.md describes each. A prompt is never in it: the core itself knows a prompt's block hashes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import msgspec

from controlplane.router.journal_settings import WatchedTopology
from controlplane.routing.admission.settings import DEFAULT_PRIORITY
from controlplane.routing.events import CacheCleared, Completion, EngineReport, FirstByte, Telemetry
from controlplane.routing.receipt import Receipt
from controlplane.routing.record import Request

#: Grows when a reader of older journals could misread a newer one.
VERSION = 1
FULL = "full"
SAMPLED = "sampled"


class Line(msgspec.Struct, tag_field="call", omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Any line. ``at`` in those of calls is the core's ``now_s``: seconds since 1970."""


class Header(Line, tag="journal"):
    """First line of each file.

    ``run`` names the set of files that one router wrote without a pause, ``file`` counts them from 1. ``from_start``
    tells that the router had made no decision before the first of them. ``share`` is below 1 in a sampled journal.
    """

    version: int
    program: str
    mode: str
    run: str
    file: int
    from_start: bool
    seed: int
    share: float = 1.0


class InForce(Line, tag="topology"):
    """Second line of each file but a run's first: the topology here, for who has this file without the others."""

    at: float
    topology: WatchedTopology


class Install(Line, tag="install"):
    """``core.install``."""

    at: float
    topology: WatchedTopology


class Made(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One decision: candidates (the chosen first) with their scores, and the terms of the chosen one's.

    ``reason`` is a number of policies/base.py; -1, and no candidates, when no policy was asked.
    """

    outcome: str
    server: str = ""
    error: str = ""
    retry_after_s: int = 0
    reason: int = -1
    candidates: Sequence[str] = ()
    scores: Sequence[float | None] = ()
    terms: Sequence[float | None] = ()


class Decide(Line, tag="decide"):
    """``core.decide`` and what came out. ``held``: the prompt's cached tokens by server; ``priority``: a number."""

    at: float
    id: bytes
    request: Request
    made: Made
    held: dict[str, int] | None = None
    priority: int = DEFAULT_PRIORITY


class Release(Line, tag="release"):
    """``core.release`` while somebody waited, and who waits no more."""

    at: float
    made: list[tuple[bytes, Made]]


class Leave(Line, tag="leave"):
    """``core.leave``."""

    at: float
    id: bytes


class First(Line, tag="first_byte"):
    """``core.first_byte``."""

    at: float
    event: FirstByte


class Finished(Line, tag="finished"):
    """``core.finished``."""

    at: float
    event: Completion


class Reported(Line, tag="reported"):
    """``core.reported``."""

    at: float
    event: EngineReport


class Observed(Line, tag="observed"):
    """``core.observed``."""

    at: float
    event: Telemetry


class Cleared(Line, tag="cache_cleared"):
    """``core.cache_cleared``."""

    at: float
    event: CacheCleared


class Reconcile(Line, tag="reconcile"):
    """``core.reconcile``: HAProxy's streams by server."""

    at: float
    streams: dict[str, int]


class Sample(Line, tag="receipt"):
    """A decision of a sampled journal, in full (controlplane/routing/receipt.py)."""

    receipt: Receipt


class Gap(Line, tag="gap"):
    """So many lines are missing here: the disk was full or too slow."""

    lines: int


Call = Install | Decide | Release | Leave | First | Finished | Reported | Observed | Cleared | Reconcile
AnyLine = Header | InForce | Call | Sample | Gap

#: How these two lines begin; their rest is the same.
INSTALL_START = b'{"call":"install",'
IN_FORCE_START = b'{"call":"topology",'

encode = msgspec.json.Encoder().encode


@cache
def _decoder() -> msgspec.json.Decoder[AnyLine]:
    # Made only by who reads: it takes milliseconds that a router which starts does not have.
    return msgspec.json.Decoder(AnyLine)


def decode(line: bytes) -> AnyLine:
    """Return a line. Raises msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError."""
    return _decoder().decode(line)
