"""Runs the engine against the clock, and wakes the requests whose sequences advanced.

The engine's time is an exact sequence of steps; timers only say when to look at it. A timer that fires late, or several
steps within one timer tick, therefore change when tokens are seen, never how many there are.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from dataplane.engines.simulated.block_pool import BlockEvent
from dataplane.engines.simulated.engine import Engine, Step
from dataplane.engines.simulated.sequence import Prompt, Sequence, State
from dataplane.middleware import accounts
from dataplane.middleware.accounts import Figures

#: uvloop's timers have whole milliseconds; a shorter wait would spin.
TIMER_S = 0.001
#: A replica that was not scheduled for longer (a stopped process) goes on from now instead of catching up.
MAX_LAG_S = 0.5


class Ticket:
    """One sequence, as a request waits for it."""

    __slots__ = ("_account", "_waiter", "_whole", "sequence")

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self._account = accounts.current.get()
        self._waiter: asyncio.Future[None] | None = None
        self._whole = False

    @property
    def ended(self) -> bool:
        """Whether no further token will come."""
        return self.sequence.state is State.FINISHED or self.sequence.state is State.ABORTED

    async def beyond(self, seen: int) -> None:
        """Wait until more than ``seen`` tokens are there, or the sequence ended."""
        while self.sequence.produced <= seen and not self.ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def finished(self) -> None:
        """Wait until the sequence ended."""
        self._whole = True
        await self.beyond(self.sequence.prompt.max_tokens)

    def book(self) -> None:
        """Book what the sequence did on its request's account: its first token, and all when it is finished."""
        account = self._account
        sequence = self.sequence
        if account is None:
            return
        if sequence.state is State.FINISHED:
            prompt = sequence.prompt.tokens
            figures = Figures(
                len(prompt),
                sequence.cached_tokens + sequence.external_tokens,
                sequence.produced,
                max(0.0, sequence.admitted_s - sequence.arrived_s),
                max(0.0, sequence.first_token_s - sequence.admitted_s),
            )
            account.finished(id(prompt), figures)
        elif sequence.produced == 1:
            account.first_token()

    def wake(self) -> None:
        """Let the waiting request look again, unless it waits for the end and that is not yet."""
        waiter = self._waiter
        if waiter is not None and not waiter.done() and (self.ended or not self._whole):
            waiter.set_result(None)


class Pacer:
    """The engine in time. Use from one event loop."""

    def __init__(
        self,
        engine: Engine,
        publish: Callable[[list[BlockEvent]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self._publish = publish
        self._clock = clock
        self._tickets: dict[int, Ticket] = {}
        self._step: Step | None = None
        self._ends_s = 0.0
        self._timer: asyncio.Handle | None = None
        self.hung = False

    @property
    def open(self) -> int:
        """Sequences that have not ended."""
        return len(self._tickets)

    def submit(self, prompt: Prompt) -> Ticket:
        """Queue a prompt."""
        ticket = Ticket(self.engine.submit(prompt, self._clock()))
        self._tickets[ticket.sequence.key] = ticket
        if self._step is None:
            self._arm(0.0)
        return ticket

    def abort(self, ticket: Ticket) -> None:
        """End a sequence now and free its blocks; its request wakes."""
        self.engine.abort(ticket.sequence)
        self._tickets.pop(ticket.sequence.key, None)
        ticket.wake()
        self._publish_events()

    def reset_prefix_cache(self) -> bool:
        """Drop the prefix cache; False while any block is in use."""
        success = self.engine.reset_prefix_cache()
        self._publish_events()
        return success

    def abort_all(self) -> None:
        """End every sequence."""
        for ticket in list(self._tickets.values()):
            self.abort(ticket)

    def hang(self, hung: bool) -> None:
        """Stop computing, or go on: the fault of an engine that neither fails nor advances."""
        self.hung = hung
        if not hung and self._step is None:
            self._arm(0.0)
        elif not hung:
            self._ends_s = self._clock()
            self._arm(0.0)

    def _arm(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        if wait_s <= 0:
            self._timer = loop.call_soon(self._tick)
        else:
            self._timer = loop.call_later(math.ceil(wait_s / TIMER_S) * TIMER_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.hung:
            return
        now = self._clock()
        if self._step is not None and now - self._ends_s > MAX_LAG_S:
            self._ends_s = now
        while self._step is not None and self._ends_s <= now:
            at = self._ends_s
            self._finish(self._step, at)
            self._begin(at)
        if self._step is None:
            self._begin(now)
        self._publish_events()
        if self._step is not None:
            self._arm(max(self._ends_s - self._clock(), TIMER_S))
        else:
            ready = self.engine.next_ready_s()
            if ready is not None:
                self._arm(max(ready - now, TIMER_S))

    def _begin(self, at_s: float) -> None:
        self._step = self.engine.start_step(at_s)
        if self._step is not None:
            self._ends_s = at_s + self._step.duration_s

    def _finish(self, step: Step, at_s: float) -> None:
        self._step = None
        for sequence in self.engine.finish_step(step, at_s):
            ticket = self._tickets.get(sequence.key)
            if ticket is None:
                continue
            if sequence.state is State.FINISHED:
                del self._tickets[sequence.key]
            ticket.book()
            ticket.wake()

    def _publish_events(self) -> None:
        if self._publish is not None:
            events = self.engine.take_events()
            if events:
                self._publish(events)
