"""A trace as a workload: its arrivals, faster, and in several copies that share only what the whole trace shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from controlplane.simulation.cache import LENGTH_BITS
from controlplane.simulation.prompt import Ask, Contents, router_hashes
from controlplane.simulation.trace import Row

#: An id that begins this part of all prompts is the deployment's own system prompt: all copies have it.
COMMON_PART = 0.5
#: Numbers of blocks that no id of a trace reaches, for prompts whose content is not known.
UNKNOWN_FROM = 1 << 51


class Replayed:
    """Rows of a trace, ``speedup`` times as fast. Copy ``k`` begins ``k / copies`` of the way through the trace, goes
    round, and has content of its own, so that ``copies`` times the replicas get as much of the same kind.

    Sessions: a prompt that goes on from an earlier one's last full block belongs to that one's session. The trace
    has no session names; a client that sends some would tell about the same.
    """

    def __init__(self, rows: Sequence[Row], speedup: float = 1.0, copies: int = 1) -> None:
        self.name = f"trace x{speedup:g}" + (f", {copies} copies" if copies > 1 else "")
        self.length_s = max(rows[-1].at_s / speedup, 1e-3)
        self.expected = len(rows) * copies
        self._rows = rows
        self._speedup = speedup
        self._copies = copies
        firsts = Counter(row.ids[0] for row in rows if row.ids)
        self._common = {number for number, count in firsts.items() if count > COMMON_PART * len(rows)}
        self._stride = 1 + max((max(row.ids) for row in rows if row.ids), default=0)
        self._sessions = self._find_sessions()

    def _find_sessions(self) -> list[int]:
        ends: dict[int, int] = {}
        sessions = []
        for number, row in enumerate(self._rows):
            session = next((ends[i] for i in reversed(row.ids) if i in ends), number)
            full = row.ids[: row.prompt_tokens // row.id_tokens]
            if full and full[-1] not in self._common:
                ends[full[-1]] = session
            sessions.append(session)
        return sessions

    def arrivals(self) -> Iterator[Ask]:
        """Return all requests."""
        unknown = Contents(UNKNOWN_FROM)
        speedup, length_s = self._speedup, self.length_s
        order = [(row.at_s / speedup, 0, index) for index, row in enumerate(self._rows)]
        for copy in range(1, self._copies):
            # Not a whole number of rows: Mooncake's timestamps are multiples of 3 s, and copies must not share them.
            shift_s = length_s * copy / self._copies
            order += [((at_s - shift_s) % length_s, copy, index) for at_s, _, index in order[: len(self._rows)]]
        order.sort()
        for at_s, copy, index in order:
            yield self._ask(at_s, copy, index, unknown)

    def _ask(self, at_s: float, copy: int, index: int, unknown: Contents) -> Ask:
        row = self._rows[index]
        common, away = self._common, copy * self._stride
        ids = [number if number in common else number + away for number in row.ids] if away else row.ids
        blocks = [number << LENGTH_BITS | row.id_tokens for number in ids]
        left = row.prompt_tokens - len(blocks) * row.id_tokens
        if left < 0:
            blocks[-1] += left  # the last block is not full
        if left > 0:
            blocks += unknown.new(left)
        session = b"x-session-id=%d" % (self._sessions[index] * self._copies + copy)
        return Ask(at_s, row.prompt_tokens, row.output_tokens, blocks, router_hashes(blocks), session)

    def answered(self, ask: Ask, now_s: float) -> Ask | None:
        """Nobody goes on: the trace holds all requests."""
        return None
