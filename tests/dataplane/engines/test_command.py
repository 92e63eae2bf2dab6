"""Each file in ``commands``: an EngineLaunch, ``----``, and its command; SLIPSTREAM_REWRITE=1 writes the latter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engines.command import Command, EngineSite, InvalidLaunch, command
from dataplane.engines.simulated.settings import parse
from dataplane.errors import DataplaneError, InvalidName
from dataplane.pb import engine_pb2, topology_pb2

FILES = sorted((Path(__file__).parent / "commands").glob("*.txt"))
SEPARATOR = "\n----\n"
SITE = EngineSite(
    python="/opt/slipstream/bin/python",
    engine_path="/var/lib/slipstream/engine-path",
    reports="/var/lib/slipstream/run/reports.sock",
)


def launch(**changes: object) -> engine_pb2.EngineLaunch:
    message = engine_pb2.EngineLaunch(
        replica="chat-0",
        generation=1,
        kind=topology_pb2.ENGINE_KIND_VLLM,
        served_model="chat",
        weights="org/model",
        host="127.0.0.1",
        port=8000,
        pin_key="0123abcd",
    )
    message.MergeFrom(engine_pb2.EngineLaunch(**changes))  # type: ignore[arg-type]
    return message


def shown(made: Command) -> str:
    return "\n".join([*made.argv, *(f"{name}={value}" for name, value in made.env.items())])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_golden(file: Path) -> None:
    given_text, _, expected = file.read_text().partition(SEPARATOR)
    made = shown(command(text_format.Parse(given_text, engine_pb2.EngineLaunch()), SITE))
    if os.environ.get("SLIPSTREAM_REWRITE"):
        file.write_text(f"{given_text.rstrip()}{SEPARATOR}{made}\n")
        return
    assert made == expected.rstrip("\n")


def test_the_simulated_engine_understands_its_command() -> None:
    made = command(launch(kind=topology_pb2.ENGINE_KIND_SIMULATED), SITE)
    settings_read = parse(made.argv[made.argv.index("--config-json") + 1])
    assert (settings_read.model, settings_read.port, settings_read.max_running) == ("chat", 8000, 256)


@pytest.mark.parametrize(
    "changes",
    [
        {"replica": "Chat"},
        {"replica": "chat-0\n"},
        {"served_model": "chat\n"},
        {"served_model": "-chat"},
        {"host": "127.0.0.1 --api-key x"},
        {"weights": "--trust-remote-code"},
        {"weights": "/models/a b"},
        {"python": "python"},
        {"python": "/usr/bin/python\n"},
        {"pin_key": "xyz"},
        {"adapters": [topology_pb2.Adapter(name="a=b", path="/a")]},
        {"adapters": [topology_pb2.Adapter(name="a", path="relative")]},
        {"env": {"A B": "x"}},
        {"kv_events": engine_pb2.KvEvents(endpoint="tcp://10.0.0.1:1", replay_endpoint="tcp://*:2", topic="a-0.g1")},
        {"kv_events": engine_pb2.KvEvents(endpoint="tcp://*:1", replay_endpoint="ipc:///tmp/x", topic="a-0.g1")},
        {"kv_events": engine_pb2.KvEvents(endpoint="tcp://*:1", replay_endpoint="tcp://*:2", topic="a")},
    ],
)
def test_names_are_checked(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidName):
        command(launch(**changes), SITE)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": topology_pb2.ENGINE_KIND_EXTERNAL},
        {"port": 70_000},
        {"args": ["--port=1"]},
        {"args": ["--served_model_name", "x"]},
        {"args": ["a\0b"]},
        {"args": ["x" * 200_000]},
        {"args": ["x"] * 1000},
        {"env": {"SLIPSTREAM_PIN": "00000000"}},
        {"env": {"SLIPSTREAM_ISOLATE": "0"}},
        {"vllm": engine_pb2.VllmEngine(gpu_memory_utilization=1.5)},
        {"vllm": engine_pb2.VllmEngine(gpu_memory_utilization=float("nan"))},
        {"vllm": engine_pb2.VllmEngine(shutdown_timeout_s=1_000_000)},
        {
            "kind": topology_pb2.ENGINE_KIND_SIMULATED,
            "simulated": engine_pb2.SimulatedEngine(step_base_ms=float("inf")),
        },
        {"kind": topology_pb2.ENGINE_KIND_SIMULATED, "simulated": engine_pb2.SimulatedEngine(startup_s=-1)},
    ],
)
def test_values_are_checked(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidLaunch):
        command(launch(**changes), SITE)


def test_an_events_endpoint_is_tcp() -> None:
    wrong = engine_pb2.SimulatedEngine(kv_events_endpoint="ipc:///tmp/x")
    with pytest.raises(InvalidName):
        command(launch(kind=topology_pb2.ENGINE_KIND_SIMULATED, simulated=wrong), SITE)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_no_value_becomes_another_argument(model: str, weights: str, host: str) -> None:
    plain = command(launch(), SITE)
    message = launch()
    message.served_model, message.weights, message.host = (
        text.encode("utf-8", "replace").decode() for text in (model, weights, host)
    )
    try:
        made = command(message, SITE)
    except DataplaneError:
        return
    assert len(made.argv) == len(plain.argv)
    assert not any(value.startswith("-") for value in (message.served_model, message.weights, message.host))
