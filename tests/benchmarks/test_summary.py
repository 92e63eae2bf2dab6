import pytest

from benchmarks.cells import BASE_REQUEST, STREAM
from benchmarks.measure import Run, refusal
from benchmarks.replica import ReplicaStats
from benchmarks.summary import Spread, metrics, spread, verdicts
from tests.benchmarks.runs import a_run

ON_TIME = ReplicaStats(tokens=1_000)


def comparison() -> list[Run]:
    runs = []
    for number, ours in enumerate((30.0, 40.0, 80.0)):
        runs.append(a_run("slipstream", BASE_REQUEST.name, number, ours))
        runs.append(a_run("vllm-router-rr", BASE_REQUEST.name, number, 50.0))
        runs.append(a_run("direct", STREAM.name, number, 0.0, ttft_ms=20.0))
        runs.append(a_run("slipstream", STREAM.name, number, ours + 1_500, tokens=100_000, ttft_ms=20.4))
        runs.append(a_run("vllm-router-rr", STREAM.name, number, 50.0 + 3_000, tokens=100_000, ttft_ms=20.8))
    return runs


def test_median_and_ends() -> None:
    assert spread([3.0, 1.0, 9.0]) == Spread(3.0, 1.0, 9.0, 3)
    assert spread([]) is None


def test_ratios_are_taken_within_rounds() -> None:
    found = {m.name: m for m in metrics(comparison())}
    ratio = found[f"CPU per request, {BASE_REQUEST.name}"].ratio("vllm-router-rr")
    assert ratio == Spread(0.8, 0.6, 1.6, 3)


def test_a_token_costs_what_its_request_does_not() -> None:
    found = {m.name: m for m in metrics(comparison())}
    token = found["CPU per token"].of("slipstream")
    assert token is not None and token.median == pytest.approx(15.0)
    ratio = found["CPU per token"].ratio("vllm-router-rr")
    assert ratio is not None and ratio.median == pytest.approx(0.5)


def test_latency_is_what_is_added_to_the_baseline_of_the_round() -> None:
    found = {m.name: m for m in metrics(comparison())}
    added = found["added TTFT p50"].of("slipstream")
    assert added is not None and added.median == pytest.approx(0.4)
    assert "direct" not in found["added TTFT p50"].values


def test_refused_runs_are_in_no_figure() -> None:
    runs = [*comparison(), a_run("slipstream", BASE_REQUEST.name, 3, 9_999.0, refused="bound by the replica")]
    found = {m.name: m for m in metrics(runs)}
    assert found[f"CPU per request, {BASE_REQUEST.name}"].of("slipstream") == spread([30.0, 40.0, 80.0])


def test_goals_are_judged_by_the_median() -> None:
    judged = {(v.goal.metric, v.goal.peer): v for v in verdicts(metrics(comparison()))}
    assert judged[f"CPU per request, {BASE_REQUEST.name}", "vllm-router-rr"].met
    assert judged["CPU per token", "vllm-router-rr"].met
    assert judged["added TTFT p50", ""].met
    assert not judged["CPU per token", "haproxy"].met  # it was not measured


@pytest.mark.parametrize(
    ("ingress", "load", "replica", "counted", "word"),
    [
        (0.5, 0.95, 0.1, ON_TIME, "load client"),
        (0.5, 0.1, 0.95, ON_TIME, "replica"),
        (0.5, 0.5, 0.45, ON_TIME, "together"),
        (0.95, 0.5, 0.45, ON_TIME, ""),
        (0.5, 0.4, 0.4, ON_TIME, ""),
        (0.95, 0.1, 0.1, ReplicaStats(tokens=1_000, late_tokens=11), "late"),
        (0.95, 0.1, 0.1, ReplicaStats(tokens=1_000, late_tokens=10), ""),
    ],
)
def test_refusals(ingress: float, load: float, replica: float, counted: ReplicaStats, word: str) -> None:
    told = refusal(ingress, load, replica, 1, counted)
    assert (word in told) if word else told == ""


def test_a_busy_machine_is_refused() -> None:
    assert "something else" in refusal(0.95, 0.1, 0.1, 1, ON_TIME, foreign_cores=0.8, max_foreign_cores=0.5)
