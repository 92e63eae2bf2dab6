import json

import pytest

from benchmarks.load import LoadPlan, LoadReport, Percentiles

REPORT = {
    "requests_sent": 10,
    "requests_done": 8,
    "unfinished": 1,
    "tokens": 80,
    "window_s": 2.0,
    "cpu_s": 0.5,
    "window_done": 6,
    "window_tokens": 60,
    "failures": {"connect": 1, "closed": 0},
    "failed": 1,
    "ttft_us": {"count": 6, "p50": 20_500, "p90": 21_000, "p99": 22_000, "max": 23_000},
    "tpot_us": {"count": 0},
    "e2e_us": {"count": 6, "p50": 1, "p90": 2, "p99": 3, "max": 4},
}


def test_reads_a_report() -> None:
    report = LoadReport.from_json(json.dumps(REPORT))
    assert (report.sent, report.done, report.failures) == (10, 8, {"connect": 1})
    assert report.ttft == Percentiles(6, 20.5, 21.0, 22.0, 23.0)
    assert report.tpot == Percentiles()


@pytest.mark.parametrize("text", ["", "null", "{}", "[1]", '{"requests_sent": 1}', "not json"])
def test_refuses_what_is_no_report(text: str) -> None:
    with pytest.raises(ValueError):
        LoadReport.from_json(text)


def test_arguments_are_pairs() -> None:
    arguments = LoadPlan(connections=3, duration_ms=100, warmup_ms=0, model_first=True, stream=True).arguments([1, 2])
    pairs = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert pairs["--ports"] == "1,2"
    assert pairs["--model-place"] == "first"
    assert pairs["--stream"] == "1"
