from __future__ import annotations

import random

import pytest

from controlplane.routing.rates import MAX_DRIFT, Hints, Rates

HINTS = Hints(prefill_tokens_per_s=20_000.0, attention_tokens=1e9, step_s=0.008, sequence_s=20e-6, context_s=50e-9)


@pytest.mark.parametrize("truth", [2_000.0, 10_000.0, 40_000.0, 200_000.0])
def test_prefill_speed_is_learned_from_any_hint_although_most_prefills_share_their_steps(truth: float) -> None:
    rates = Rates(HINTS)
    draw = random.Random(1)
    for _ in range(200):
        shared = draw.choice([1.0, 1.0, 1.2, 1.5, 3.0])
        rates.saw_prefill(8_000, 0, 8_000 / truth * shared)
    assert truth * 0.7 < rates.prefill_tokens_per_s < truth * 1.15


def test_one_wild_sample_moves_little() -> None:
    rates = Rates(HINTS)
    for _ in range(100):
        rates.saw_prefill(8_000, 0, 0.4)
    before = rates.prefill_tokens_per_s
    rates.saw_prefill(8_000, 0, 1e-6)
    rates.saw_prefill(8_000, 0, 4_000.0)
    assert before / 1.2 < rates.prefill_tokens_per_s < before * 1.2


def test_what_says_nothing_of_speed_is_left_out() -> None:
    rates = Rates(HINTS)
    rates.saw_prefill(10, 0, 5.0)
    rates.saw_prefill(10_000, 0, 0.0)
    rates.saw_decode(2, 5.0, 1, 100)
    rates.saw_decode(200, -1.0, 1, 100)
    assert rates.prefill_tokens_per_s == HINTS.prefill_tokens_per_s
    assert rates.decode_factor == 1.0


def test_decode_factor_follows_the_engine_and_is_bounded() -> None:
    rates = Rates(HINTS)
    for _ in range(100):
        rates.saw_decode(100, 100 * 3.0 * rates.step_s(10, 50_000) / rates.decode_factor, 10, 50_000)
    assert rates.decode_factor == pytest.approx(3.0, rel=0.05)
    for _ in range(1_000):
        rates.saw_decode(100, 1e9, 10, 50_000)
    assert rates.decode_factor == MAX_DRIFT


def test_better_hints_do_not_undo_what_was_learned() -> None:
    rates = Rates(HINTS)
    other = Hints(40_000.0, 1e9, 0.016, 0.0, 0.0)
    rates.hint(other)
    assert rates.prefill_tokens_per_s == 40_000.0
    for _ in range(50):
        rates.saw_prefill(8_000, 0, 8.0)
        rates.saw_decode(100, 1.6, 1, 0)
    learned, step = rates.prefill_tokens_per_s, rates.step_s(1, 0)
    rates.hint(Hints(99_000.0, 1e9, 0.004, 0.0, 0.0))
    assert rates.prefill_tokens_per_s == learned
    assert rates.step_s(1, 0) == pytest.approx(step)


def test_long_contexts_do_not_make_an_engine_look_slow() -> None:
    rates = Rates(Hints(20_000.0, 30_000.0, 0.008, 20e-6, 50e-9))
    for _ in range(100):
        rates.saw_prefill(1_000, 29_500, 1_000 * 2.0 / 20_000.0)
    assert rates.prefill_tokens_per_s == pytest.approx(20_000.0, rel=0.01)
    assert rates.work(1_000, 29_500) == 2_000
