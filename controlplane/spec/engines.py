"""What a pool's replicas run: a simulated engine, `vllm serve`, or a server that somebody else runs."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from controlplane.spec import fields
from controlplane.spec.fields import (
    Count,
    Endpoint,
    EnvName,
    Flag,
    Number,
    PathOrNone,
    Text,
    Weights,
    WordOrInteger,
    refused,
)

#: Bounds of a spec; each is far above a sensible use and keeps what is made from the spec bounded.
MAX_ARGS = 256
MAX_ENV = 256
MAX_GPUS = 1_024
MAX_ENDPOINTS = 4_096
MAX_TOKENS = 1 << 40

#: `vllm serve` flags that Slipstream writes itself -> the key to write instead (empty: there is none).
RESERVED_FLAGS = {
    "--host": "",
    "--port": "",
    "--uds": "",
    "--model": "model",
    "--config": "",
    "--served-model-name": "",
    "--middleware": "",
    "--lora-modules": "adapters",
    "--tensor-parallel-size": "tensor_parallel_size",
    "--pipeline-parallel-size": "pipeline_parallel_size",
    "--max-model-len": "max_model_tokens",
    "--max-num-seqs": "max_running",
    "--block-size": "kv_block_tokens",
    "--gpu-memory-utilization": "gpu_memory_utilization",
    "--shutdown-timeout": "shutdown_timeout_s",
}
_SHORT_FLAGS = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size"}
_RESERVED_ENV = {"PYTHONPATH"}
_RESERVED_ENV_PREFIX = "SLIPSTREAM_"

_EVENTS_ENDPOINT = re.compile(r"tcp://(?:\*|[^*]{1,300}):[0-9]{1,5}")


class Part(BaseModel):
    """Base of every part of a spec: frozen, and a key that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _allowed_arg(arg: str) -> str:
    name = arg.split("=", 1)[0]
    if not name.startswith("-") or name in {"-", "--"}:
        return arg
    # The engine's parser takes _ for - and any unambiguous beginning of a flag.
    name = _SHORT_FLAGS.get(name, name.replace("_", "-"))
    if not name.startswith("--"):
        return arg
    for flag, key in RESERVED_FLAGS.items():
        if flag.startswith(name):
            instead = f"write the key '{key}' instead" if key else "Slipstream sets it itself"
            raise refused(f"{flag} is not allowed here: {instead}")
    return arg


def _allowed_env(name: str) -> str:
    if name in _RESERVED_ENV or name.startswith(_RESERVED_ENV_PREFIX):
        raise refused(f"{name} is not allowed here: Slipstream sets it itself")
    return name


def _events_endpoint(value: str) -> str:
    if value == "":
        return value
    if _EVENTS_ENDPOINT.fullmatch(value) is None:
        raise refused(f"endpoint {fields.shown(value)} is not allowed: write tcp://host:port")
    fields.split_address(value.removeprefix("tcp://").replace("*", "0.0.0.0", 1))  # noqa: S104 only to read the port
    return value


Arg = Annotated[WordOrInteger, AfterValidator(_allowed_arg)]
EngineEnvName = Annotated[EnvName, AfterValidator(_allowed_env)]


class SimulatedEngineSpec(Part):
    """A stand-in for `vllm serve` that computes nothing; the defaults are an 8B model on one large GPU."""

    kind: Literal["simulated"] = "simulated"
    """The kind of engine."""
    step_base_ms: Annotated[Number, Field(ge=0, le=10_000)] = 8.0
    """Milliseconds of one engine step with nothing in it."""
    prefill_us_per_token: Annotated[Number, Field(ge=0, le=1_000_000)] = 45.0
    """Microseconds for each prompt token that is not cached."""
    decode_us_per_sequence: Annotated[Number, Field(ge=0, le=1_000_000)] = 60.0
    """Microseconds that each running request adds to a step."""
    max_batched_tokens: Annotated[Count, Field(ge=1, le=1 << 20)] = 8_192
    """Prompt tokens that one step prefills."""
    kv_capacity_tokens: Annotated[Count, Field(ge=1, le=1 << 32)] = 400_000
    """Tokens that the KV cache holds."""
    kv_block_tokens: Annotated[Count, Field(ge=1, le=4_096)] = 16
    """Tokens in one KV block."""
    max_running: Annotated[Count, Field(ge=1, le=65_536)] = 256
    """Requests that are decoded at once; more wait."""
    max_model_tokens: Annotated[Count, Field(ge=1, le=1 << 24)] = 32_768
    """Context length: prompt and output, in tokens."""
    kv_transfer_us_per_token: Annotated[Number, Field(ge=0, le=1_000_000)] = 3.0
    """Microseconds to pull one token's KV from a peer."""
    startup_s: Annotated[Number, Field(ge=0, le=3_600)] = 0.5
    """Seconds from the start until the engine is healthy."""
    kv_events_endpoint: Annotated[Text, AfterValidator(_events_endpoint)] = ""
    """`tcp://host:port` on which KV events are published over ZMQ; replica i takes port + i. Empty: nowhere."""
    fault_switches: Flag = False
    """Serve POST /simulated/faults, for tests."""


