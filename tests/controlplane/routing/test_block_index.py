"""The exact block index against a naive model, and what it ignores."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.routing.block_events import Cleared, EngineHash, Outcome, Removed, Stored, Tier, as_tokens
from controlplane.routing.block_index import TIER_WEIGHTS, BlockIndex

SERVERS = (b"a-0.g1", b"a-1.g2", b"a-2.g3", b"b-0.g4")
BLOCK = {b"a-0.g1": 4, b"a-1.g2": 4, b"a-2.g3": 4, b"b-0.g4": 2}


def stored(tokens: list[int], size: int = 4, parent: int | None = None, first: int = 1, **more: Any) -> Stored:
    """Blocks whose engine hashes are ``first``, ``first`` + 1, ..."""
    names: tuple[EngineHash, ...] = tuple(range(first, first + len(tokens) // size))
    return replace(Stored(names, parent, as_tokens(tokens), size), **more)


@dataclass
class Naive:
    """For each replica: (tier, contents of a prompt up to a block's end) -> how often it is there."""

    held: dict[bytes, dict[tuple[Tier, tuple[int, ...]], int]] = field(default_factory=dict)

    def lookup(self, tokens: list[int]) -> dict[bytes, int]:
        found = {}
        for server, held in self.held.items():
            size, weight, end = BLOCK[server], 0.0, BLOCK[server]
            while end <= len(tokens):
                tiers = [tier for tier in Tier if held.get((tier, tuple(tokens[:end])))]
                if not tiers:
                    break
                weight += TIER_WEIGHTS[tiers[0]] * size
                end += size
            if weight:
                found[server] = int(weight)
        return found


#: Prompts over two tokens share beginnings often.
PROMPTS = st.lists(st.integers(0, 1), min_size=0, max_size=16)
STEPS = st.lists(
    st.tuples(st.sampled_from(SERVERS), st.sampled_from(["store", "remove", "move", "clear", "leave"]), PROMPTS,
              st.sampled_from(Tier), st.integers(0, 3)),
    max_size=40,
)  # fmt: skip


class Engines:
    """Gives each replica events as an engine with its own hashes would, and keeps the naive model."""

    def __init__(self) -> None:
        self.index = BlockIndex()
        self.naive = Naive()
        self.names: dict[tuple[bytes, tuple[int, ...]], int] = {}
        for server in SERVERS:
            self.join(server)

    def join(self, server: bytes) -> None:
        self.index.join(server)
        self.naive.held[server] = {}

    def name(self, server: bytes, content: tuple[int, ...]) -> int:
        return self.names.setdefault((server, content), 1000 + len(self.names))

    def step(self, server: bytes, action: str, prompt: list[int], tier: Tier, skip: int) -> None:
        size, held = BLOCK[server], self.naive.held[server]
        ends = [tuple(prompt[:end]) for end in range(size, len(prompt) + 1, size)]
        event: Stored | Removed | Cleared
        if action == "leave":
            self.index.leave(server)
            self.join(server)
            return
        if action == "clear":
            event = Cleared()
            held.clear()
        elif action == "store":
            skip = min(skip, len(ends))
            parent = ends[skip - 1] if skip else None
            known = parent is None or any(held.get((t, parent)) for t in Tier)
            names = tuple(self.name(server, end) for end in ends[skip:])
            tokens = as_tokens(prompt[skip * size : len(ends) * size])
            event = Stored(names, self.name(server, parent) if parent else None, tokens, size, tier)
            for end in ends[skip:] if known else ():
                held[tier, end] = held.get((tier, end), 0) + 1
        elif action == "move":
            event = Stored(tuple(self.name(server, end) for end in ends), None, as_tokens(()), 0, tier)
            for end in ends:
                if any(held.get((t, end)) for t in Tier):
                    held[tier, end] = held.get((tier, end), 0) + 1
        else:
            event = Removed(tuple(self.name(server, end) for end in ends[skip:]), tier)
            for end in ends[skip:]:
                if held.get((tier, end)):
                    held[tier, end] -= 1
        assert self.index.apply(server, self.index.expected(server), [event]) is Outcome.APPLIED


@given(steps=STEPS, prompts=st.lists(PROMPTS, min_size=1, max_size=4))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_a_lookup_is_what_a_naive_model_says(
    steps: list[tuple[bytes, str, list[int], Tier, int]], prompts: list[list[int]]
) -> None:
    engines = Engines()
    for step in steps:
        engines.step(*step)
        for prompt in prompts:
            assert engines.index.lookup(as_tokens(prompt)) == engines.naive.lookup(prompt)
    expected = sum(bool(count) for held in engines.naive.held.values() for count in held.values())
    assert len(engines.index) == expected
    for server in SERVERS:
        engines.index.leave(server)
    assert len(engines.index) == 0
    assert not any(engines.index._masks) and not engines.index._sizes


def test_the_best_holder_comes_first_and_lower_tiers_weigh_less() -> None:
    index = BlockIndex()
    for server in SERVERS[:3]:
        index.join(server, block_tokens=4)
    index.apply(SERVERS[0], 0, [stored([1] * 4)])
    index.apply(SERVERS[1], 0, [stored([1] * 12)])
    index.apply(SERVERS[2], 0, [stored([1] * 12, tier=Tier.HOST)])
    found = index.lookup(as_tokens([1] * 15))
    assert list(found.items()) == [(SERVERS[1], 12), (SERVERS[2], 9), (SERVERS[0], 4)]


def test_adapters_salts_and_media_keep_prompts_apart() -> None:
    index = BlockIndex()
    index.join(SERVERS[0])
    tokens = [5] * 8
    apart: list[dict[str, Any]] = [{"adapter": "lora"}, {"salt": "tenant"}, {"extras": (b"", b"picture")}]
    for number, more in enumerate(apart):
        index.apply(SERVERS[0], number, [stored(tokens, first=10 * number, **more)])
    asked = as_tokens(tokens)
    assert index.lookup(asked, "lora") == index.lookup(asked, "", "tenant") == {SERVERS[0]: 8}
    assert index.lookup(asked) == {SERVERS[0]: 4}
    assert index.lookup(asked, "lora", "tenant") == {}


def test_a_hole_ends_the_run_and_what_comes_back_continues_it() -> None:
    index = BlockIndex()
    index.join(SERVERS[0])
    index.apply(SERVERS[0], 0, [stored([1] * 16)])
    index.apply(SERVERS[0], 1, [Removed((2,))])
    assert index.lookup(as_tokens([1] * 16)) == {SERVERS[0]: 4}
    index.apply(SERVERS[0], 2, [stored([1] * 4, parent=1, first=2)])
    assert index.lookup(as_tokens([1] * 16)) == {SERVERS[0]: 16}


def test_a_block_computed_twice_is_there_until_both_copies_are_gone() -> None:
    index = BlockIndex()
    index.join(SERVERS[0])
    index.apply(SERVERS[0], 0, [stored([1] * 4), stored([1] * 4), stored([1] * 4)])
    for number, there in ((1, True), (2, True), (3, False)):
        index.apply(SERVERS[0], number, [Removed((1,))])
        assert bool(index.lookup(as_tokens([1] * 4))) is there
    assert len(index) == 0


def test_numbers_that_do_not_follow_are_not_applied() -> None:
    index = BlockIndex()
    assert index.apply(b"nobody.g1", 0, [stored([1] * 4)]) is Outcome.UNKNOWN
    index.join(SERVERS[0])
    assert index.apply(SERVERS[0], 1, [stored([1] * 4)]) is Outcome.GAP
    assert index.apply(SERVERS[0], 0, [stored([1] * 4)]) is Outcome.APPLIED
    assert index.apply(SERVERS[0], 0, [Cleared()]) is Outcome.OLD
    assert index.lookup(as_tokens([1] * 4)) and index.expected(SERVERS[0]) == 1
    index.restart(SERVERS[0], 7)
    assert (len(index), index.expected(SERVERS[0]), index.complete(SERVERS[0])) == (0, 7, False)
    index.apply(SERVERS[0], 7, [Cleared()])
    assert index.complete(SERVERS[0])
    counters = index.counters
    assert (counters.unknown_replicas, counters.gaps, counters.old, counters.losses) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    "event",
    [
        stored([1] * 8, size=2),  # another size than the replica's own
        Stored((1, 2), None, as_tokens([1] * 4), 4),  # more blocks than tokens
        stored([1] * 4, parent=99),
        Stored((9,), None, as_tokens(()), 0, Tier.HOST),
        Removed((9,)),
        stored([1] * 4, group=3, full_attention=False),
        stored([2] * 4),  # the name of another block
    ],
)
def test_what_cannot_be_is_counted_and_ignored(event: Stored | Removed) -> None:
    index = BlockIndex()
    index.join(SERVERS[0], block_tokens=4)
    index.apply(SERVERS[0], 0, [stored([1] * 4)])
    index.apply(SERVERS[0], 1, [event])
    counters = index.counters
    ignored = (counters.impossible, counters.unknown_parents, counters.unknown_blocks, counters.other_groups)
    assert sum(ignored) == 1
    assert (index.lookup(as_tokens([1] * 4)), len(index)) == ({SERVERS[0]: 4}, 1)


