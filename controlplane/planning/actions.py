"""The named actions of a plan. Each says what to do, to whom, and why in one stable word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Action:
    """One step on one replica; ``reason`` is stable snake_case."""

    verb: ClassVar[str] = ""
    replica: str
    reason: str

    def detail(self) -> str:
        """Return the step in words."""
        return self.reason.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Start(Action):
    """Make a record with a new generation and order the engine."""

    verb: ClassVar[str] = "start"
    pool: str
    index: int
    node: str
    host: str
    port: int

    def detail(self) -> str:
        """Return where the replica goes, and why."""
        return f"on {self.node} at {self.host}:{self.port} ({self.reason.replace('_', ' ')})"


@dataclass(frozen=True, slots=True)
class Drain(Action):
    """Take the replica out of rotation and let its streams end, ``timeout_s`` seconds at most."""

    verb: ClassVar[str] = "drain"
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Undrain(Action):
    """Put a draining replica back: what it was drained for is no longer wanted."""

    verb: ClassVar[str] = "undrain"


@dataclass(frozen=True, slots=True)
class Stop(Action):
    """Take the engine out of its node's orders; the port stays leased until Forget."""

    verb: ClassVar[str] = "stop"


@dataclass(frozen=True, slots=True)
class Restart(Action):
    """Order a new generation in the place of the one that runs or ran; the address stays."""

    verb: ClassVar[str] = "restart"


@dataclass(frozen=True, slots=True)
class Forget(Action):
    """Remove the record: its node says that nothing is left of the engine."""

    verb: ClassVar[str] = "forget"


@dataclass(frozen=True, slots=True)
class Blocked:
    """Something that is wanted and cannot be done now."""

    subject: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, what cannot be done, and when time alone changes the answer (None: never)."""

    actions: tuple[Action, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    wake_s: float | None = None
