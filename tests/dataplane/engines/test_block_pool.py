"""Properties of the block pool."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engines.simulated.block_pool import BlockPool

TOTAL = 8


def test_least_recently_used_goes_first_and_of_one_sequence_its_tail() -> None:
    pool = BlockPool(4)
    for names in ((1, 2), (3, 4)):
        pool.take(2)
        for name in names:
            pool.name(name)
        pool.release(names, 0)
    pool.hold((1,))
    pool.release((1,), 0)
    pool.take(3)
    assert [event.name for event in pool.removed] == [2, 4, 3]
    assert pool.matching([1, 2]) == 1


def test_a_held_block_is_never_evicted() -> None:
    pool = BlockPool(2)
    pool.take(1)
    pool.name(1)
    assert not pool.room_for((), 2)
    assert pool.room_for((), 1)
    pool.take(1)
    assert pool.removed == []


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_never_more_than_total_and_nothing_leaks(moves: list[tuple[int, int, int]]) -> None:
    """Sequences take chains of blocks ``chain, 1..n``, name some of them, and leave in any order."""
    pool = BlockPool(TOTAL)
    live: list[tuple[list[int], int]] = []
    for chain, length, leave in moves:
        names = [chain * 10 + i for i in range(length)]
        hits = pool.matching(names)
        if pool.room_for(names[:hits], length - hits + 1):
            pool.hold(names[:hits])
            pool.take(length - hits + 1)
            for name in names[hits:]:
                pool.name(name)
            live.append((names, 1))
        assert pool.in_use + pool.cached <= TOTAL
        if leave < len(live):
            pool.release(*live.pop(leave))
    for names, private in live:
        pool.release(names, private)
    assert pool.in_use == 0
    assert pool.clear()
    assert pool.cached == 0
