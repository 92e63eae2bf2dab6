"""The bench replica's process: what every system of a benchmark stands in front of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks import local_http, process
from benchmarks.process import Cores
from benchmarks.programs import program

START_TIMEOUT_S = 10.0
MODEL = "bench"


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """Counters of the bench replica since its start, over all of its ports. ``late_tokens`` left over 2 ms late."""

    requests: int = 0
    completed: int = 0
    aborted: int = 0
    tokens: int = 0
    late_tokens: int = 0
    late_max_us: int = 0
    renders: int = 0
    tokenizes: int = 0
    probes: int = 0
    body_bytes: int = 0

    @classmethod
    def from_json(cls, answer: Any) -> ReplicaStats:
        """Sum the ports of a ``/mock/stats`` answer; ``late_max_us`` is the greatest of them."""
        replicas = answer["replicas"]
        sums = {f.name: sum(int(r[f.name]) for r in replicas) for f in fields(cls)}
        sums["late_max_us"] = max((int(r["late_max_us"]) for r in replicas), default=0)
        return cls(**sums)

    def since(self, before: ReplicaStats) -> ReplicaStats:
        """Return what was counted after ``before``; ``late_max_us`` stays that of the whole time."""
        differences = {f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)}
        return ReplicaStats(**{**differences, "late_max_us": self.late_max_us})


class BenchReplica:
    """One process that is ``len(ports)`` replicas."""

    def __init__(self, ports: Sequence[int], cores: Cores, folder: Path) -> None:
        self.ports = tuple(ports)
        log = folder / "replica.log"
        command = [str(program("replica")), "--ports", ",".join(map(str, ports)), "--model", MODEL]
        self._process = process.start(command, cores, log)
        process.wait_until(lambda: local_http.answers(self.ports[-1], "/health"), self._process, log, START_TIMEOUT_S)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def stats(self) -> ReplicaStats:
        """Return its counters now."""
        return ReplicaStats.from_json(local_http.get_json(self.ports[0], "/mock/stats"))

    def set_times(self, first_token_ms: float, gap_ms: float) -> None:
        """Set the milliseconds to the first token and between tokens, for requests and tokens from now on."""
        query = f"ttft_us={round(first_token_ms * 1000)}&itl_us={round(gap_ms * 1000)}"
        local_http.get_json(self.ports[0], f"/mock/set?{query}")

    def stop(self) -> None:
        """End it."""
        process.stop(self._process)
