"""The simulated engine's answers have the shapes of vLLM 0.32.0's."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.dataplane.engines.exchanges import EXCHANGES, ask
from tests.dataplane.engines.record import METRICS, SHAPES, metric_names
from tests.dataplane.engines.replicas import Running, replica
from tests.dataplane.engines.shapes import key_order

DEADLINE_S = 3.0
RECORDED = json.loads(SHAPES.read_text())
#: vLLM tells more of its cache's configuration than a stand-in has.
PARTLY = frozenset({"vllm:cache_config_info"})


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with replica(step_base_ms=5) as running:
        yield running


@pytest.mark.parametrize("name", EXCHANGES)
def test_same_shape_as_vllm(server: Running, name: str) -> None:
    """Both servers merge tokens into one event when they are busy: such an answer is asked for again."""
    end = time.monotonic() + DEADLINE_S
    while (got := _comparable(name, ask(server.client, name))) != _comparable(name, RECORDED[name]):
        if time.monotonic() > end:
            assert got == _comparable(name, RECORDED[name])


def _comparable(name: str, answer: dict[str, Any]) -> Any:
    answer = json.loads(json.dumps(answer))
    if name == "chat-stream-choices":  # which choice goes first is chance
        answer["body"] = _events(answer["body"])
    return key_order(answer)


def _events(body: list[object]) -> list[str]:
    return sorted({json.dumps(event) for event in body})


def test_every_recorded_exchange_is_asked() -> None:
    assert set(RECORDED) == set(EXCHANGES)


def test_metrics_have_vllm_names_and_labels(server: Running) -> None:
    ask(server.client, "chat")
    real = {line.split()[0]: set(line.split()[1:]) for line in METRICS.read_text().splitlines()}
    ours = metric_names(server.client.get("/metrics").text)
    assert set(ours) <= set(real)
    for name, labels in ours.items():
        assert labels <= real[name] if name in PARTLY else labels == real[name], name