def test_removals_of_a_window_cache_are_not_the_prompts() -> None:
    index = BlockIndex()
    index.join(SERVERS[0])
    index.apply(SERVERS[0], 0, [stored([1] * 4, group=0), stored([1] * 4, group=1, full_attention=False)])
    index.apply(SERVERS[0], 1, [Removed((1,), group=1)])
    assert index.lookup(as_tokens([1] * 4)) == {SERVERS[0]: 4}


def test_what_does_not_fit_is_left_out_with_all_that_follows() -> None:
    index = BlockIndex(capacity=512)
    for server in SERVERS[:2]:
        index.join(server, block_tokens=4)
    long = [1] * 4 * 300
    index.apply(SERVERS[0], 0, [stored(long)])
    assert (len(index), index.counters.refused) == (256, 44)
    assert not index.complete(SERVERS[0])
    assert index.lookup(as_tokens(long)) == {SERVERS[0]: 4 * 256}
    index.apply(SERVERS[0], 1, [Removed(tuple(range(200, 260)))])
    index.apply(SERVERS[0], 2, [stored([1] * 4, parent=199, first=200)])
    assert index.lookup(as_tokens(long)) == {SERVERS[0]: 4 * 200}


def test_of_many_equal_holders_others_are_told_each_time() -> None:
    index = BlockIndex(max_holders=8)
    servers = [b"p-%d.g1" % number for number in range(32)]
    for server in servers:
        index.join(server)
        index.apply(server, 0, [stored([1] * 4)])
    index.apply(servers[5], 1, [stored([1] * 4, parent=1, first=2)])
    told: set[bytes] = set()
    for _ in range(32):
        found = index.lookup(array("I", [1] * 8))
        assert len(found) == 8 and next(iter(found)) == servers[5]
        told |= set(found)
    assert told == set(servers)


@given(st.lists(st.integers(0, 8) | st.just(-1), max_size=40))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_batches_are_applied_once_each_and_in_order(numbers: list[int]) -> None:
    """Batch n stores block n of a chain; -1: the next one that is expected, as a replay brings it."""
    index = BlockIndex()
    index.join(SERVERS[0])
    applied = 0
    for given_number in numbers:
        number = applied if given_number < 0 else given_number
        event = stored([1] * 4, parent=number if number else None, first=number + 1)
        outcome = index.apply(SERVERS[0], number, [event])
        expected = Outcome.APPLIED if number == applied else Outcome.OLD if number < applied else Outcome.GAP
        assert outcome is expected
        applied += outcome is Outcome.APPLIED
        assert index.lookup(as_tokens([1] * 400)).get(SERVERS[0], 0) == 4 * applied
    counters = index.counters
    assert (counters.batches, index.expected(SERVERS[0])) == (applied, applied)
    assert counters.batches + counters.old + counters.gaps == len(numbers)
