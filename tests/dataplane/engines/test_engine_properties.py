"""Whatever comes, in whatever order: the engine never overcommits, finishes everything, and leaks nothing."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engines.simulated import text
from dataplane.engines.simulated.engine import Engine, Sizes, Speeds
from dataplane.engines.simulated.sequence import Prompt, Sequence, State
from dataplane.engines.simulated.statistics import Statistics

KV_TOKENS, BLOCK = 96, 4
#: Far more steps than any of these workloads needs.
MAX_STEPS = 5_000

moves = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "step", "step", "abort"]),
        st.integers(1, 40),  # prompt tokens, or which sequence to abort
        st.integers(0, 40),  # answer tokens
        st.integers(0, 2),  # prompts that begin alike
        st.booleans(),  # KV from a peer
    ),
    max_size=40,
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(moves, st.integers(1, 32), st.integers(1, 6))
def test_all_end_and_nothing_leaks(
    given_moves: list[tuple[str, int, int, int, bool]], batched: int, places: int
) -> None:
    engine = Engine(
        Speeds(0.01, 1e-4, 1e-4, 1e-3), Sizes(batched, places, KV_TOKENS, BLOCK), Statistics(), record_events=True
    )
    sequences: list[Sequence] = []
    now = 0.0
    for kind, size, answer, family, remote in given_moves:
        if kind == "submit":
            tokens = array("I", (family * 1000 + i for i in range(size)))
            sequences.append(engine.submit(Prompt(tokens, answer, remote=remote), now))
        elif kind == "abort" and sequences:
            engine.abort(sequences[size % len(sequences)])
        else:
            now = _step(engine, now, places)
    for _ in range(MAX_STEPS):
        if not (engine.running or engine.waiting or engine.transferring):
            break
        now = _step(engine, now, places)
    for sequence in sequences:
        assert sequence.state in (State.FINISHED, State.ABORTED)
        if sequence.state is State.FINISHED:
            said = sequence.tokens[len(sequence.prompt.tokens) :].tolist()
            assert said == [text.token(text.piece(sequence.seed, i)) for i in range(sequence.prompt.max_tokens)]
    assert engine.pool.in_use == 0
    assert engine.reset_prefix_cache()


def _step(engine: Engine, now: float, places: int) -> float:
    step = engine.start_step(now)
    assert engine.running + engine.transferring <= places
    assert engine.pool.in_use + engine.pool.cached <= engine.pool.total
    if step is None:
        return engine.next_ready_s() or now
    engine.finish_step(step, now + step.duration_s)
    engine.take_events()
    return now + step.duration_s
