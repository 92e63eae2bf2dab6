"""What holds for any sequence of arrivals, departures and releases."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.routing.admission.counts import Shed
from controlplane.routing.admission.settings import PRIORITIES
from controlplane.routing.admission.waiter import Waiter
from tests.controlplane.routing.admission.waiters import always, queue

_arrive = st.tuples(
    st.just("arrive"),
    st.integers(0, 40),
    st.sampled_from(("a", "b", "c", "d")),
    st.integers(0, len(PRIORITIES) - 1),
    st.integers(0, 300),
    st.integers(0, 50),
)
_steps = st.lists(
    st.one_of(
        _arrive,
        _arrive,
        st.tuples(st.just("leave"), st.integers(0, 40)),
        st.tuples(st.just("release"), st.integers(0, 4)),
        st.tuples(st.just("pass"), st.floats(-1.0, 3.0)),
    ),
    max_size=120,
)


@given(_steps)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_bounds_hold_and_everybody_leaves_exactly_once(steps: list[tuple[object, ...]]) -> None:
    line = queue(max_requests=10, max_tokens=1500, tenant_requests=4, tenant_tokens=700, timeouts_s=(2.0, 4.0, 6.0))
    now_s = 100.0
    inside: dict[Waiter[None], None] = {}
    left: Counter[Waiter[None]] = Counter()

    def leave(*gone: Waiter[None]) -> None:
        for one in gone:
            left[one] += 1
            del inside[one]  # and so: it was inside

    for step in steps:
        match step:
            case "arrive", int(name), str(tenant), int(priority), int(tokens), int(output):
                request_id = str(name).encode()
                before = [one for one in inside if one.request_id == request_id]
                one: Waiter[None] = Waiter(request_id, tenant.encode(), priority, tokens, output, now_s, None)
                arrival = line.arrive(one, now_s)
                leave(*before, *arrival.displaced)
                assert all(other.priority > priority for other in arrival.displaced)
                if arrival.shed is None:
                    inside[one] = None
                else:
                    assert arrival.retry_after_s >= 1 and not arrival.displaced
            case "leave", int(name):
                request_id = str(name).encode()
                found = [one for one in inside if one.request_id == request_id]
                assert line.cancel(request_id) == bool(found)
                leave(*found)
            case "release", int(room):
                waiting = len(line)
                gone = line.release(always, now_s, room)
                assert len(gone) == min(room, waiting)  # work conserving
                leave(*gone)
            case "pass", float(seconds):
                now_s += seconds
                late = line.expire(now_s)
                leave(*late)
                assert all(one.deadline_s <= now_s for one in late)
                assert all(one.deadline_s > now_s for one in inside)
        assert len(line) == len(inside) <= 10
        assert line.tokens == sum(one.tokens for one in inside) <= 1500
        held = Counter((one.priority, one.tenant) for one in inside)
        assert all(count <= 4 for count in held.values())
        assert [depth[0] for depth in line.depths()] == [
            sum(one.priority == priority for one in inside) for priority in range(len(PRIORITIES))
        ]
        assert (line.head() in inside) == bool(inside)
    leave(*line.release(always, now_s, 100))
    assert not inside and not line and line.tokens == 0 and line.depths() == ((0, 0),) * 3
    assert set(left.values()) <= {1}
    for counts in line.counts:
        assert counts.waited == counts.released + counts.left + counts.shed[Shed.TIMEOUT] + counts.shed[Shed.DISPLACED]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 1000)), min_size=30, max_size=200),
    st.tuples(*[st.sampled_from((0.5, 1.0, 2.0, 5.0))] * 3),
)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_tokens_are_shared_by_weight_within_one_request_of_each(
    requests: list[tuple[int, int]], weights: tuple[float, float, float]
) -> None:
    named = {str(tenant).encode(): weight for tenant, weight in enumerate(weights)}
    line = queue(weights=named)
    waiting: Counter[bytes] = Counter()
    largest: Counter[bytes] = Counter()
    for tenant, tokens in requests:
        name = str(tenant).encode()
        line.arrive(Waiter(str(len(line)).encode(), name, 1, tokens, 0, 0.0, None), 0.0)
        waiting[name] += 1
        largest[name] = max(largest[name], tokens)
    got: Counter[bytes] = Counter()
    while all(waiting[name] > 0 for name in largest):
        (gone,) = line.release(always, 0.0, 1)
        got[gone.tenant] += gone.cost
        waiting[gone.tenant] -= 1
        for one in largest:
            for other in largest:
                apart = got[one] / named[one] - got[other] / named[other]
                assert apart <= largest[one] / named[one] + largest[other] / named[other] + 1e-6


@given(
    st.lists(st.integers(1, 1000), min_size=60, max_size=120),
    st.integers(1, 1000),
    st.sampled_from((0.05, 0.1, 0.3)),
)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_no_priority_starves(urgent: list[int], cost: int, share: float) -> None:
    line = queue(guaranteed_share=share)
    line.arrive(Waiter(b"low", b"t", 2, cost, 0, 0.0, None), 0.0)
    for number, tokens in enumerate(urgent):
        line.arrive(Waiter(str(number).encode(), b"t", 0, tokens, 0, 0.0, None), 0.0)
    passed = 0
    while b"low" in line:
        (gone,) = line.release(always, 0.0, 1)
        if gone.request_id != b"low":
            passed += gone.cost
    assert passed <= cost / share + max(urgent)
