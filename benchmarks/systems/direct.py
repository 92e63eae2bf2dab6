"""No ingress: the load client on the replicas themselves, as the baseline of latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.process import Cores
from benchmarks.systems.base import Facts


class Direct:
    """Connections spread evenly over the replicas' ports."""

    name = "direct"

    def __init__(self) -> None:
        self.ports: tuple[int, ...] = ()

    def start(self, replicas: Sequence[int], cores: Cores, folder: Path) -> Facts:
        """Nothing to start."""
        self.ports = tuple(replicas)
        return Facts(version="-", configuration="load client connected to the replicas")

    def ingress(self) -> Mapping[str, tuple[int, ...]]:
        """None."""
        return {}

    def others(self) -> Mapping[str, tuple[int, ...]]:
        """None."""
        return {}

    def stop(self) -> None:
        """Nothing to stop."""
