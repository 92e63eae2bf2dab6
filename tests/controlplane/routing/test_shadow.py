from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from controlplane.router.journal import Journal, JournalledCore
from controlplane.router.journal_settings import WatchedTopology
from controlplane.routing.errors import UnknownPolicy
from controlplane.routing.policies.registry import POLICIES
from controlplane.routing.shadow import MAX_FAILURES, Shadow, ShadowInfo
from tests.controlplane.routing.worlds import completion, request, topology
from tests.controlplane.simulation.lived import Life


def watched(count: int, policy: str, shadow: ShadowInfo | None, number: int = 1, **settings: Any) -> WatchedTopology:
    plain = topology(count, policy, number=number, **settings)
    shadows = {} if shadow is None else {"m": shadow}
    return WatchedTopology(number, "test", plain.models, plain.replicas, None, shadows)


def core(count: int, policy: str, shadow: str, **settings: float) -> JournalledCore:
    made = JournalledCore(receipt_capacity=1_000)
    made.install(watched(count, policy, ShadowInfo(shadow, **settings)), 0.0)  # type: ignore[arg-type]
    return made


class Shadowed(JournalledCore):
    """Every model gets a shadow, whatever its topology says."""

    def __init__(self, shadow: ShadowInfo) -> None:
        super().__init__(receipt_capacity=1_000)
        self.info = shadow

    def install(self, given: Any, now_s: float) -> None:
        shadows = {model.name: self.info for model in given.models}
        super().install(
            WatchedTopology(given.number, given.cluster, given.models, given.replicas, None, shadows), now_s
        )


def journal_of(made: JournalledCore, decisions: int = 800) -> list[bytes]:
    kept: list[bytes] = []
    made.journal = Journal(kept.append)
    Life(made).live(decisions)
    return [line for line in kept if b'"call":"install"' not in line]


@pytest.fixture(scope="module")
def alone() -> list[bytes]:
    return journal_of(JournalledCore(receipt_capacity=1_000))


@pytest.mark.parametrize(
    "shadow",
    [
        *(ShadowInfo(policy, share=share) for policy in sorted(POLICIES) for share in (1.0, 0.3)),
        ShadowInfo("cost", {"interference": 10.0, "decode_weight": 10.0}),
        ShadowInfo("cost", {"interference": 0.0, "prefill_tokens_per_s": 1.0}),
    ],
    ids=lambda shadow: f"{shadow.policy}-{shadow.share:g}-{len(shadow.parameters)}",
)
def test_no_shadow_changes_a_decision_or_a_score(shadow: ShadowInfo, alone: list[bytes]) -> None:
    made = Shadowed(shadow)
    assert journal_of(made) == alone
    counts = [shadow.counts() for shadow in made.shadows.values()]
    assert len(counts) == 4
    for told in counts:
        assert not told.failures
        assert told.decisions > 0
        assert 0 <= told.agreed <= told.decisions
        assert 0.0 <= told.routed_regret_s <= told.routed_s
        assert 0.0 <= told.shadow_regret_s <= told.shadow_s


def test_the_same_policy_agrees_with_itself() -> None:
    made = core(6, "cost", "cost")
    for number in range(200):
        decision = made.decide(b"%d" % number, request(blocks=[number % 5, number % 11]), float(number))
        if number % 3:
            made.finished(completion(b"%d" % number, decision.server), number + 0.5)
    (told,) = (shadow.counts() for shadow in made.shadows.values())
    assert told.decisions == told.agreed == 200
    assert told.routed_s == told.shadow_s > 0.0


def test_what_a_better_policy_would_gain_is_told() -> None:
    made = core(4, "round_robin", "cost")
    for number in range(300):  # four prompts that return, each to another replica
        decision = made.decide(b"%d" % number, request(blocks=range(number % 5 * 100, number % 5 * 100 + 8)), number)
        made.finished(completion(b"%d" % number, decision.server), number + 0.5)
    (told,) = (shadow.counts() for shadow in made.shadows.values())
    assert told.agreed < told.decisions
    assert told.shadow_s < told.routed_s
    assert told.shadow_regret_s < told.routed_regret_s


def test_the_tree_of_a_shadow_that_reads_prefixes_is_of_what_was_really_sent() -> None:
    made = core(4, "round_robin", "prefix")
    first = made.decide(b"one", request(blocks=["a", "b"]), 0.0)
    made.decide(b"two", request(blocks=["a", "b"]), 1.0)
    shadow = made.shadows["m"]
    view = made._views[b"m"]
    view.known = None
    shadow.watch(view, request(blocks=["a", "b", "c"]), ([view.order.replicas[0]], None, None, 0, 0, None), 2.0)
    holders = {holder.info.server for node in view.root.children.values() for holder in node.holders}
    assert first.server.decode() in holders
    assert len(holders) == 2
    assert shadow.counts().decisions == 3


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_share_of_the_decisions_is_compared(share: float) -> None:
    made = core(4, "least_loaded", "cost", share=share)
    for number in range(100):
        made.decide(b"%d" % number, request(), float(number))
    assert made.shadows["m"].counts().decisions == 100 * share


def test_a_shadow_that_fails_harms_nothing_and_is_asked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    made = core(4, "least_loaded", "cost")
    shadow = made.shadows["m"]
    asked = []

    def fail(*_: object) -> None:
        asked.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(shadow, "policy", _Failing(fail))
    servers = [made.decide(b"%d" % number, request(), float(number)).server for number in range(100)]
    alone = JournalledCore(receipt_capacity=1_000)
    alone.install(topology(4, "least_loaded"), 0.0)
    assert servers == [alone.decide(b"%d" % number, request(), float(number)).server for number in range(100)]
    told = shadow.counts()
    assert (told.failures, told.off, len(asked)) == (MAX_FAILURES, True, MAX_FAILURES)


class _Failing:
    reads_prefixes = False

    def __init__(self, choose: Any) -> None:
        self.choose = choose


def test_counts_stay_while_the_settings_do() -> None:
    made = core(4, "least_loaded", "cost")
    made.decide(b"one", request(), 0.0)
    made.install(watched(6, "least_loaded", ShadowInfo("cost"), number=2), 1.0)
    assert made.shadows["m"].counts().decisions == 1
    made.install(watched(6, "least_loaded", ShadowInfo("cost", {"interference": 0.5}), number=3), 2.0)
    assert made.shadows["m"].counts().decisions == 0
    made.install(watched(6, "least_loaded", None, number=4), 3.0)
    assert made.shadows == {}


@pytest.mark.parametrize("parameters", [{"nonsense": 1.0}, {"interference": -1.0}])
def test_settings_that_no_policy_takes_are_refused(parameters: Mapping[str, float]) -> None:
    with pytest.raises(UnknownPolicy):
        Shadow("m", ShadowInfo("cost", parameters), 0)
    with pytest.raises(UnknownPolicy):
        Shadow("m", ShadowInfo("astrology"), 0)
    made = core(2, "cost", "astrology")
    assert made.shadows == {}
    assert made.decide(b"one", request(), 1.0).outcome == "go"
