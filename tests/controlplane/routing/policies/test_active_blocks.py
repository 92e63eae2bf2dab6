from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.routing.load import BLOCK_BYTES
from controlplane.routing.policies.active_blocks import MAX_PROMPTS, ActiveBlocks, chained
from tests.controlplane.routing import worlds
from tests.controlplane.routing.policies.fleet import common


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    script=st.lists(st.one_of(st.lists(st.integers(0, 1), max_size=5), st.integers(0, 6)), max_size=30),
    asked=st.lists(st.integers(0, 1), max_size=5),
)
def test_each_distinct_block_counts_once(script: list[list[int] | int], asked: list[int]) -> None:
    active = ActiveBlocks()
    prompts: list[list[int]] = []
    for step in script:
        if isinstance(step, int):
            active.keep(step)
            prompts = prompts[max(0, len(prompts) - step) :]
        else:
            active.add(chained(worlds.chain(step)), 7)
            prompts.append(step)
        distinct = {tuple(prompt[: number + 1]) for prompt in prompts for number in range(len(prompt))}
        assert active.size == len(distinct) * BLOCK_BYTES + 7 * len(prompts)
        assert active.length == len(prompts)
    longest = max((common(asked, prompt) for prompt in prompts), default=0)
    assert active.shared(chained(worlds.chain(asked))) == longest * BLOCK_BYTES


def test_the_same_block_elsewhere_is_another() -> None:
    assert chained(worlds.chain(["A", "B"]))[1] != chained(worlds.chain(["C", "B"]))[1]
    assert chained(worlds.chain(["A", "A"]))[0] != chained(worlds.chain(["A", "A"]))[1]


def test_what_is_remembered_is_bounded() -> None:
    active = ActiveBlocks()
    for number in range(3 * MAX_PROMPTS):
        active.add([number], 1)
    assert active.length == MAX_PROMPTS
    assert len(active.counts) == MAX_PROMPTS
    active.keep(0)
    assert active.size == 0
    assert not active.counts
