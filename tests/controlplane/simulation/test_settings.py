"""What may be asked for, and what is said when it may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controlplane.errors import ControlplaneError
from controlplane.simulation.fleet import fleet
from controlplane.simulation.setting import Setting
from controlplane.spec import from_yaml

SPEC = """
cluster: test
models:
- name: chat
  routing: {policy: session, parameters: {load_factor: 2}}
  pools:
  - {replicas: 2, engine: {kind: simulated, prefill_us_per_token: 10}}
  - {name: slow, replicas: 1, engine: {kind: simulated, prefill_us_per_token: 80, kv_capacity_tokens: 1000}}
"""
APART = """
cluster: test
models:
- name: chat
  pools:
  - {role: decode, replicas: 3, engine: {kind: vllm, model: some/model, max_running: 32}}
  - {role: prefill, replicas: 2, engine: {kind: vllm, model: some/model}}
- name: other
  pools:
  - {replicas: 1, engine: {kind: external, endpoints: ["http://127.0.0.1:9000"], kv_capacity_tokens: 1234}}
"""


def write_trace(path: Path, count: int = 40) -> Path:
    rows = [
        {"timestamp": 100 * n, "input_length": 700, "output_length": 5, "hash_ids": [0, n // 2]} for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "say either --trace FILE or --workload"),
        ({"workload": "agentic", "trace": Path("x")}, "say either"),
        ({"workload": "chess"}, "--workload 'chess': there are agentic"),
        ({"workload": "agentic", "rate": 1.0}, "--rate does not go with --workload agentic"),
        ({"workload": "shared_prefix", "users": 1}, "--users does not go with --workload shared_prefix"),
        ({"workload": "agentic", "speedup": 2.0}, "--speedup does not go with"),
        ({"trace": Path("x"), "users": 3}, "--users does not go with --trace"),
        ({"trace": Path("x"), "duration_s": 3.0}, "--duration does not go with --trace"),
        ({"workload": "agentic", "users": 0}, "--users is 0; it must be 1 to"),
        ({"workload": "shared_prefix", "rate": float("nan")}, "--rate is nan; it must be"),
        ({"workload": "shared_prefix", "rate": 1e5, "duration_s": 1e5}, "more than 5,000,000 requests"),
        ({"workload": "agentic", "duration_s": 0.0}, "--duration is 0"),
        ({"workload": "agentic", "replicas": 0}, "--replicas is 0; it must be 1 to 16,384"),
        ({"workload": "agentic", "replicas": 20_000}, "--replicas is 20000"),
        ({"workload": "agentic", "prefill_replicas": -1}, "--prefill-replicas is -1"),
        ({"workload": "agentic", "scrape_interval_s": 1e-6}, "--scrape-interval is 1e-06"),
        ({"workload": "agentic", "report_delay_s": -1.0}, "--report-delay is -1"),
        ({"workload": "agentic", "policy": "magic"}, "there is no policy 'magic'"),
        ({"workload": "agentic", "compare": ("all", "magic")}, "there is no policy 'magic'"),
        ({"workload": "agentic", "policy": "session", "parameters": {"load_factor": 0.5}}, "load_factor is 0.5"),
        ({"workload": "agentic", "policy": "session", "parameters": {"nope": 1.0}}, "unknown parameter 'nope'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ControlplaneError, match=said):
        Setting(**given).study()


def test_trace_options(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.jsonl")
    study, names = Setting(trace=path, speedup=2.0, copies=3, replicas=5).study()
    workload = study.workload()
    assert (workload.expected, len(study.engines)) == (120, 5)
    assert workload.length_s == pytest.approx(3.9 / 2)
    assert names[-1] == "oracle"
    with pytest.raises(ControlplaneError, match="--copies is 0"):
        Setting(trace=path, copies=0).study()
    with pytest.raises(ControlplaneError, match="--speedup is 0"):
        Setting(trace=path, speedup=0.0).study()


def test_a_spec_gives_replicas_policy_and_parameters() -> None:
    told = fleet(from_yaml(SPEC))
    study, names = Setting(workload="agentic", compare=("round_robin",)).study(told)
    assert names == ("session", "round_robin", "oracle")
    assert study.parameters == {"session": {"load_factor": 2.0}}
    assert [round(engine.prefill_s * 1e6) for engine in study.engines] == [10, 10, 80]
    assert study.engines[2].kv_capacity_tokens == 1_000
    assert not study.prefill_engines
    resized, _ = Setting(workload="agentic", replicas=4, policy="round_robin").study(told)
    assert [round(engine.prefill_s * 1e6) for engine in resized.engines] == [10, 10, 80, 10]
    assert resized.parameters == {"round_robin": {}}


def test_a_spec_gives_admission_and_precise_routing() -> None:
    spec = SPEC.replace("load_factor: 2}", "load_factor: 2}, admission: {ttft_target_s: 0.7, timeouts_s: {low: 9}}")
    study, _ = Setting(workload="agentic", precise=True).study(fleet(from_yaml(spec)))
    assert study.precise
    assert study.admission is not None
    assert study.admission.ttft_target_s == 0.7
    assert study.admission.timeouts_s[2] == 9


def test_a_spec_with_prefill_and_decode() -> None:
    cluster = from_yaml(APART)
    told = fleet(cluster, "chat")
    assert (len(told.engines), len(told.prefill_engines)) == (3, 2)
    assert told.engines[0].max_running == 32
    assert fleet(cluster, "other").engines[0].kv_capacity_tokens == 1_234
    with pytest.raises(ControlplaneError, match="several models: say which with --model; it has chat, other"):
        fleet(cluster)
    with pytest.raises(ControlplaneError, match="--model 'third': the spec has no such model"):
        fleet(cluster, "third")
