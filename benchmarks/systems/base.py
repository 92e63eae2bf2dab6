"""The contract of a system under test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.process import Cores


class Unavailable(Exception):
    """The system cannot be had on this machine; the message says why. The others are measured without it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reader must know of a system to judge its figures."""

    version: str
    configuration: str


class System(Protocol):
    """One ingress between the load client and the bench replicas."""

    @property
    def name(self) -> str:
        """Its name in results."""

    @property
    def ports(self) -> tuple[int, ...]:
        """Where the load client connects."""

    def start(self, replicas: Sequence[int], cores: Cores, folder: Path) -> Facts:
        """Start in front of ``replicas`` (ports) on ``cores``; return when it serves.

        Raises Unavailable when it cannot be had here, DidNotStart when it fails.
        """

    def ingress(self) -> Mapping[str, tuple[int, ...]]:
        """Return the processes that a request costs CPU in, by label, children included."""

    def others(self) -> Mapping[str, tuple[int, ...]]:
        """Return its processes that no request passes, by label."""

    def stop(self) -> None:
        """End everything that ``start`` started; harmless when it did not."""
