"""The replica's settings, as ``--config-json`` carries them. Zero counts have been filled in by engines/command.py."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields

from dataplane.engines.simulated.engine import Sizes, Speeds

#: Shortest step, so that a replica of speed zero does not spin.
MIN_STEP_S = 50e-6


@dataclass(frozen=True, slots=True)
class Settings:
    """Names and units of proto SimulatedEngine, and where to listen."""

    model: str
    host: str
    port: int
    replica: str = "simulated"
    adapters: tuple[str, ...] = ()
    step_base_ms: float = 0.0
    prefill_us_per_token: float = 0.0
    decode_us_per_sequence: float = 0.0
    kv_transfer_us_per_token: float = 0.0
    startup_s: float = 0.0
    max_batched_tokens: int = 8_192
    kv_capacity_tokens: int = 262_144
    kv_block_tokens: int = 16
    max_running: int = 256
    max_model_tokens: int = 32_768
    kv_events_endpoint: str = ""
    kv_replay_endpoint: str = ""
    kv_events_topic: str = ""
    fault_switches: bool = False
    shutdown_timeout_s: float = 30.0

    @property
    def kv_blocks(self) -> int:
        """Blocks of the KV cache, at least one."""
        return max(1, self.kv_capacity_tokens // self.kv_block_tokens)

    @property
    def context_tokens(self) -> int:
        """Longest prompt and answer together: as asked, but no more than the KV cache holds (vLLM's auto fit)."""
        return min(self.max_model_tokens, self.kv_blocks * self.kv_block_tokens)

    @property
    def speeds(self) -> Speeds:
        """Seconds."""
        return Speeds(
            step_s=max(self.step_base_ms / 1e3, MIN_STEP_S),
            prefill_token_s=self.prefill_us_per_token / 1e6,
            decode_sequence_s=self.decode_us_per_sequence / 1e6,
            transfer_token_s=self.kv_transfer_us_per_token / 1e6,
        )

    @property
    def sizes(self) -> Sizes:
        """Tokens and sequences."""
        return Sizes(
            self.max_batched_tokens, self.max_running, self.kv_blocks * self.kv_block_tokens, self.kv_block_tokens
        )


def parse(text: str) -> Settings:
    """Return the settings of a ``--config-json``. Raises ValueError that names the key."""
    given = json.loads(text)
    if not isinstance(given, dict):
        raise ValueError("--config-json must be an object")  # noqa: TRY004
    known = {field.name: field for field in fields(Settings)}
    unknown = sorted(set(given) - set(known))
    missing = sorted(name for name, f in known.items() if f.default is MISSING and name not in given)
    if unknown or missing:
        raise ValueError(f"--config-json: unknown keys {unknown}, missing keys {missing}")
    settings = Settings(**{**given, "adapters": tuple(given.get("adapters", ()))})
    for field in fields(Settings):
        _check(field.name, getattr(settings, field.name))
    return settings


_COUNTS = {"max_batched_tokens", "kv_capacity_tokens", "kv_block_tokens", "max_running", "max_model_tokens"}
_TEXTS = {"model", "host", "replica", "kv_events_endpoint", "kv_replay_endpoint", "kv_events_topic"}


def _check(name: str, value: object) -> None:
    if name in _TEXTS:
        good = isinstance(value, str)
    elif name == "fault_switches":
        good = isinstance(value, bool)
    elif name == "adapters":
        good = isinstance(value, tuple) and all(isinstance(v, str) for v in value)
    elif name in _COUNTS:
        good = isinstance(value, int) and not isinstance(value, bool) and value > 0
    elif name == "port":
        good = isinstance(value, int) and 0 < value < 65_536
    else:
        good = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    if not good:
        raise ValueError(f"--config-json: {name} may not be {value!r}")
