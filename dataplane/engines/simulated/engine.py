"""The engine: continuous batching in steps, with the times of SimulatedEngine. No clock, no I/O: times come in.

A step prefills at most ``max_batched_tokens`` prompt tokens (long prompts in several steps) and decodes one token of
every other running sequence; it takes ``base + prefill tokens x prefill time + decoding sequences x decode time``.
Admission is first come, first served: a sequence waits until it has a place (``max_running``) and room for its whole
prompt. A sequence that needs a further block when none is free preempts the one admitted last, which starts over.
(vLLM v1's scheduler, vllm/v1/core/sched/scheduler.py.)
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from dataplane.engines.simulated import block_pool
from dataplane.engines.simulated.block_pool import AllBlocksCleared, BlockEvent, BlockPool, BlockStored
from dataplane.engines.simulated.sequence import Prompt, Sequence, State
from dataplane.engines.simulated.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Speeds:
    """Seconds that things take."""

    step_s: float
    prefill_token_s: float
    decode_sequence_s: float
    transfer_token_s: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much fits. ``kv_tokens`` is rounded down to whole blocks."""

    max_batched_tokens: int
    max_running: int
    kv_tokens: int
    block_tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """What the engine computes next, and for how long."""

    work: tuple[tuple[Sequence, int], ...]  # sequence, tokens to compute
    duration_s: float


