"""Where everything that runs on one machine keeps its sockets, logs and records."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

#: Linux refuses longer unix socket paths (sun_path is 108 bytes with its NUL).
MAX_SOCKET_PATH = 107


def default_root() -> Path:
    """Return ``$SLIPSTREAM_STATE_DIR``, else ``~/.local/state/slipstream`` (or under ``$XDG_STATE_HOME``)."""
    named = os.environ.get("SLIPSTREAM_STATE_DIR")
    if named:
        return Path(named)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "slipstream"


@dataclass(frozen=True, slots=True)
class StateDir:
    """Names of the files below one state directory; ``create`` makes its folders, mode 0700."""

    root: Path

    def create(self) -> None:
        """Make the folders. Raises ValueError when a socket's path would be too long for the kernel."""
        longest = len(os.fsencode(self.haproxy_master_socket)) + len(".12345.tmp")
        if longest > MAX_SOCKET_PATH:
            raise ValueError(f"state directory {self.root} is too long: a socket path takes {MAX_SOCKET_PATH} bytes")
        for folder in (self.root, self.run, self.logs, self.processes, self.gateway, self.router, self.node):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def run(self) -> Path:
        """Folder of the sockets."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """Folder of the processes' standard output and error, ``<process>.log``."""
        return self.root / "logs"

    @property
    def processes(self) -> Path:
        """Folder of one JSON record for each process, ``<process>.json``."""
        return self.root / "processes"

    @property
    def gateway(self) -> Path:
        """Folder of rendered HAProxy files; ``current`` is a link to the applied ones."""
        return self.root / "gateway"

    @property
    def router(self) -> Path:
        """Folder of the router's last good topology."""
        return self.root / "router"

    @property
    def node(self) -> Path:
        """Folder of the node agent's last orders."""
        return self.root / "node"

    @property
    def database(self) -> Path:
        """The controller's SQLite file."""
        return self.root / "slipstream.db"

    @property
    def lock(self) -> Path:
        """Held by the one `slipstream up` that owns this directory."""
        return self.root / "up.lock"

    @property
    def controller_socket(self) -> Path:
        """gRPC: AdminService, TopologyService, NodeService, health, reflection. Mode 0600."""
        return self.run / "controller.sock"

    @property
    def router_socket(self) -> Path:
        """gRPC: RoutingService, health, reflection. Mode 0600."""
        return self.run / "router.sock"

    @property
    def spop_socket(self) -> Path:
        """SPOP: HAProxy asks the router. Mode 0600."""
        return self.run / "spop.sock"

    @property
    def log_socket(self) -> Path:
        """Datagrams: HAProxy tells the router how requests ended. Mode 0600."""
        return self.run / "log.sock"

    @property
    def reports_socket(self) -> Path:
        """Datagrams: engines tell the router what they did. Mode 0600."""
        return self.run / "reports.sock"

    @property
    def haproxy_socket(self) -> Path:
        """HAProxy's Runtime API. Mode 0600."""
        return self.run / "haproxy.sock"

    @property
    def haproxy_master_socket(self) -> Path:
        """The command line of HAProxy's master process. Mode 0600."""
        return self.run / "haproxy-master.sock"
