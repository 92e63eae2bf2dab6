"""One incarnation of a replica on this node, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataplane.launchers.base import RunningProcess
from dataplane.launchers.logs import tail
from dataplane.launchers.records import ProcessRecord
from dataplane.names import server_name
from dataplane.node.decide import Held, Life
from dataplane.node.readiness import Readiness

#: Lines of its log that a failure is reported with (EngineReport.last_log_lines).
MAX_LOG_LINES = 20
#: Seconds between SIGTERM and SIGKILL of an engine whose order is not known any more.
DEFAULT_STOP_GRACE_S = 10.0


@dataclass(slots=True, eq=False)
class Incarnation:
    """Changes as its process does; ``exited`` and ``exit_code`` only once that has ended."""

    replica: str
    generation: int
    endpoints: tuple[tuple[str, int], ...]  # host, port: all must answer
    life: Life
    stop_grace_s: float = DEFAULT_STOP_GRACE_S
    readiness: Readiness = field(default_factory=Readiness)
    process: RunningProcess | None = None
    record: ProcessRecord | None = None  # of a process that ended while no agent was there
    detail: str = ""
    exited: bool = False
    exit_code: int | None = None
    last_log_lines: list[str] = field(default_factory=list)
    started_unix_ms: int = 0
    kv_capacity_tokens: int = 0
    kv_block_tokens: int = 0

    @property
    def server(self) -> str:
        """Its name in HAProxy."""
        return server_name(self.replica, self.generation)

    @property
    def probed(self) -> bool:
        """Whether it is to be asked if it answers."""
        return self.life in {Life.RUNNING, Life.PROBED}

    @property
    def held(self) -> Held:
        """What the decision needs to know."""
        return Held(self.replica, self.generation, self.life, self.stop_grace_s)

    def runs(self, process: RunningProcess) -> None:
        """Its process is there."""
        self.life = Life.RUNNING
        self.process = process
        self.started_unix_ms = process.started_unix_ms
        self.detail = ""

    def ended(self, code: int | None, detail: str = "") -> None:
        """Its process is gone; ``code`` None: nobody who was its parent told us."""
        self.life = Life.ENDED
        self.exited = True
        self.exit_code = code
        self.detail = detail or _ending(code)
        self.readiness = Readiness(detail="")
        if self.process is not None:
            self.last_log_lines = tail(self.process.log, MAX_LOG_LINES)


def _ending(code: int | None) -> str:
    if code is None:
        return "ended; its exit code is not known, an earlier agent started it"
    return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
