"""Slipstream as a user runs it: ``slipstream up`` with the bench replicas as external engines, policy ``prefix``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import cpu, local_http, process
from benchmarks.ports import free_ports
from benchmarks.process import Cores
from benchmarks.replica import MODEL
from benchmarks.systems.base import Facts
from benchmarks.systems.haproxy import haproxy_version

START_TIMEOUT_S = 60.0
#: Processes that every request passes; the rest of the control plane only watches.
INGRESS_ROLES = ("haproxy", "router")

SPEC = """\
cluster: bench
gateway:
  listen: ["127.0.0.1:{port}"]
  threads: 1
admin:
  page: null
models:
  - name: {model}
    routing:
      policy: {policy}
    pools:
      - engine:
          kind: external
          endpoints: [{endpoints}]
          kv_capacity_tokens: 448000
          kv_block_tokens: 16
"""


def spec(port: int, replicas: Sequence[int], policy: str) -> str:
    """Return the YAML of the benchmark's cluster."""
    endpoints = ", ".join(f'"http://127.0.0.1:{p}"' for p in replicas)
    return SPEC.format(port=port, model=MODEL, policy=policy, endpoints=endpoints)


class Slipstream:
    """HAProxy, router, controller and node agent below one supervisor, state in a scratch directory."""

    name = "slipstream"

    def __init__(self, policy: str = "prefix") -> None:
        self.policy = policy
        self.ports: tuple[int, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        # Its sockets' paths must fit in 107 bytes, so not below a folder that a user chose.
        self._scratch = tempfile.TemporaryDirectory(prefix="slipstream-bench-")
        self.state = Path(self._scratch.name) / "s"

    def start(self, replicas: Sequence[int], cores: Cores, folder: Path) -> Facts:
        """Start it; see System."""
        self.ports = tuple(free_ports(1))
        file, log = folder / "slipstream.yaml", folder / "slipstream.log"
        file.write_text(spec(self.ports[0], replicas, self.policy))
        command = [sys.executable, "-m", "controlplane.cli.main", "up", str(file), "--state-dir", str(self.state)]
        self._process = process.start(command, cores, log)
        process.wait_until(lambda: b"Ready in" in log.read_bytes(), self._process, log, START_TIMEOUT_S)
        process.wait_until(lambda: local_http.completes(self.ports[0], MODEL), self._process, log, START_TIMEOUT_S)
        version = f"{importlib.metadata.version('slipstream')}, {haproxy_version()}"
        told = (
            f"policy {self.policy}, feedback and receipts on, gateway threads 1, external engines, otherwise defaults"
        )
        return Facts(version=version, configuration=told)

    def _records(self) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        for file in sorted((self.state / "processes").glob("*.json")):
            try:
                record = json.loads(file.read_text())
            except (OSError, ValueError):
                continue  # replaced at this moment
            found[record["name"]] = (record["role"], int(record["pid"]))
        return found

    def ingress(self) -> Mapping[str, tuple[int, ...]]:
        """HAProxy (master and workers) and the router."""
        return {n: cpu.with_descendants([p]) for n, (role, p) in self._records().items() if role in INGRESS_ROLES}

    def others(self) -> Mapping[str, tuple[int, ...]]:
        """Controller, node agent and supervisor."""
        found = {n: (p,) for n, (role, p) in self._records().items() if role not in INGRESS_ROLES}
        return {**found, "supervisor": (self._process.pid,)} if self._process else found

    def stop(self) -> None:
        """End the supervisor, which ends what it started; then whatever still has a record."""
        if self._process:
            process.stop(self._process, signal.SIGINT)
        for _, pid in self._records().values():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(self.state) in command:  # a pid that another process has got by now is left alone
                os.kill(pid, signal.SIGKILL)
        self._scratch.cleanup()
