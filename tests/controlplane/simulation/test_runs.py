"""Whole runs: the routing core is driven as the router drives it, and nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.routing.admission.settings import Settings
from controlplane.routing.policies.registry import POLICIES
from controlplane.simulation import capacity, plotting
from controlplane.simulation.capacity import Limit
from controlplane.simulation.engine import Engine
from controlplane.simulation.errors import InvalidSimulation
from controlplane.simulation.profile import G8B
from controlplane.simulation.replayed import Replayed
from controlplane.simulation.routed import Delays, Routed, Routing
from controlplane.simulation.run import Simulation
from controlplane.simulation.study import ORACLE, SHARED, Study, named
from controlplane.simulation.synthetic import Agentic, Conversations, SharedPrefix
from controlplane.simulation.trace import Row


def shared_prefix(replicas: int = 3, rate: float = 3.0) -> Study:
    return Study(workload=lambda: SharedPrefix(rate, 60.0, groups=12, output_tokens=200), engines=(G8B,) * replicas)


@pytest.mark.parametrize("name", [*POLICIES, ORACLE, SHARED])
def test_every_request_is_answered_and_every_figure_is_there(name: str) -> None:
    outcome = shared_prefix().run(name)
    assert outcome.name == name
    assert outcome.success_rate == 1.0
    assert outcome.requests == outcome.answered == len(outcome.ttft_s) == len(outcome.tpot_s) > 50
    assert 0 < outcome.ttft_p50_s <= outcome.ttft_p99_s < 10
    assert 7e-3 < outcome.tpot_mean_s < 0.1
    assert 0 < outcome.hit_rate < 6_000 / 7_200 + 1e-9
    assert 1 <= outcome.imbalance <= 3
    assert set(outcome.summary()) == {
        "ttft_mean_s",
        "ttft_p99_s",
        "tpot_mean_s",
        "hit_rate",
        "success_rate",
        "imbalance",
    }


@pytest.mark.parametrize("name", [*POLICIES, ORACLE])
def test_the_same_run_twice_gives_the_same_figures(name: str) -> None:
    study = Study(workload=lambda: Agentic(12, 40.0, 3), engines=(G8B,) * 3, seed=5)
    one, other = study.run(name), study.run(name)
    assert one.ttft_s == other.ttft_s
    assert one.summary() == other.summary()


def test_the_core_counts_back_to_zero_and_hears_of_everything() -> None:
    routed = Routed(Routing("least_loaded"), Delays())
    engines = [Engine(index, G8B) for index in range(2)]
    outcome = Simulation(SharedPrefix(2.0, 30.0), routed, engines, warm_up=0.0).run()
    in_flight = sum(load.in_flight for load in routed.core.loads())
    routed.hear(1e9)
    counters = routed.core.counters()
    assert 0 < in_flight <= outcome.requests
    assert [load.in_flight for load in routed.core.loads()] == [0, 0]
    assert counters.in_flight == 0
    assert counters.unmatched == 0
    assert counters.decisions == counters.completions == outcome.requests


def test_knowing_the_cache_beats_not_knowing_it() -> None:
    study = Study(workload=lambda: Agentic(32, 60.0, 1), engines=(G8B,) * 4)
    blind, sighted = study.run("round_robin"), study.run(ORACLE)
    assert sighted.hit_rate > blind.hit_rate
    assert sighted.ttft_mean_s < 0.5 * blind.ttft_mean_s


def test_a_slower_replica_gets_less_from_the_oracle() -> None:
    study = Study(workload=lambda: SharedPrefix(4.0, 60.0), engines=(G8B, G8B.scaled(4)))
    fair, blind = study.run(ORACLE), study.run("round_robin")
    assert fair.ttft_p99_s < blind.ttft_p99_s


def test_a_request_that_no_replica_can_hold_fails_and_the_rest_go_on() -> None:
    rows = [Row(float(number), 5_000 if number % 2 else 500, 10, ()) for number in range(20)]
    study = Study(workload=lambda: Replayed(rows), engines=(replace(G8B, kv_capacity_tokens=4_000),) * 2, warm_up=0.0)
    for name in ("round_robin", ORACLE):
        assert study.run(name).success_rate == 0.5


def test_prefill_replicas_take_the_prefill_and_decode_replicas_the_rest() -> None:
    together = Study(workload=lambda: SharedPrefix(5.0, 60.0, groups=400), engines=(G8B,) * 3)
    apart = replace(together, prefill_engines=(G8B,) * 2)
    for name in ("least_loaded", ORACLE):
        mixed, split = together.run(name), apart.run(name)
        assert split.success_rate == 1.0
        # No step that decodes has another's prompt in it, and the KV has to be moved.
        transfer_s = 7_200 * G8B.kv_transfer_s
        assert split.ttft_s[0] > transfer_s + 7_200 * G8B.prefill_s * 0.1
        assert split.tpot_p99_s < mixed.tpot_p99_s


def test_less_is_known_without_reports_and_the_run_goes_on() -> None:
    study = Study(workload=lambda: SharedPrefix(3.0, 30.0), engines=(G8B,) * 3)
    blind = replace(study, delays=Delays(first_bytes=False, reports=False, scrape_interval_s=0.0))
    for name in POLICIES:
        assert blind.run(name).success_rate == 1.0


def test_admission_holds_requests_back_and_sheds_what_waits_too_long() -> None:
    flooded = Study(workload=lambda: SharedPrefix(12.0, 60.0, groups=400), engines=(G8B,) * 2, warm_up=0.0)
    held = replace(flooded, admission=Settings(ttft_target_s=1.0, timeouts_s=(5.0,) * 3))
    free, bounded = flooded.run("cost"), held.run("cost")
    assert free.success_rate == 1.0
    assert 0.1 < bounded.success_rate < 0.95
    assert bounded.ttft_p99_s < 0.7 * free.ttft_p99_s


def test_admission_changes_nothing_without_saturation() -> None:
    study = shared_prefix()
    assert replace(study, admission=Settings()).run("cost").summary() == study.run("cost").summary()


def test_precise_routing_knows_the_caches_without_having_filled_them() -> None:
    study = Study(workload=lambda: Agentic(24, 60.0, 2), engines=(replace(G8B, kv_capacity_tokens=150_000),) * 3)
    exact = replace(study, precise=True).run("cost")
    assert exact.success_rate == 1.0
    assert exact.hit_rate > 0.9 * study.run(ORACLE).hit_rate


def test_progress_is_told() -> None:
    heard: list[tuple[int, float]] = []
    Study(workload=lambda: Conversations(20.0, 40.0), engines=(G8B,) * 8).run(
        "round_robin", lambda done, now_s: heard.append((done, now_s))
    )
    assert heard == sorted(heard)
    assert heard[0][0] == 256


def test_the_fewest_replicas_that_hold_a_limit() -> None:
    study = shared_prefix(1, 25.0)
    wanted = Limit("ttft_p99", 0.5)
    found = capacity.find(study, ORACLE, wanted)
    assert found.replicas > 1
    assert wanted.held(found.outcome)
    assert not wanted.held(study.resized(found.replicas - 1).run(ORACLE))


def test_a_limit_that_no_fleet_holds() -> None:
    found = capacity.find(shared_prefix(1, 1.0), ORACLE, Limit("ttft_mean", 1e-6), most=4)
    assert found.replicas == 0


@pytest.mark.parametrize("text", ["ttft_p99", "ttft_p99=1", "ttft_p99=0s", "p99=1s", "ttft_p99=1s\n", "ttft_p99=-1s"])
def test_a_limit_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidSimulation, match="write FIGURE=TIME"):
        capacity.limit(text)


def test_limits_are_read() -> None:
    assert capacity.limit("ttft_p99=1s") == Limit("ttft_p99", 1.0)
    assert capacity.limit("tpot_mean=50ms") == Limit("tpot_mean", 50 * 1e-3)


def test_names() -> None:
    assert named(("all",), {}) == (*POLICIES, ORACLE)
    assert named(("session", "shared", "session"), {}) == ("session", "shared")
    with pytest.raises(InvalidSimulation, match="there is no policy 'best'"):
        named(("best",), {})
    with pytest.raises(InvalidSimulation, match="oracle has no parameters"):
        named(("oracle",), {"oracle": {"x": 1.0}})


def test_plots_without_matplotlib_are_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotting, "find_spec", lambda name: None)
    with pytest.raises(InvalidSimulation, match=r"pip install 'slipstream\[plots\]'"):
        plotting.check()