class VllmEngineSpec(Part):
    """A `vllm serve` process. Numbers that are 0 are left to vLLM."""

    kind: Literal["vllm"] = "vllm"
    """The kind of engine."""
    model: Weights
    """Weights: a directory on the nodes, or a hub name."""
    python: PathOrNone = ""
    """Interpreter of the environment that vLLM is installed in. Empty: the one that runs Slipstream."""
    tensor_parallel_size: Annotated[Count, Field(ge=1, le=1_024)] = 1
    """GPUs that share each layer."""
    pipeline_parallel_size: Annotated[Count, Field(ge=1, le=1_024)] = 1
    """Stages that the layers are spread over."""
    gpus: Annotated[tuple[Annotated[Count, Field(ge=0, le=1_023)], ...], Field(max_length=MAX_GPUS)] = ()
    """Numbers of the node's GPUs, dealt out in order: each replica gets its own as CUDA_VISIBLE_DEVICES. Empty: all."""
    max_model_tokens: Annotated[Count, Field(ge=0, le=1 << 24)] = 0
    """Context length in tokens. 0: the model's own."""
    max_running: Annotated[Count, Field(ge=0, le=65_536)] = 0
    """Requests that are decoded at once. 0: vLLM's default."""
    kv_block_tokens: Annotated[Count, Field(ge=0, le=4_096)] = 0
    """Tokens in one KV block. 0: vLLM's default."""
    gpu_memory_utilization: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Part of the GPU's memory that vLLM takes, 0 to 1. 0: vLLM's default."""
    shutdown_timeout_s: Annotated[Count, Field(ge=0, le=86_400)] = 30
    """Seconds that running requests get after SIGTERM."""
    args: Annotated[tuple[Arg, ...], Field(max_length=MAX_ARGS)] = ()
    """Further arguments of `vllm serve`, unchanged, one entry each."""
    env: Annotated[dict[EngineEnvName, WordOrInteger], Field(max_length=MAX_ENV), fields.IN_ORDER] = Field(
        default_factory=dict
    )
    """Environment variables of the engine."""


class ExternalEngineSpec(Part):
    """OpenAI-compatible servers that already run: probed and routed to, never started or stopped.

    Sizes that are 0 are not known.
    """

    kind: Literal["external"] = "external"
    """The kind of engine."""
    endpoints: Annotated[tuple[Endpoint, ...], Field(min_length=1, max_length=MAX_ENDPOINTS)]
    """`http://host:port` of each server; one replica each."""
    kv_capacity_tokens: Annotated[Count, Field(ge=0, le=MAX_TOKENS)] = 0
    """Tokens that the KV cache of one server holds. 0: not known."""
    kv_block_tokens: Annotated[Count, Field(ge=0, le=4_096)] = 0
    """Tokens in one KV block. 0: not known."""
    max_running: Annotated[Count, Field(ge=0, le=65_536)] = 0
    """Requests that one server decodes at once. 0: not known."""

    @field_validator("endpoints")
    @classmethod
    def _different(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        seen: set[tuple[str, int]] = set()
        for endpoint in endpoints:
            if (place := fields.split_endpoint(endpoint)) in seen:
                raise refused(f"endpoint {endpoint} is listed twice")
            seen.add(place)
        return endpoints


EngineSpec = Annotated[
    SimulatedEngineSpec | VllmEngineSpec | ExternalEngineSpec,
    Field(discriminator="kind"),
]
