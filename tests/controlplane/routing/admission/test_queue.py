"""The queue of one model: order, bounds, deadlines."""

from __future__ import annotations

from controlplane.routing.admission.counts import Shed
from controlplane.routing.admission.settings import HIGH, LOW, NORMAL
from tests.controlplane.routing.admission.waiters import always, queue, waiter


def test_urgent_ones_overtake() -> None:
    line = queue(guaranteed_share=0.0)
    low, normal, high = waiter(priority=LOW), waiter(), waiter(priority=HIGH)
    for one in (low, normal, high):
        assert line.arrive(one, 0.0).shed is None
    assert line.release(always, 1.0, 10) == [high, normal, low]
    assert not line and line.depths() == ((0, 0),) * 3


def test_tenants_share_by_weight() -> None:
    line = queue(weights={b"big": 3.0})
    for _ in range(100):
        line.arrive(waiter("big"), 0.0)
        line.arrive(waiter("small"), 0.0)
    gone = line.release(always, 1.0, 40)
    assert sum(one.tenant == b"big" for one in gone) == 30


def test_a_tenant_with_large_requests_gets_no_more_tokens() -> None:
    line = queue()
    for _ in range(40):
        line.arrive(waiter("large", tokens=1000), 0.0)
    for _ in range(200):
        line.arrive(waiter("small", tokens=100), 0.0)
    gone = line.release(always, 1.0, 110)
    assert abs(sum(one.cost if one.tenant == b"large" else -one.cost for one in gone)) <= 1000


def test_nothing_is_earned_by_not_asking() -> None:
    line = queue()
    for _ in range(50):
        line.arrive(waiter("busy"), 0.0)
    line.release(always, 0.0, 40)
    for _ in range(20):
        line.arrive(waiter("idle before"), 1.0)
    gone = line.release(always, 1.0, 10)
    assert sum(one.tenant == b"busy" for one in gone) == 5


def test_less_urgent_ones_get_their_share() -> None:
    line = queue(guaranteed_share=0.1)
    for _ in range(100):
        line.arrive(waiter(priority=HIGH), 0.0)
    for _ in range(100):
        line.arrive(waiter(priority=LOW), 0.0)
    gone = line.release(always, 0.0, 55)
    assert sum(one.priority == LOW for one in gone) == 5
    assert [one.priority for one in gone[:11]] == [HIGH] * 10 + [LOW]


def test_nobody_goes_before_the_one_whose_turn_it_is() -> None:
    line = queue()
    first, second = waiter("a"), waiter("b")
    line.arrive(first, 0.0)
    line.arrive(second, 0.0)
    assert line.release(lambda one: one is second, 1.0, 10) == []
    assert line.head() is first


def test_bounds_of_a_tenant() -> None:
    line = queue(tenant_requests=2, tenant_tokens=500)
    assert line.arrive(waiter(tokens=300), 0.0).shed is None
    assert line.arrive(waiter(tokens=300), 0.0).shed is Shed.TENANT_TOKENS
    assert line.arrive(waiter(tokens=200), 0.0).shed is None
    refused = line.arrive(waiter(tokens=0), 0.0)
    assert refused.shed is Shed.TENANT_REQUESTS and refused.retry_after_s >= 1
    assert line.arrive(waiter("b"), 0.0).shed is None
    assert line.arrive(waiter(priority=HIGH), 0.0).shed is None


def test_bounds_of_all_together() -> None:
    line = queue(max_requests=2, max_tokens=1000)
    line.arrive(waiter("a", tokens=600), 0.0)
    assert line.arrive(waiter("b", tokens=600), 0.0).shed is Shed.QUEUE_TOKENS
    line.arrive(waiter("b", tokens=1), 0.0)
    assert line.arrive(waiter("c", tokens=1), 0.0).shed is Shed.QUEUE_REQUESTS


def test_an_urgent_request_displaces_the_newest_of_the_least_urgent() -> None:
    line = queue(max_requests=3)
    low, old, new = waiter(priority=LOW), waiter("a"), waiter("b")
    for one in (low, old, new):
        line.arrive(one, 0.0)
    assert line.arrive(waiter(priority=HIGH), 0.0).displaced == (low,)
    assert line.arrive(waiter(priority=HIGH), 0.0).displaced == (new,)
    assert line.arrive(waiter(), 0.0).shed is Shed.QUEUE_REQUESTS
    assert len(line) == 3 and old.request_id in line


def test_nothing_is_displaced_in_vain() -> None:
    line = queue(max_tokens=1000)
    line.arrive(waiter(priority=HIGH, tokens=900), 0.0)
    line.arrive(waiter(priority=LOW, tokens=100), 0.0)
    refused = line.arrive(waiter(tokens=500), 0.0)
    assert refused.shed is Shed.QUEUE_TOKENS and refused.displaced == () and len(line) == 2


def test_deadlines() -> None:
    line = queue(timeouts_s=(1.0, 2.0, 3.0))
    high, normal = waiter(priority=HIGH), waiter()
    line.arrive(normal, 10.0)
    line.arrive(high, 10.0)
    assert line.next_deadline_s() == 11.0
    assert line.expire(10.9) == []
    assert line.expire(11.0) == [high]
    assert line.expire(50.0) == [normal]
    assert line.next_deadline_s() is None and not line


def test_leaving() -> None:
    line = queue()
    one = waiter()
    line.arrive(one, 0.0)
    assert line.cancel(one.request_id) and not line.cancel(one.request_id)
    assert line.release(always, 0.0, 10) == [] and line.expire(1e9) == []
    assert line.counts[NORMAL].left == 1


def test_one_that_asks_again_waits_once() -> None:
    line = queue()
    one, again = waiter(), waiter()
    again.request_id = one.request_id
    line.arrive(one, 0.0)
    line.arrive(again, 1.0)
    assert len(line) == 1 and line.release(always, 2.0, 10) == [again]


def test_retry_after_follows_the_rate() -> None:
    line = queue()
    for _ in range(100):
        line.arrive(waiter(tokens=1000), 0.0)
    assert line.retry_after_s(NORMAL, 0.0) == 30  # nothing is known: the timeout
    for second in range(1, 21):
        line.release(always, float(second), 4)  # 4,000 tokens a second
        for _ in range(4):
            line.arrive(waiter("b", tokens=1000), float(second))
    assert 20 <= line.retry_after_s(NORMAL, 20.0) <= 30
    assert line.retry_after_s(HIGH, 20.0) == 1
    line.clear()
    assert line.retry_after_s(NORMAL, 20.0) == 1
