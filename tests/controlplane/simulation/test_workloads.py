"""Workloads: in the order of time, the same for the same seed, shaped as they say."""

from __future__ import annotations

from itertools import pairwise

import pytest

from controlplane.simulation.prompt import ROUTER_TOKENS, Ask
from controlplane.simulation.replayed import Replayed
from controlplane.simulation.synthetic import Agentic, Conversations, SharedPrefix
from controlplane.simulation.trace import Row
from controlplane.simulation.workload import Workload

ROWS = [
    Row(0.0, 1_500, 10, (0, 1, 2)),
    Row(3.0, 1_500, 10, (0, 3, 4)),
    Row(6.0, 2_000, 10, (0, 1, 5, 6)),
    Row(9.0, 2_500, 10, (0, 1, 5, 7, 8)),
]


def asked(workload: Workload) -> list[Ask]:
    return list(workload.arrivals())


def told(asks: list[Ask]) -> list[tuple[float, int, int, bytes, bytes]]:
    return [(ask.at_s, ask.prompt_tokens, ask.output_tokens, ask.hashes, ask.session) for ask in asks]


@pytest.mark.parametrize("made", [SharedPrefix, Conversations])
def test_arrivals_are_in_order_and_follow_the_seed_and_the_rate(made: type[SharedPrefix] | type[Conversations]) -> None:
    asks = asked(made(5.0, 400.0, 1))
    times = [ask.at_s for ask in asks]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < 400
    assert len(asks) == pytest.approx(2_000, rel=0.15)
    assert told(asked(made(5.0, 400.0, 1))) == told(asks)
    assert told(asked(made(5.0, 400.0, 2))) != told(asks)


def test_groups_share_their_prefix_and_nothing_else() -> None:
    asks = asked(SharedPrefix(20.0, 60.0, groups=2))
    blocks = 6_000 // ROUTER_TOKENS
    assert len({ask.hashes[: 8 * blocks] for ask in asks}) == 2
    assert len({ask.hashes for ask in asks}) == len(asks)
    assert {(ask.prompt_tokens, ask.output_tokens) for ask in asks} == {(7_200, 1_000)}
    assert {ask.session for ask in asks} == {b"x-session-id=0", b"x-session-id=1"}


def test_a_conversation_goes_on_from_its_own_text() -> None:
    asks = asked(Conversations(5.0, 600.0))
    by_session: dict[bytes, list[Ask]] = {}
    for ask in asks:
        by_session.setdefault(ask.session, []).append(ask)
    longer = [turns for turns in by_session.values() if len(turns) > 1]
    assert longer
    for turns in longer:
        for before, after in pairwise(turns):
            known = [*before.blocks, *before.kept]
            assert list(after.blocks[: len(known)]) == known


def test_agents_go_on_when_they_are_answered() -> None:
    workload = Agentic(3, 100.0, 1)
    first = asked(workload)
    assert [ask.user for ask in first] == [0, 1, 2]
    shared = first[0].blocks[:46]
    assert all(ask.blocks[:46] == shared for ask in first)
    ask = first[0]
    turns = 0
    for _ in range(60):
        following = workload.answered(ask, ask.at_s + 1.0)
        if following is None:
            break
        assert following.at_s > ask.at_s + 1.0
        if following.session == ask.session:
            turns += 1
            known = (*ask.blocks, *ask.kept)
            assert following.blocks[: len(known)] == known
        ask = following
    else:
        pytest.fail("the workload has no end")
    assert turns
    assert following is None


def test_an_agent_says_the_same_whatever_the_order_of_answers() -> None:
    one, other = Agentic(2, 100.0, 7), Agentic(2, 100.0, 7)
    a, b = asked(one)
    c, d = asked(other)
    after_a, after_b = one.answered(a, 5.0), one.answered(b, 5.0)
    after_d, after_c = other.answered(d, 5.0), other.answered(c, 5.0)
    assert after_a is not None
    assert after_b is not None
    assert after_c is not None
    assert after_d is not None
    assert told([after_a, after_b]) == told([after_c, after_d])


def test_a_trace_is_replayed_faster_and_in_copies_of_their_own() -> None:
    assert [ask.at_s for ask in asked(Replayed(ROWS, 3.0))] == [0.0, 1.0, 2.0, 3.0]
    asks = asked(Replayed(ROWS, 1.0, 3))
    assert len(asks) == 12
    assert [ask.at_s for ask in asks] == sorted(ask.at_s for ask in asks)
    # All prompts begin with the same system prompt; what follows belongs to one copy.
    assert len({ask.blocks[0] for ask in asks}) == 1
    content = [tuple(ask.blocks[1:]) for ask in asks]
    assert len(set(content)) == 12
    assert sum(ask.prompt_tokens for ask in asks) == 3 * 7_500


def test_a_block_of_a_trace_knows_its_tokens() -> None:
    (ask,) = asked(Replayed([Row(0.0, 1_100, 1, (4,))]))
    assert [number & 1023 for number in ask.blocks] == [512, 512, 76]


def test_what_no_id_tells_of_is_shared_with_nothing() -> None:
    one, other = asked(Replayed([Row(0.0, 1_500, 1, (4,)), Row(1.0, 1_500, 1, (4,))]))
    assert one.blocks[0] == other.blocks[0]
    assert not set(one.blocks[1:]) & set(other.blocks[1:])
    (small,) = asked(Replayed([Row(0.0, 150, 1, (4, 5, 6), 64)]))
    assert [number & 1023 for number in small.blocks] == [64, 64, 22]


def test_sessions_of_a_trace_follow_what_prompts_go_on_from() -> None:
    sessions = [ask.session for ask in asked(Replayed(ROWS))]
    assert sessions[0] != sessions[1]
    assert sessions[2] == sessions[3]
