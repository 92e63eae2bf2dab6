"""``slipstream simulate`` as its users run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.routing.policies.registry import POLICIES

FIGURES = {"ttft_mean_s", "ttft_p99_s", "tpot_mean_s", "hit_rate", "success_rate", "imbalance"}
SMALL = ("--workload", "agentic", "--users", "6", "--replicas", "2", "--duration", "20")


def simulate(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "controlplane.cli.main", "simulate", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
    )


def write_trace(path: Path, *extra: str) -> Path:
    rows = [{"timestamp": 100 * n, "input_length": 700, "output_length": 5, "hash_ids": [0, n // 2]} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "".join(line + "\n" for line in extra))
    return path


def test_json_has_every_policy_beside_the_oracle_and_nothing_else() -> None:
    done = simulate(*SMALL, "--compare", "all", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told) == {"policies"}
    assert set(told["policies"]) == {*POLICIES, "oracle"}
    for figures in told["policies"].values():
        assert set(figures) == FIGURES
        assert figures["success_rate"] == 1.0
        assert 0 < figures["hit_rate"] < 1


def test_a_trace_a_table_and_plots(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace.jsonl")
    done = simulate("--trace", str(trace), "--speedup", "4", "--replicas", "2", "--plots", str(tmp_path / "plots"))
    assert done.returncode == 0, done.stderr
    assert "trace x4, 2 replicas" in done.stdout
    assert "oracle" in done.stdout
    assert "hit rate" in done.stdout
    plots = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    assert set(plots) == {f"{name}.{kind}" for name in ("ttft", "tpot", "hit_rate", "load") for kind in ("png", "svg")}
    assert all(data.startswith(b"\x89PNG") for name, data in plots.items() if name.endswith(".png"))
    assert all(b"<svg" in data for name, data in plots.items() if name.endswith(".svg"))


def test_a_spec_gives_the_fleet(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "cluster: test\nmodels:\n- name: chat\n  routing: {policy: round_robin}\n"
        "  pools:\n  - {replicas: 3, engine: {kind: simulated}}\n"
    )
    done = simulate(str(spec), "--workload", "shared_prefix", "--rate", "2", "--duration", "10", "--json")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["policies"]) == ["round_robin", "oracle"]


def test_how_many_replicas_a_limit_needs() -> None:
    options = ("--workload", "shared_prefix", "--rate", "15", "--duration", "20", "--find-capacity", "ttft_p99=400ms")
    done = simulate(*options, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["capacity"]["limit"] == "ttft_p99=400ms"
    assert all(count >= 1 for count in told["capacity"]["replicas"].values())
    assert all(figures["ttft_p99_s"] <= 0.4 for figures in told["policies"].values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say either --trace FILE or --workload"),
        ((*SMALL, "--nonsense"), "No such option: --nonsense"),
        (("--workload", "agentic", "--replicas", "0"), "--replicas is 0; it must be 1 to 16,384"),
        (("--workload", "agentic", "--replicas", "many"), "Invalid value for '--replicas'"),
        ((*SMALL, "--policy", "magic"), "there is no policy 'magic'"),
        ((*SMALL, "--set", "interference"), "write NAME=NUMBER"),
        ((*SMALL, "--set", "interference=nan"), "interference is nan"),
        ((*SMALL, "--set", "interference=-1"), "interference is -1; it must be"),
        ((*SMALL, "--find-capacity", "speed=1s"), "write FIGURE=TIME"),
        ((*SMALL, "--model", "chat"), "there is no spec"),
        (("absent.yaml", *SMALL), "absent.yaml"),
        (("--trace", "absent.jsonl"), "absent.jsonl: there is no such trace file"),
    ],
)
def test_what_cannot_be_run_is_said(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = simulate(*arguments, cwd=tmp_path)
    assert done.returncode in {1, 2}
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_a_broken_trace_names_file_line_and_what_was_expected(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace.jsonl", '{"timestamp": 5000, "input_length": "long"}')
    done = simulate("--trace", str(trace), "--json")
    assert done.returncode == 1
    assert f"{trace}: line 41: expected input_length to be a whole number of tokens" in done.stderr
    assert not done.stdout
