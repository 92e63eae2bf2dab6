"""The load client's options and its report."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import process
from benchmarks.process import Cores
from benchmarks.programs import program
from benchmarks.replica import MODEL

#: After the measured time, requests in flight get this long to end.
GRACE_MS = 8_000
FINISH_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What one run of the load client sends. ``rate`` 0: a closed loop of ``connections``; else Poisson, per second."""

    connections: int
    duration_ms: int
    warmup_ms: int
    body_bytes: int = 200
    model_first: bool = False
    stream: bool = False
    max_tokens: int = 1
    rate: float = 0.0
    sessions: int = 0
    turns: int = 1
    shared_bytes: int = 0
    ramp_ms: int = 0
    seed: int = 1

    def arguments(self, ports: Sequence[int]) -> list[str]:
        """Return the command line after the program."""
        options = {
            "ports": ",".join(map(str, ports)),
            "connections": self.connections,
            "rate": self.rate,
            "warmup-ms": self.warmup_ms,
            "duration-ms": self.duration_ms,
            "grace-ms": GRACE_MS,
            "stream": int(self.stream),
            "max-tokens": self.max_tokens,
            "model": MODEL,
            "model-place": "first" if self.model_first else "last",
            "body-bytes": self.body_bytes,
            "sessions": self.sessions,
            "turns": self.turns,
            "shared-bytes": self.shared_bytes,
            "ramp-ms": self.ramp_ms,
            "seed": self.seed,
        }
        return [text for name, value in options.items() for text in (f"--{name}", str(value))]


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Durations in milliseconds; zeros when there were none."""

    count: int = 0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def from_us(cls, answer: dict[str, Any]) -> Percentiles:
        """Read one ``*_us`` object of the load client's report."""
        ms = {name: answer.get(name, 0) / 1000 for name in ("p50", "p90", "p99", "max")}
        return cls(count=int(answer["count"]), **ms)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What the load client saw. Counts ``sent``, ``done``, ``tokens`` and ``failures`` are of the whole run, the rest
    of the measured time.
    """

    sent: int
    done: int
    unfinished: int
    tokens: int
    failed: int
    failures: dict[str, int]
    window_s: float
    window_done: int
    window_tokens: int
    cpu_s: float
    ttft: Percentiles
    tpot: Percentiles
    e2e: Percentiles

    @classmethod
    def from_json(cls, text: str | bytes) -> LoadReport:
        """Parse the client's standard output. Raises ValueError when it is not a report."""
        answer = json.loads(text)
        try:
            return cls(
                sent=answer["requests_sent"],
                done=answer["requests_done"],
                unfinished=answer["unfinished"],
                tokens=answer["tokens"],
                failed=answer["failed"],
                failures={kind: n for kind, n in answer["failures"].items() if n},
                window_s=answer["window_s"],
                window_done=answer["window_done"],
                window_tokens=answer["window_tokens"],
                cpu_s=answer["cpu_s"],
                ttft=Percentiles.from_us(answer["ttft_us"]),
                tpot=Percentiles.from_us(answer["tpot_us"]),
                e2e=Percentiles.from_us(answer["e2e_us"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a report of the load client: {error}") from error


class Load:
    """A running load client."""

    def __init__(self, plan: LoadPlan, ports: Sequence[int], cores: Cores, folder: Path) -> None:
        self._output = folder / "load.out"
        self._process = process.start([str(program("load")), *plan.arguments(ports)], cores, self._output)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def finish(self) -> LoadReport:
        """Wait for its end and return its report. Raises ValueError when it failed."""
        try:
            self._process.wait(FINISH_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.stop(self._process)
        return LoadReport.from_json(self._output.read_bytes() or b"null")
