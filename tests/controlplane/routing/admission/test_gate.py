"""Admission within the routing core: who waits, who goes when, and that every count returns to 0."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.router import journal_lines as lines
from controlplane.router.journal import Journal, JournalledCore
from controlplane.routing.admission.settings import HIGH, LOW, NORMAL, Settings, priority_of
from controlplane.routing.core import RoutingCore
from controlplane.routing.events import FirstByte
from controlplane.routing.fleet import Topology
from controlplane.routing.load import Decision
from controlplane.routing.policies.base import Choice
from controlplane.routing.policies.cost import Cost
from controlplane.routing.record import Request
from controlplane.routing.view import View
from controlplane.simulation.replay import repeat
from tests.controlplane.routing import worlds

#: 20,000 tokens: one second of prefill at the speed that is believed at first.
SECOND = 80_000
BRIEF = Settings(ttft_target_s=0.5, timeouts_s=(10.0, 10.0, 10.0))


def _topology(count: int = 1, admission: Settings | None = BRIEF, number: int = 1) -> Topology:
    plain = worlds.topology(count, "cost", number=number)
    return replace(plain, models=tuple(replace(model, admission=admission) for model in plain.models))


def _core(count: int = 1, admission: Settings | None = BRIEF, core: RoutingCore | None = None) -> RoutingCore:
    core = core or RoutingCore(receipt_capacity=1000)
    core.install(_topology(count, admission), 0.0)
    return core


def _request(tenant: str = "t", prompt_bytes: int = SECOND) -> Request:
    return worlds.request(tenant=tenant.encode(), prompt_bytes=prompt_bytes, body_bytes=prompt_bytes)


def _ask(core: RoutingCore, name: str, now_s: float = 0.0, priority: int = NORMAL, tenant: str = "t") -> Decision:
    return core.decide(name.encode(), _request(tenant), now_s, None, priority)


def _end(core: RoutingCore, name: str, now_s: float, server: bytes = b"p-0.g1") -> bool:
    return core.finished(worlds.completion(name.encode(), server), now_s)


def _named(answers: list[tuple[bytes, Decision]]) -> list[tuple[str, str]]:
    return [(request_id.decode(), decision.outcome) for request_id, decision in answers]


def test_nobody_waits_without_admission() -> None:
    core = _core(admission=None)
    assert {_ask(core, str(n)).outcome for n in range(50)} == {"go"}
    assert core.release(1.0) == [] and core.admissions() == ()


def test_one_request_waits_at_each_replica_and_the_next_ones_here() -> None:
    core = _core(count=2)
    assert [_ask(core, name).outcome for name in "abcd"] == ["go", "go", "wait", "wait"]
    assert core.waiting == 2 and core.release(0.1) == []
    _end(core, "a", 1.0)
    assert _named(core.release(1.0)) == [("c", "go")]
    _end(core, "b", 1.1, b"p-1.g1")
    assert _named(core.release(1.1)) == [("d", "go")]
    assert not core.may_release


def test_a_request_that_nothing_could_make_faster_goes() -> None:
    core = _core()
    assert core.decide(b"huge", _request(prompt_bytes=100 * SECOND), 0.0).outcome == "go"


def test_urgent_ones_go_first() -> None:
    core = _core()
    _ask(core, "a")
    for name, priority in (("l", LOW), ("n", NORMAL), ("h", HIGH)):
        assert _ask(core, name, priority=priority).outcome == "wait"
    order = []
    before = "a"
    for now_s in (1.0, 2.0, 3.0):
        _end(core, before, now_s)
        ((request_id, _),) = core.release(now_s)
        before = request_id.decode()
        order.append(before)
    assert order == ["h", "n", "l"]


def test_deadlines_shed_with_retry_after_and_a_receipt() -> None:
    core = _core()
    _ask(core, "heard of")
    core.first_byte(FirstByte(b"heard of", b"p-0.g1"), 0.0)  # from now on no first byte is only predicted
    _ask(core, "a")
    _ask(core, "b", 1.0)
    assert core.release(10.9) == []
    ((_, decision),) = core.release(11.0)
    assert decision.outcome == "shed" and 1 <= decision.retry_after_s <= 60
    receipt = core.receipt(b"b")
    assert receipt is not None
    assert (receipt.outcome, receipt.reason, receipt.waited_ms) == ("shed", "shed_timeout", 10_000)


def test_a_released_request_says_how_long_it_waited() -> None:
    core = _core()
    _ask(core, "a")
    _ask(core, "b", 1.0)
    _end(core, "a", 1.5)
    core.release(1.5)
    receipt = core.receipt(b"b")
    assert receipt is not None and (receipt.outcome, receipt.waited_ms) == ("go", 500)


def test_surplus_is_shed_at_once_and_displaced_ones_are_told() -> None:
    core = _core(admission=replace(BRIEF, max_requests=2))
    _ask(core, "a")
    _ask(core, "b", priority=LOW)
    _ask(core, "c")
    decision = _ask(core, "d")
    assert decision.outcome == "wait"  # b makes room
    assert _named(core.release(0.0)) == [("b", "shed")]
    assert _ask(core, "e").outcome == "shed"
    reasons = core.counters().decisions_by_reason
    assert reasons["shed_displaced"] == 1 and reasons["shed_queue_requests"] == 1


def test_leaving_and_asking_again() -> None:
    core = _core()
    _ask(core, "a")
    _ask(core, "b")
    assert core.leave(b"b", 1.0) and not core.leave(b"b", 1.0)
    _ask(core, "c")
    _ask(core, "c")
    assert core.waiting == 1
    # A log line of one that waits: HAProxy has let it go by itself.
    assert not _end(core, "c", 2.0) and core.waiting == 0


def test_a_topology_without_admission_lets_all_go() -> None:
    core = _core()
    for name in "abc":
        _ask(core, name)
    core.install(_topology(admission=None, number=2), 1.0)
    assert _named(core.release(1.0)) == [("b", "go"), ("c", "go")] and core.waiting == 0


def test_without_replicas_they_wait_for_one_until_their_deadline() -> None:
    core = _core()
    for name in "abc":
        _ask(core, name)
    gone = replace(_topology(number=2), replicas=(worlds.replica("p-0", state="failed"),))
    core.install(gone, 1.0)
    assert core.release(1.0) == []
    core.install(replace(gone, number=3, replicas=(worlds.replica("p-0", 2),)), 2.0)
    assert _named(core.release(2.0)) == [("b", "go")]
    core.install(replace(gone, number=4), 3.0)
    ((_, decision),) = core.release(10.0)
    assert (decision.outcome, decision.error) == ("error", "no_replica_available")


@pytest.mark.parametrize(
    ("named", "allowed", "expected"),
    [
        (b"high", b"high", HIGH),
        (b" HIGH ", b"high", HIGH),
        (b"", b"high", NORMAL),
        (b"low", b"high", LOW),
        (b"high", b"", NORMAL),
        (b"low", b"", NORMAL),
        (b"high", b"normal", NORMAL),
        (b"high", b"low", LOW),
        (b"", b"low", LOW),
        (b"0", b"high", NORMAL),
        (b"high", b"urgent", NORMAL),
    ],
)
def test_a_name_counts_as_far_as_the_key_allows(named: bytes, allowed: bytes, expected: int) -> None:
    assert priority_of(named, allowed) == expected


def test_a_policy_that_fails_for_one_request_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    core = _core()
    for name in ("a", "poison", "c"):
        _ask(core, name)
    choose = Cost.choose

    def poisoned(policy: Cost, view: View, request: Request, now_s: float) -> Choice:
        if core.waiting == 2:
            raise ZeroDivisionError
        return choose(policy, view, request, now_s)

    monkeypatch.setattr(Cost, "choose", poisoned)
    _end(core, "a", 1.0)
    with pytest.raises(ZeroDivisionError):
        core.release(1.0)
    assert _named(core.release(1.1)) == [("poison", "failed"), ("c", "go")]
    _end(core, "c", 2.0)
    assert core.waiting == 0 and core.counters().in_flight == 0


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 30), st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 4)),
        st.tuples(st.just("end"), st.integers(0, 30), st.just(""), st.just(0), st.just(0)),
        st.tuples(st.just("leave"), st.integers(0, 30), st.just(""), st.just(0), st.just(0)),
        st.tuples(st.just("release"), st.integers(0, 3), st.just(""), st.just(0), st.just(0)),
        st.tuples(st.just("install"), st.integers(0, 3), st.just(""), st.just(0), st.just(0)),
    ),
    max_size=80,
)


def _play(core: RoutingCore, steps: list[tuple[str, int, str, int, int]]) -> list[object]:
    """Make the calls; return all that came out."""
    now_s = 0.0
    seen: list[object] = []
    for number, (step, which, tenant, priority, size) in enumerate(steps):
        name = str(which).encode()
        match step:
            case "ask":
                decision = core.decide(name, _request(tenant, size * SECOND // 4), now_s, None, priority)
                seen.append((decision.outcome, decision.server, decision.retry_after_s))
            case "end":
                seen.append(core.finished(worlds.completion(name, b"p-0.g1"), now_s))
            case "leave":
                seen.append(core.leave(name, now_s))
            case "release":
                now_s += which
                seen += [(one, d.outcome, d.server, d.retry_after_s) for one, d in core.release(now_s)]
            case "install":
                admission = replace(BRIEF, max_requests=5, tenant_requests=3) if which else None
                core.install(_topology(1 + which % 2, admission, number + 2), now_s)
    return seen


@given(_steps)
@settings(max_examples=150, derandomize=True, deadline=None)
def test_the_same_calls_have_the_same_results_and_every_count_returns_to_0(
    steps: list[tuple[str, int, str, int, int]],
) -> None:
    core = _core()
    assert _play(core, steps) == _play(_core(), steps)
    answered = {request_id for request_id, _ in core.release(1e6)}
    assert core.waiting == 0 and not core.release(1e6)
    for which in range(31):
        core.finished(worlds.completion(str(which).encode(), b"p-0.g1"), 1e6)
    assert len(answered) <= 31
    assert all(depth.waiting == depth.tokens == 0 for depth in core.admissions())
    assert core.counters().in_flight == 0
    for load in core.loads():
        assert (load.in_flight, load.waiting, load.queued_tokens, load.context_tokens) == (0, 0, 0, 0)


def _journalled() -> tuple[JournalledCore, list[bytes]]:
    written: list[bytes] = []
    core = JournalledCore()
    core.journal = Journal(written.append)
    return core, written


def test_a_journal_of_waits_is_replayed_to_the_bit() -> None:
    core, written = _journalled()
    _core(core=core)
    for number in range(20):
        _ask(core, str(number), number / 10, number % 3, "ab"[number % 2])
    for number in range(10):
        _end(core, str(number), 2.0 + number)
        core.release(2.0 + number)
    core.leave(b"15", 13.0)
    core.release(30.0)
    again, rewritten = _journalled()
    for text in written:
        match line := lines.decode(text):
            case lines.Decide():
                again.decide(line.id, line.request, line.at, None, line.priority)
            case lines.InForce() | lines.Install() | lines.Finished() | lines.Leave():
                repeat(again, line, "here")
            case lines.Release():
                again.release(line.at)
    assert written == rewritten
    assert sum(b'"call":"release"' in text for text in written) > 5
