import json
from pathlib import Path

import pytest

from benchmarks.cells import BASE_REQUEST
from benchmarks.cpu import Memory
from benchmarks.measure import Idle
from benchmarks.report import Results, markdown, number, table, write
from benchmarks.systems.base import Facts
from tests.benchmarks.runs import a_run
from tests.benchmarks.test_summary import comparison


@pytest.fixture
def results() -> Results:
    refused = a_run(
        "slipstream", BASE_REQUEST.name, 0, 1.0, refused="bound by the replica (95% of a core, ingress 20%)"
    )
    systems = {name: Facts("1.0", "as it comes") for name in ("direct", "slipstream", "vllm-router-rr")}
    idle = [Idle("haproxy", 0.001, Memory(20 << 20, 18 << 20)), Idle("router", 0.002, Memory(40 << 20, 30 << 20))]
    missing = {"vllm-router-ca": "cannot be installed"}
    return Results({"cores": 2}, {"rounds": 3}, systems, missing, [*comparison(), refused], idle)


def test_table_is_markdown() -> None:
    assert table(("a", "b"), [("x", "1"), ("y", "2")]) == "| a | b |\n|---|---:|\n| x | 1 |\n| y | 2 |"


@pytest.mark.parametrize(
    ("value", "text"), [(0.756, "0.76"), (9.999, "10.00"), (41.26, "41.3"), (1234.4, "1,234"), (-0.5, "-0.50")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_markdown_tells_everything(results: Results) -> None:
    text = markdown(results)
    assert f"| CPU per request, {BASE_REQUEST.name} | 1x vllm-router-rr | **0.80** [0.60-1.60] | yes |" in text
    assert f"| CPU per request, {BASE_REQUEST.name} | **0.80** [0.60-1.60] |" in text
    assert "| all | 0.30 | 60.0 | 48.0 |" in text
    assert "Not measured: vllm-router-ca: cannot be installed" in text
    assert f"- slipstream, {BASE_REQUEST.name}: bound by the replica (1 times)" in text
    assert "1 of 16 runs were refused" in text


def test_files_hold_runs_and_summary(results: Results, tmp_path: Path) -> None:
    as_json, as_markdown = write(results, tmp_path / "new", "latest")
    whole = json.loads(as_json.read_text())
    assert len(whole["runs"]) == 16
    assert whole["summary"][0]["ratios"]["vllm-router-rr"]["median"] == pytest.approx(0.8)
    assert {g["metric"] for g in whole["goals"]} >= {f"CPU per request, {BASE_REQUEST.name}", "CPU per token"}
    assert as_markdown.read_text().startswith("# Benchmark results\n")
