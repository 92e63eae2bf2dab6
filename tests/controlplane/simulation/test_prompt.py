"""Prompts in the engine's blocks and in the router's."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.simulation.cache import tokens
from controlplane.simulation.prompt import ROUTER_BLOCKS, ROUTER_TOKENS, Contents, Text, router_hashes


def common(one: bytes, other: bytes) -> int:
    """Return how many first hashes are equal."""
    count = min(len(one), len(other)) // 8
    return next((n for n in range(count) if one[8 * n : 8 * n + 8] != other[8 * n : 8 * n + 8]), count)


def test_shared_tokens_are_shared_router_blocks() -> None:
    contents = Contents()
    prefix = contents.new(6_000)
    one, other = (router_hashes([*prefix, *contents.new(1_200)]) for _ in range(2))
    assert len(one) == 8 * -(-7_200 // ROUTER_TOKENS)
    assert common(one, other) == 6_000 // ROUTER_TOKENS


def test_a_prompt_that_grows_keeps_its_full_blocks() -> None:
    contents = Contents()
    text = Text()
    text.add(contents.new(2_500))
    before = text.hashes()
    assert len(before) == 8 * 3
    text.add(contents.new(2_000))
    assert common(before, text.hashes()) == 2


def test_the_router_sees_only_the_beginning() -> None:
    assert len(router_hashes(Contents().new((ROUTER_BLOCKS + 5) * ROUTER_TOKENS))) == 8 * ROUTER_BLOCKS


@settings(max_examples=100, derandomize=True)
@given(st.lists(st.integers(1, 3_000), min_size=1, max_size=20))
def test_the_same_content_hashes_alike_however_it_was_put_together(sizes: list[int]) -> None:
    contents = Contents()
    parts = [contents.new(size) for size in sizes]
    whole = router_hashes([number for part in parts for number in part])
    text = Text()
    for part in parts:
        branch = text.copy()
        branch.add(Contents(1 << 40).new(777))
        text.add(part)
    assert text.hashes() == whole
    assert text.tokens == sum(sizes) == tokens(text.blocks)
