"""The answer to one choice of a request: its tokens as text, cut at stop strings."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from dataplane.engines.simulated import text
from dataplane.engines.simulated.pacer import Pacer, Ticket
from dataplane.engines.simulated.sampling import Sampling
from dataplane.engines.simulated.sequence import Prompt, State


@dataclass(frozen=True, slots=True)
class Outline:
    """How an answer will end, known from its seed: tokens, finish reason, stop string, and bytes of text kept."""

    tokens: int
    reason: str
    stop: str | None
    text_bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new since the last piece. ``text`` is UTF-8 that JSON needs not escape."""

    text: bytes
    start: int  # number of the first new token
    end: int  # and of the one after the last
    last: bool


class Aborted(Exception):
    """The engine ended the sequence before its answer was complete."""


def outline(prompt: array[int], adapter: str, choice: int, sampling: Sampling, context_tokens: int) -> Outline:
    """Return how the answer will end."""
    seed = text.seed_of(prompt, adapter, choice)
    room = max(1, context_tokens - len(prompt))
    if sampling.max_tokens is None:
        tokens = min(text.natural_length(seed), room)
        reason = "stop" if tokens < room else "length"
    else:
        tokens, reason = min(sampling.max_tokens, room), "length"
    size = tokens * len(text.PIECES[0])
    if not sampling.stop:
        return Outline(tokens, reason, None, size)
    said = text.say(seed, 0, tokens)
    found = [(at, s) for s in sampling.stop if (at := said.find(s.encode())) >= 0]
    if not found:
        return Outline(tokens, reason, None, size)
    at, stop = min(found, key=lambda hit: hit[0] + len(hit[1].encode()))
    end = at + len(stop.encode())
    return Outline(-(-end // len(text.PIECES[0])), "stop", stop, end if sampling.include_stop else at)


class Answer:
    """One choice in the engine. Iterate with ``next`` until a piece is the last; ``cancel`` if it never comes."""

    __slots__ = ("_pacer", "_sent_bytes", "index", "outline", "seen", "ticket")

    def __init__(self, pacer: Pacer, prompt: Prompt, plan: Outline, index: int) -> None:
        self._pacer = pacer
        self.index = index
        self.outline = plan
        self.ticket: Ticket = pacer.submit(prompt)
        self.seen = 0
        self._sent_bytes = 0

    async def next(self) -> Piece:
        """Wait for tokens; several may have come since the last call. Raises Aborted."""
        ticket = self.ticket
        sequence = ticket.sequence
        if sequence.produced <= self.seen:
            await ticket.beyond(self.seen)
            if sequence.state is State.ABORTED:
                raise Aborted
        start, end = self.seen, sequence.produced
        self.seen = end
        data = text.say(sequence.seed, start, end)
        if self.outline.stop is not None:
            data = data[: max(0, self.outline.text_bytes - self._sent_bytes)]
        self._sent_bytes += len(data)
        return Piece(data, start, end, end >= self.outline.tokens)

    async def all(self) -> bytes:
        """Wait for the whole answer; return its text. Raises Aborted."""
        await self.ticket.finished()
        if self.ticket.sequence.state is State.ABORTED:
            raise Aborted
        self.seen = self.ticket.sequence.produced
        return text.say(self.ticket.sequence.seed, 0, self.seen)[: self.outline.text_bytes]

    def tokens(self, start: int, end: int) -> list[int]:
        """Return the ids of the tokens from ``start`` up to ``end``."""
        offset = len(self.ticket.sequence.prompt.tokens)
        return self.ticket.sequence.tokens[offset + start : offset + end].tolist()

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were not computed here: found in the cache, or sent by a peer."""
        return self.ticket.sequence.cached_tokens + self.ticket.sequence.external_tokens

    def cancel(self) -> None:
        """Free the engine of it; nothing when it is complete."""
        self._pacer.abort(self.ticket)
