"""Responses that are kept for GET, cancel and previous_response_id. Bounded: the oldest is forgotten first."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from dataplane.engines.simulated.answer import Answer
from dataplane.engines.simulated.response_shapes import ResponseState

#: vLLM keeps all of them for ever; a stand-in that serves load tests must not.
MAX_RESPONSES = 10_000


@dataclass(slots=True)
class Kept:
    """One response, the conversation up to it, and its events when it is a background stream."""

    state: ResponseState
    messages: list[Any]
    answer: Answer
    task: asyncio.Task[None] | None = None
    events: list[bytes] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    complete: bool = False

    def add(self, event: bytes) -> None:
        """Append events and wake whoever streams them."""
        self.events.append(event)
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class ResponseStore:
    """Response id to what is kept of it."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}

    def put(self, kept: Kept) -> None:
        """Keep a response."""
        self._kept.pop(kept.state.id, None)
        while len(self._kept) >= MAX_RESPONSES:
            del self._kept[next(iter(self._kept))]
        self._kept[kept.state.id] = kept

    def get(self, response_id: str) -> Kept | None:
        """Return what is kept under an id."""
        return self._kept.get(response_id)
