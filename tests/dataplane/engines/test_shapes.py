"""The simulated engine's answers have the shapes of vLLM 0.32.0's."""

from __future__ import annotations

import json

import pytest

from tests.dataplane.engines.exchanges import EXCHANGES, ask
from tests.dataplane.engines.record import METRICS, SHAPES, metric_names
from tests.dataplane.engines.replicas import Running
from tests.dataplane.engines.shapes import key_order

RECORDED = json.loads(SHAPES.read_text())
#: vLLM tells more of its cache's configuration than a stand-in has.
PARTLY = frozenset({"vllm:cache_config_info"})


@pytest.mark.parametrize("name", EXCHANGES)
def test_same_shape_as_vllm(server: Running, name: str) -> None:
    got = json.loads(json.dumps(ask(server.client, name)))
    want = RECORDED[name]
    if name == "chat-stream-choices":  # which choice goes first is chance
        got["body"], want["body"] = (_events(answer["body"]) for answer in (got, want))
    assert key_order(got) == key_order(want)


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
