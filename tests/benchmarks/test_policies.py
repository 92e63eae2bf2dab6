"""The policy benchmark: a quick run, and its judgement."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.policies import grid, verdict
from benchmarks.policies.__main__ import main
from benchmarks.policies.contenders import TUNED, Contender, contenders
from benchmarks.policies.grid import Point
from benchmarks.policies.measure import Result
from controlplane.routing.policies.registry import POLICIES, checked

COST, PEER, TUNED_PEER, ORACLE = (
    Contender("cost"),
    Contender("kv_overlap"),
    Contender("kv_overlap", "tuned", {"prefill_load_scale": 8}),
    Contender("oracle"),
)


def result(point: Point, contender: Contender, ttft_s: float, held: bool = True) -> Result:
    return Result(point.name, contender.name, 10, ttft_s, ttft_s, ttft_s, 0.02, 1.0, 0.5, 1.0, 1.1, 3.0, 0.1, held)


def test_all_policies_are_compared_and_tuned_ones_are_told_apart() -> None:
    every = contenders()
    assert {each.policy for each in every} == {*POLICIES, "oracle", "shared"}
    assert len({each.name for each in every}) == len(every)
    assert not any(each.published for each in every if each.variant or each.policy in {"cost", "oracle"})
    assert [each.name for each in contenders(("cost",))] == ["cost", "oracle"]
    for policy, variants in TUNED.items():
        for parameters in variants.values():
            assert checked(policy, parameters)


def test_half_of_the_points_are_held_out() -> None:
    assert len(grid.POINTS) == 12
    assert sum(point.fitted for point in grid.POINTS) == 6


def test_goals_are_judged() -> None:
    point = Point(grid.CONVERSATION, 2, 8)
    results = [
        result(point, COST, 1.0),
        result(point, PEER, 1.25),
        result(point, TUNED_PEER, 0.8),
        result(point, ORACLE, 0.95),
    ]
    everyone = (COST, PEER, TUNED_PEER, ORACLE)
    found = verdict.table(results)
    judged = {goal.text: goal for goal in verdict.goals([point], everyone, found)}
    assert judged["the oracle"].reached
    assert judged["the best peer as published"].ratio == pytest.approx(0.8)
    assert judged["the best peer as published"].reached
    assert judged["the best of all peers"].against == TUNED_PEER.name
    assert not judged["the best of all peers"].reached
    assert verdict.ahead([point], everyone, found) == [(point.name, TUNED_PEER.name, 0.8)]
    easier = replace(point, load=1.5)
    assert "the best peer as published" not in {
        goal.text for goal in verdict.goals([easier], everyone, verdict.table([result(easier, COST, 1.0)]))
    }


def test_a_load_is_held_as_long_as_no_lower_one_failed() -> None:
    sweep = grid.SWEEPS[0]
    results = [result(point, COST, 1.0, held=number != 3) for number, point in enumerate(sweep.points())]
    (held,) = verdict.held(sweep, [COST], verdict.table(results))
    assert held.load == sweep.loads[2]
    (nothing,) = verdict.held(sweep, [PEER], {})
    assert nothing.load == 0


def test_a_quick_run_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 50 * n, "input_length": 700, "output_length": 5, "hash_ids": [0, n // 20]} for n in range(2_000)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("SLIPSTREAM_CONVERSATION_TRACE", str(trace))
    out = tmp_path / "results" / "policies"
    points = "conversation-2-*,agentic-64-*"
    assert main(["--quick", "--points", points, "--policies", "cost,round_robin", "--out", str(out)]) == 0
    told = json.loads(out.with_name("policies.json").read_text())
    assert {(each["point"], each["contender"]) for each in told["results"]} == {
        (point, name) for point in ("conversation-2-n8", "agentic-64-n8") for name in ("cost", "round_robin", "oracle")
    }
    assert all(each["success_rate"] == 1.0 for each in told["results"])
    assert str(tmp_path) not in json.dumps(told)
    text = out.with_name("policies.md").read_text()
    assert "The weights of `cost` were fixed on these points: conversation-2-n8, agentic-64-n8." in text
    assert "## agentic-64-n8" in text
    assert out.with_name("policies-points.svg").exists()


def test_what_cannot_be_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--trace", str(tmp_path / "absent"), "--points", "nothing"]) == 1
    assert "no point is named 'nothing'" in capsys.readouterr().err
