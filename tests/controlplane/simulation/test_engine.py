"""An engine's times, by hand and against one that takes every step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.simulation.engine import Engine
from controlplane.simulation.profile import G8B
from tests.controlplane.simulation.engines import ask, serve

approx = pytest.approx


def test_one_request_takes_what_the_formula_says() -> None:
    (job,) = serve(Engine(0, G8B), [(1.0, ask(1_000, 3))])
    first = 1.0 + 7e-3 + 1_000 * (40e-6 + 1.3e-9 * 500)
    second = 7e-3 + 20e-6 + 56e-9 * 1_001
    third = 7e-3 + 20e-6 + 56e-9 * 1_002
    assert job.first_s == approx(first)
    assert job.ended_s == approx(first + second + third)


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode() -> None:
    engine = Engine(0, G8B)
    short, long = serve(engine, [(0.0, ask(100, 5)), (0.001, ask(20_000, 1))])
    chunks = [8_191, 8_191, 20_000 - 2 * 8_191]
    done = 0
    at_s = short.first_s
    for number, size in enumerate(chunks):
        context = 101 + number
        at_s += 7e-3 + 20e-6 + 56e-9 * context + G8B.prefill_time(size, done)
        done += size
    assert long.first_s == approx(at_s)
    assert long.ended_s == long.first_s
    assert short.ended_s > long.first_s


def test_a_request_that_comes_in_a_span_waits_for_the_end_of_one_step_only() -> None:
    _, second = serve(Engine(0, G8B), [(0.0, ask(100, 1_000)), (1.0, ask(100, 1))])
    assert second.admitted_s - 1.0 < 8e-3
    assert second.first_s - second.admitted_s == approx(7e-3 + 4e-3, abs=1e-3)


def test_a_known_prefix_is_not_computed_again() -> None:
    engine = Engine(0, G8B)
    first = ask(6_000, 1)
    again = ask(6_100, 1, [*first.blocks, *ask(100, 1).blocks])
    one, two = serve(engine, [(0.0, first), (10.0, again)])
    assert (one.cached, two.cached) == (0, 6_000)
    assert two.first_s - 10.0 == approx(7e-3 + G8B.prefill_time(100, 6_000))


def test_the_last_token_of_a_prompt_that_is_all_known_is_computed() -> None:
    same = ask(1_024, 1)
    _, again = serve(Engine(0, G8B), [(0.0, same), (1.0, same)])
    assert again.cached == 1_023


def test_an_answer_is_known_to_the_next_turn() -> None:
    output = ask(300, 1).blocks
    first = ask(1_000, 300, kept=output)
    following = ask(1_400, 1, [*first.blocks, *output, *ask(100, 1).blocks])
    engine = Engine(0, G8B)
    _, again = serve(engine, [(0.0, first), (100.0, following)])
    assert again.cached == 1_300
    assert engine.cache.pinned == 0


def test_requests_wait_for_room_in_the_order_of_their_arrival() -> None:
    small = replace(G8B, kv_capacity_tokens=3_000)
    one, two, three = serve(Engine(0, small), [(0.0, ask(1_500, 500)), (0.1, ask(1_500, 100)), (0.2, ask(500, 100))])
    assert two.admitted_s == approx(one.ended_s)
    assert three.admitted_s >= two.admitted_s


def test_only_so_many_run_at_once() -> None:
    two = replace(G8B, max_running=2)
    jobs = serve(Engine(0, two), [(0.0, ask(100, 50)), (0.0, ask(100, 90)), (0.0, ask(100, 50))])
    assert jobs[2].admitted_s == approx(jobs[0].ended_s)


def test_all_counts_return_to_zero() -> None:
    engine = Engine(0, replace(G8B, kv_capacity_tokens=20_000))
    serve(engine, [(0.1 * number, ask(100 + 700 * (number % 9), 1 + 37 * (number % 5))) for number in range(60)])
    assert (engine.in_flight, engine.outlook, engine.running, engine.context, engine.cache.pinned) == (0, 0, 0, 0, 0)
    assert engine.waiting_s == approx(0.0, abs=1e-6)


class Stepwise(Engine):
    """The same engine without jumps: every step is an event."""

    __slots__ = ()

    def _begin(self, now_s: float) -> None:
        super()._begin(now_s)
        if not self._chunked and self._span > 1:
            self._span = 1
            self.due_s = now_s + self._span_s(1)

    def _cut(self, now_s: float) -> None:
        """Every step ends a span."""


REQUESTS = st.lists(
    st.tuples(st.integers(0, 400), st.integers(1, 12_000), st.integers(1, 400)), min_size=1, max_size=25
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(REQUESTS)
def test_jumping_over_steps_changes_nothing(drawn: list[tuple[int, int, int]]) -> None:
    profile = replace(G8B, kv_capacity_tokens=40_000, max_running=6)
    at_s = 0.0
    asked = []
    for gap_ms, prompt, output in drawn:
        at_s += gap_ms * 1e-3 + 1e-5
        asked.append((at_s, ask(prompt, output)))
    jumped = serve(Engine(0, profile), asked)
    stepped = serve(Stepwise(0, profile), asked)
    for one, other in zip(jumped, stepped, strict=True):
        assert one.first_s == approx(other.first_s, abs=1e-6)
        assert one.ended_s == approx(other.ended_s, abs=1e-6)
