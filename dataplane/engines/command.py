"""The exact command line and environment of one engine. PURE: an EngineLaunch in, text out, no I/O.

``vllm serve`` flags are those of vLLM 0.32 (``vllm serve --help=all``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from dataplane.errors import DataplaneError
from dataplane.names import HOST, MODEL, PATH, SERVER, checked, server_name
from dataplane.pb import engine_pb2, topology_pb2

MIDDLEWARE = "dataplane.middleware.SlipstreamMiddleware"
SIMULATED_MODULE = "dataplane.engines.simulated"

#: Linux takes no longer single argument or environment string (MAX_ARG_STRLEN, with its NUL).
MAX_TEXT_BYTES = 131_071
#: More extra arguments than any `vllm serve` has flags.
MAX_ARGS = 512
MAX_ENV = 256
MAX_ADAPTERS = 256
#: Seconds that running streams get after SIGTERM when the launch does not say; a simulated replica's own default.
SIMULATED_SHUTDOWN_TIMEOUT_S = 30
#: Longest shutdown that is still a shutdown.
MAX_SHUTDOWN_TIMEOUT_S = 86_400

#: Batches of KV events that vLLM keeps for a router that starts late: some 20 minutes under load, a few KB each. Blocks
#: that were stored before these are unknown to it until they are stored again.
KV_REPLAY_STEPS = 50_000

#: What a zero in SimulatedEngine means: the counts of a small replica. Times may be zero, and stay so.
SIMULATED_COUNTS = {
    "max_batched_tokens": 8_192,
    "kv_capacity_tokens": 262_144,
    "kv_block_tokens": 16,
    "max_running": 256,
    "max_model_tokens": 32_768,
}
SIMULATED_TIMES = (
    "step_base_ms",
    "prefill_us_per_token",
    "decode_us_per_sequence",
    "kv_transfer_us_per_token",
    "startup_s",
)
#: Largest time or rate that is taken: a day in seconds, far beyond any use in the other units.
MAX_TIME = 86_400.0

#: Flags that say where the replica is and what it is called: HAProxy's configuration rests on them.
RESERVED_FLAGS = frozenset({"--host", "--port", "--uds", "--served-model-name", "--model", "--config"})

_PIN = re.compile(r"[0-9a-f]{8}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_EVENTS_ENDPOINT = re.compile(r"tcp://(?:\*|[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:]{2,39}\]):[0-9]{1,5}")
#: What an engine can be told to bind for its KV events: a port of all addresses, or an abstract unix socket.
_BOUND_ENDPOINT = re.compile(r"tcp://\*:[0-9]{1,5}|ipc://@[a-z0-9-]{1,60}")
#: Set by us alone: another value would break the response pins.
_RESERVED_ENV = frozenset({"SLIPSTREAM_PIN", "SLIPSTREAM_SERVER", "SLIPSTREAM_REPORTS", "SLIPSTREAM_ISOLATE"})


class InvalidLaunch(DataplaneError):
    """No command line can be made of this EngineLaunch; the message says which value is wrong."""


@dataclass(frozen=True, slots=True)
class EngineSite:
    """What the machine gives to its engines."""

    python: str  # interpreter of engines that name none
    engine_path: str  # folder that holds `dataplane` (docs/contracts.md)
    reports: str = ""  # unix socket that the middleware reports to; empty: it does not


@dataclass(frozen=True, slots=True)
class Command:
    """One process to start: its argument vector, and what is added to the environment of whoever starts it."""

    argv: tuple[str, ...]
    env: dict[str, str]


def command(launch: engine_pb2.EngineLaunch, site: EngineSite) -> Command:
    """Return the command of a simulated or vLLM engine.

    Raises InvalidName or InvalidLaunch for a value that may not reach a command line, and InvalidLaunch for external
    engines, which are not ours to start.
    """
    checked(SERVER, server_name(launch.replica, launch.generation), "server name")
    checked(MODEL, launch.served_model, "served model")
    checked(HOST, launch.host, "host")
    _count(launch.port, "port", 1, 65_535)
    if len(launch.adapters) > MAX_ADAPTERS:
        raise InvalidLaunch(f"{launch.replica}: more than {MAX_ADAPTERS} adapters")
    for adapter in launch.adapters:
        checked(MODEL, adapter.name, "adapter name")
    kinds: dict[int, Callable[[engine_pb2.EngineLaunch], tuple[str, ...]]] = {
        topology_pb2.ENGINE_KIND_SIMULATED: _simulated,
        topology_pb2.ENGINE_KIND_VLLM: _vllm,
    }
    arguments = kinds.get(launch.kind)
    if arguments is None:
        raise InvalidLaunch(
            f"{launch.replica}: an engine of kind {_kind_name(launch.kind)} is not started by Slipstream"
        )
    python = checked(PATH, launch.python or site.python, "python")
    return Command(argv=(python, *arguments(launch), *_extra(launch)), env=_env(launch, site))


def _simulated(launch: engine_pb2.EngineLaunch) -> tuple[str, ...]:
    config: dict[str, object] = {
        "replica": launch.replica,
        "model": launch.served_model,
        "host": launch.host,
        "port": launch.port,
        "adapters": [adapter.name for adapter in launch.adapters],
    }
    sim = launch.simulated
    for name in SIMULATED_TIMES:
        config[name] = _time(getattr(sim, name), f"simulated.{name}")
    for name, default in SIMULATED_COUNTS.items():
        config[name] = getattr(sim, name) or default
    if launch.HasField("kv_events"):
        endpoint, replay, topic = _kv_events(launch)
        config |= {"kv_events_endpoint": endpoint, "kv_replay_endpoint": replay, "kv_events_topic": topic}
    elif sim.kv_events_endpoint:
        config["kv_events_endpoint"] = checked(_EVENTS_ENDPOINT, sim.kv_events_endpoint, "simulated.kv_events_endpoint")
    config["fault_switches"] = sim.fault_switches
    config["shutdown_timeout_s"] = _shutdown_timeout(launch) or SIMULATED_SHUTDOWN_TIMEOUT_S
    text = json.dumps(config, separators=(",", ":"))
    return ("-m", SIMULATED_MODULE, "--config-json", text, "--middleware", MIDDLEWARE)


def _vllm(launch: engine_pb2.EngineLaunch) -> tuple[str, ...]:
    vllm = launch.vllm
    weights = launch.weights
    checked(PATH if weights.startswith("/") else MODEL, weights, "weights")
    argv = ["-m", "vllm.entrypoints.cli.main", "serve", weights]
    argv += ["--served-model-name", launch.served_model, "--host", launch.host, "--port", str(launch.port)]
    for flag, value in (
        ("--tensor-parallel-size", vllm.tensor_parallel_size),
        ("--pipeline-parallel-size", vllm.pipeline_parallel_size),
        ("--max-model-len", vllm.max_model_tokens),
        ("--max-num-seqs", vllm.max_running),
        ("--block-size", vllm.kv_block_tokens),
    ):
        if value:
            argv += [flag, str(value)]
    if vllm.gpu_memory_utilization:
        share = vllm.gpu_memory_utilization
        if not 0 < share <= 1:
            raise InvalidLaunch(f"{launch.replica}: vllm.gpu_memory_utilization {share} is not within 0..1")
        argv += ["--gpu-memory-utilization", f"{share:g}"]
    argv += ["--shutdown-timeout", str(_shutdown_timeout(launch))]
    if launch.adapters:
        argv += ["--enable-lora", "--lora-modules", *(_lora_module(adapter) for adapter in launch.adapters)]
    if launch.HasField("kv_events"):
        endpoint, replay, topic = _kv_events(launch)
        config = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": endpoint,
            "replay_endpoint": replay,
            "buffer_steps": KV_REPLAY_STEPS,
            "topic": topic,
        }
        argv += ["--kv-events-config", json.dumps(config, separators=(",", ":"))]
    # HAProxy logs every request; a second line per request, with its path, is cost without use.
    argv += ["--disable-uvicorn-access-log", "--middleware", MIDDLEWARE]
    return tuple(argv)


def _kv_events(launch: engine_pb2.EngineLaunch) -> tuple[str, str, str]:
    """Return the endpoint of KV events, that of their replay, and the topic of every message."""
    events = launch.kv_events
    return (
        checked(_BOUND_ENDPOINT, events.endpoint, "kv_events.endpoint"),
        checked(_BOUND_ENDPOINT, events.replay_endpoint, "kv_events.replay_endpoint"),
        checked(SERVER, events.topic, "kv_events.topic"),
    )


def _lora_module(adapter: topology_pb2.Adapter) -> str:
    path = checked(PATH, adapter.path, f"path of adapter {adapter.name}")
    if "," in path:  # vLLM reads `name=path` only when there is no comma in it
        return json.dumps({"name": adapter.name, "path": path}, separators=(",", ":"))
    return f"{adapter.name}={path}"


def _extra(launch: engine_pb2.EngineLaunch) -> tuple[str, ...]:
    if len(launch.args) > MAX_ARGS:
        raise InvalidLaunch(f"{launch.replica}: more than {MAX_ARGS} arguments")
    for arg in launch.args:
        _text(arg, "an argument")
        flag = arg.split("=", 1)[0].replace("_", "-")
        if flag in RESERVED_FLAGS:
            raise InvalidLaunch(f"{launch.replica}: args may not set {flag}; the spec has its own key for it")
    return tuple(launch.args)


def _env(launch: engine_pb2.EngineLaunch, site: EngineSite) -> dict[str, str]:
    if len(launch.env) > MAX_ENV:
        raise InvalidLaunch(f"{launch.replica}: more than {MAX_ENV} environment variables")
    env: dict[str, str] = {}
    for name in sorted(launch.env):
        checked(_ENV_NAME, name, "environment variable")
        if name in _RESERVED_ENV:
            raise InvalidLaunch(f"{launch.replica}: env may not set {name}")
        env[name] = _text(launch.env[name], f"the value of {name}")
    own = checked(PATH, site.engine_path, "engine path")
    env["PYTHONPATH"] = f"{own}:{env['PYTHONPATH']}" if env.get("PYTHONPATH") else own
    env["SLIPSTREAM_PIN"] = checked(_PIN, launch.pin_key, "pin key")
    if site.reports:
        env["SLIPSTREAM_SERVER"] = server_name(launch.replica, launch.generation)
        env["SLIPSTREAM_REPORTS"] = checked(PATH, site.reports, "reports socket")
    if launch.isolate_cache:
        env["SLIPSTREAM_ISOLATE"] = "1"
    return env


def _shutdown_timeout(launch: engine_pb2.EngineLaunch) -> int:
    return _count(launch.vllm.shutdown_timeout_s, "vllm.shutdown_timeout_s", 0, MAX_SHUTDOWN_TIMEOUT_S)


def _count(value: int, what: str, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidLaunch(f"{what} {value} is not within {low}..{high}")
    return value


def _time(value: float, what: str) -> float:
    if not (math.isfinite(value) and 0 <= value <= MAX_TIME):
        raise InvalidLaunch(f"{what} {value} is not within 0..{MAX_TIME:g}")
    return value


def _text(value: str, what: str) -> str:
    if "\0" in value:
        raise InvalidLaunch(f"{what} holds a NUL character")
    if len(value.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise InvalidLaunch(f"{what} is longer than {MAX_TEXT_BYTES} bytes")
    return value


def _kind_name(kind: int) -> str:
    names = topology_pb2.EngineKind.keys()
    return names[kind].removeprefix("ENGINE_KIND_").lower() if 0 <= kind < len(names) else str(kind)