class Engine:
    """Sequences in, steps out: ``start_step``, wait ``duration_s``, ``finish_step``, and again."""

    def __init__(self, speeds: Speeds, sizes: Sizes, statistics: Statistics, record_events: bool = False) -> None:
        self._speeds = speeds
        self._sizes = sizes
        self._block = sizes.block_tokens
        self.pool = BlockPool(max(1, sizes.kv_tokens // sizes.block_tokens))
        self.statistics = statistics
        self._waiting: deque[Sequence] = deque()
        self._transferring: list[Sequence] = []
        self._running: list[Sequence] = []
        self._record_events = record_events
        self._events: list[BlockEvent] = []
        self._keys = 0
        self.extra_step_s = 0.0  # fault switch: slows every step

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a place or for room."""
        return len(self._waiting)

    @property
    def transferring(self) -> int:
        """Sequences whose KV is on its way."""
        return len(self._transferring)

    def adapters(self) -> tuple[list[str], list[str]]:
        """Return the adapters of running and of waiting sequences, each once, sorted."""
        running = {s.prompt.adapter for s in self._running} - {""}
        waiting = {s.prompt.adapter for s in (*self._waiting, *self._transferring)} - {""}
        return sorted(running), sorted(waiting)

    def submit(self, prompt: Prompt, now_s: float) -> Sequence:
        """Queue a sequence."""
        self._keys += 1
        sequence = Sequence(self._keys, prompt, now_s, block_pool.root(prompt.adapter, prompt.salt))
        self._name_blocks(sequence)
        self._waiting.append(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """Forget a sequence and free its blocks at once; nothing when it has ended."""
        if sequence.state in (State.FINISHED, State.ABORTED):
            return
        self._leave(sequence)
        sequence.state = State.ABORTED
        self.statistics.aborted()

    def start_step(self, now_s: float) -> Step | None:
        """Return the next step, None when there is nothing to compute now (``next_ready_s`` may say when)."""
        self._end_transfers(now_s)
        preempted = self.statistics.preemptions
        work = self._plan_running()
        if self._waiting and self.statistics.preemptions == preempted:
            work += self._admit(now_s, self._sizes.max_batched_tokens - sum(n for _, n in work if n > 1))
        if not work:
            return None
        prefill = decoding = 0
        for sequence, tokens in work:
            if sequence.produced and tokens == 1:
                decoding += 1
            else:
                prefill += tokens
        speeds = self._speeds
        duration = speeds.step_s + prefill * speeds.prefill_token_s + decoding * speeds.decode_sequence_s
        return Step(tuple(work), duration + self.extra_step_s)

    def finish_step(self, step: Step, now_s: float) -> list[Sequence]:
        """Account for a computed step; return the sequences that got a token (or, embeddings, their result)."""
        self.statistics.step(sum(n for _, n in step.work))
        advanced: list[Sequence] = []
        for sequence, tokens in step.work:
            if sequence.state is not State.RUNNING:  # aborted or preempted meanwhile
                continue
            sequence.computed += tokens
            self._share_full_blocks(sequence)
            if sequence.missing:
                continue
            self.statistics.token(sequence, now_s)
            sequence.produce(now_s)
            advanced.append(sequence)
            if sequence.done:
                self._leave(sequence)
                sequence.state = State.FINISHED
                self.statistics.finished(sequence, sequence.prompt.ends)
        return advanced

    def next_ready_s(self) -> float | None:
        """Return when the next transfer ends, None when there is none."""
        return min((s.ready_s for s in self._transferring), default=None)

    def reset_prefix_cache(self) -> bool:
        """Drop all cached blocks; False while any is in use."""
        if not self.pool.clear():
            return False
        if self._record_events:
            self._events.append(AllBlocksCleared())
        return True

    def take_events(self) -> list[BlockEvent]:
        """Return what happened to named blocks since the last call, in order."""
        self._note_removed()
        events, self._events = self._events, []
        return events

    def _plan_running(self) -> list[tuple[Sequence, int]]:
        budget = self._sizes.max_batched_tokens
        work: list[tuple[Sequence, int]] = []
        for sequence in tuple(self._running):
            if sequence.state is not State.RUNNING:  # preempted for an earlier one
                continue
            missing = sequence.missing
            tokens = 1 if missing == 1 else min(missing, budget)  # the budget is for prompts alone
            if tokens == 0 or not self._grow(sequence, sequence.computed + tokens):
                continue
            if missing > 1:
                budget -= tokens
            work.append((sequence, tokens))
        return [(s, n) for s, n in work if s.state is State.RUNNING]

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        """Give the sequence blocks for ``tokens``, preempting others; False when it was itself preempted."""
        needed = -(-tokens // self._block) - sequence.held - sequence.private
        if needed <= 0:
            return True
        while not self.pool.room_for((), needed):
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        self._take(sequence, needed)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.state = State.WAITING
        sequence.computed = 0
        sequence.preemptions += 1
        self.statistics.preemptions += 1
        self._waiting.appendleft(sequence)

    def _admit(self, now_s: float, budget: int) -> list[tuple[Sequence, int]]:
        work: list[tuple[Sequence, int]] = []
        while self._waiting and budget > 0 and self._places() > 0:
            sequence = self._waiting[0]
            if not self._place(sequence, now_s):
                break  # first come, first served: who does not fit holds up the others
            self._waiting.popleft()
            if sequence.state is State.RUNNING:
                tokens = min(sequence.missing, budget)
                budget -= tokens
                work.append((sequence, tokens))
        return work

    def _places(self) -> int:
        return self._sizes.max_running - len(self._running) - len(self._transferring)

    def _place(self, sequence: Sequence, now_s: float) -> bool:
        """Give a waiting sequence its blocks and start it, or its transfer; False when there is no room."""
        total = len(sequence.tokens)
        # The last token is always computed, for its logits, even when all blocks are here.
        hits = min(self.pool.matching(sequence.names), (total - 1) // self._block)
        found = sequence.names[:hits]
        needed = -(-total // self._block) - hits
        if not self.pool.room_for(found, needed):
            return False
        self.pool.hold(found)
        sequence.held = hits
        self._take(sequence, needed)
        sequence.computed = hits * self._block
        if sequence.admitted_s < 0:
            sequence.admitted_s = now_s
            sequence.cached_tokens = sequence.computed
            prompt_tokens = len(sequence.prompt.tokens)
            sequence.created_tokens = prompt_tokens // self._block * self._block - sequence.computed
            sequence.external_tokens = prompt_tokens - sequence.computed if sequence.prompt.remote else 0
            self.statistics.admitted(sequence)
            if sequence.external_tokens:
                sequence.state = State.TRANSFERRING
                sequence.ready_s = now_s + sequence.external_tokens * self._speeds.transfer_token_s
                self._transferring.append(sequence)
                return True
        self._run(sequence)
        return True

    def _end_transfers(self, now_s: float) -> None:
        for sequence in [s for s in self._transferring if s.ready_s <= now_s]:
            self._transferring.remove(sequence)
            sequence.computed = len(sequence.tokens) - 1
            self._share_full_blocks(sequence)
            self._run(sequence)

    def _run(self, sequence: Sequence) -> None:
        sequence.state = State.RUNNING
        self._running.append(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Take the sequence out of wherever it is, and free its blocks."""
        if sequence.state is State.RUNNING:
            self._running.remove(sequence)
        elif sequence.state is State.TRANSFERRING:
            self._transferring.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self.pool.release(sequence.names[: sequence.held], sequence.private)
        sequence.held = sequence.private = 0

    def _take(self, sequence: Sequence, count: int) -> None:
        self.pool.take(count)
        sequence.private += count
        self._note_removed()

    def _name_blocks(self, sequence: Sequence) -> None:
        """Extend the chain of names to all full blocks of the sequence's tokens."""
        names, size, tokens = sequence.names, self._block, sequence.tokens
        parent = names[-1] if names else sequence.parent
        for start in range(len(names) * size, len(tokens) - size + 1, size):
            parent = block_pool.name_after(parent, tokens[start : start + size])
            names.append(parent)

    def _share_full_blocks(self, sequence: Sequence) -> None:
        """Name the blocks that are computed to their end."""
        full = sequence.computed // self._block
        if full > len(sequence.names):
            self._name_blocks(sequence)
        while sequence.held < full:
            new = self.pool.name(sequence.names[sequence.held])
            if new and self._record_events:
                self._note_stored(sequence, sequence.held)
            sequence.held += 1
            sequence.private -= 1

    def _note_stored(self, sequence: Sequence, index: int) -> None:
        start = index * self._block
        tokens = tuple(sequence.tokens[start : start + self._block])
        parent = sequence.names[index - 1] if index else None
        prompt = sequence.prompt
        self._events.append(BlockStored(sequence.names[index], parent, tokens, prompt.adapter, prompt.salt))

    def _note_removed(self) -> None:
        if self._record_events:
            self._events.extend(self.pool.removed)
        self.pool.removed.clear()


def kv_usage(engine: Engine) -> float:
    """Return the share of blocks in use, 0..1, as vLLM's gauge counts it (cache that may be evicted is free)."""
    return engine.pool.in_use / engine.pool.total
