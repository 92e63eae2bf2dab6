"""KV memory: what is pinned, what may be evicted, and that a cached block's prefix is cached."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.simulation.cache import BLOCK_TOKENS, PrefixCache, SharedBlocks, block, tokens

CAPACITY = 6 * BLOCK_TOKENS


def prompt(*serials: int) -> list[int]:
    return [block(serial, BLOCK_TOKENS) for serial in serials]


def run(cache: PrefixCache, blocks: list[int]) -> int:
    """Serve a prompt from admission to release; return the blocks that were found."""
    held = cache.match(blocks)
    cache.pin(blocks, held)
    cache.reserve(tokens(blocks[held:]))
    cache.keep(blocks, held)
    cache.unpin(blocks, 0)
    return held


def test_a_prompt_is_found_again() -> None:
    cache = PrefixCache(CAPACITY)
    assert run(cache, prompt(1, 2, 3)) == 0
    assert run(cache, prompt(1, 2, 4)) == 2
    assert (cache.pinned, cache.idle) == (0, 4 * BLOCK_TOKENS)


def test_the_least_recently_used_leaves_first_and_its_tail_before_its_head() -> None:
    cache = PrefixCache(CAPACITY)
    run(cache, prompt(1, 2, 3))
    run(cache, prompt(5, 6, 7))
    run(cache, prompt(8))
    assert cache.match(prompt(1, 2, 3)) == 2
    assert cache.match(prompt(5, 6, 7)) == 3


def test_running_requests_are_never_evicted() -> None:
    cache = PrefixCache(CAPACITY)
    running = prompt(1, 2, 3, 4)
    cache.reserve(tokens(running))
    cache.keep(running, 0)
    need = cache.need(prompt(5, 6, 7), 0, 3 * BLOCK_TOKENS)
    assert not cache.fits(need)
    assert cache.fits(2 * BLOCK_TOKENS)
    cache.unpin(running, 0)
    assert cache.fits(need)


def test_content_that_two_requests_compute_is_kept_once() -> None:
    cache = PrefixCache(CAPACITY)
    for _ in range(2):
        cache.reserve(BLOCK_TOKENS)
    cache.keep(prompt(1), 0)
    cache.keep(prompt(1), 0)
    assert cache.pinned == BLOCK_TOKENS
    cache.unpin(prompt(1), 0)
    assert (cache.pinned, cache.idle) == (BLOCK_TOKENS, 0)
    cache.unpin(prompt(1), 0)
    assert (cache.pinned, cache.idle) == (0, BLOCK_TOKENS)


def test_a_shared_cache_knows_what_any_engine_holds() -> None:
    shared = SharedBlocks()
    caches = [PrefixCache(2 * BLOCK_TOKENS, shared) for _ in range(2)]
    run(caches[0], prompt(1, 2))
    run(caches[1], prompt(1))
    assert shared.match(prompt(1, 2, 3)) == 2
    run(caches[0], prompt(7, 8))
    assert shared.match(prompt(1, 2, 3)) == 1
    run(caches[1], prompt(7, 8))
    assert shared.match(prompt(1)) == 0


#: Paths in a tree of content: equal beginnings, then other ends.
PATHS = st.lists(st.integers(0, 1), min_size=1, max_size=5).map(
    lambda path: [
        block(1 + sum((2 + turn) * 3**depth for depth, turn in enumerate(path[: n + 1])), 100) for n in range(len(path))
    ]
)


@settings(max_examples=200, derandomize=True)
@given(st.lists(st.tuples(PATHS, st.booleans()), max_size=40))
def test_nothing_leaks_and_prefixes_stay_whole(asked: list[tuple[list[int], bool]]) -> None:
    cache = PrefixCache(900)
    running: list[list[int]] = []
    for blocks, stays in asked:
        held = cache.match(blocks)
        assert held == next((n for n, each in enumerate(blocks) if cache.match([each]) == 0), len(blocks))
        need = cache.need(blocks, held, tokens(blocks[held:]))
        if not cache.fits(need):
            cache.unpin(running.pop(0), 0)
            continue
        cache.pin(blocks, held)
        cache.reserve(tokens(blocks[held:]))
        cache.keep(blocks, held)
        if stays:
            running.append(blocks)
        else:
            cache.unpin(blocks, 0)
        assert cache.pinned == tokens(list({each for one in running for each in one}))
        assert cache.pinned + cache.idle <= cache.capacity
    for blocks in running:
        cache.unpin(blocks, 0)
    assert cache.pinned == 0
