"""vllm-router 0.1.17 in an environment of its own, which the harness makes when it is missing."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import cpu, local_http, process
from benchmarks.ports import free_ports
from benchmarks.process import Cores
from benchmarks.programs import cache_root
from benchmarks.replica import MODEL
from benchmarks.systems.base import Facts, Unavailable

VERSION = "0.1.17"
START_TIMEOUT_S = 60.0
INSTALL_TIMEOUT_S = 300


def installed() -> Path:
    """Return the environment's interpreter; installs the wheel when it is not there. Raises Unavailable."""
    folder = cache_root() / f"vllm-router-{VERSION}"
    python, stamp = folder / "bin" / "python", folder / ".complete"
    if stamp.exists():
        return python
    print(f"installing vllm-router {VERSION} into {folder}", file=sys.stderr)
    command = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", f"vllm-router=={VERSION}"]
    try:
        venv.create(folder, with_pip=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"vllm-router {VERSION} cannot be installed: {error}") from error
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or ["pip failed"]
        raise Unavailable(f"vllm-router {VERSION} cannot be installed: {words[-1]}")
    stamp.touch()
    return python


class VllmRouter:
    """vllm-router with one policy and otherwise its defaults, but for its log level."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.name = {"round_robin": "vllm-router-rr", "cache_aware": "vllm-router-ca"}[policy]
        self.ports: tuple[int, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, replicas: Sequence[int], cores: Cores, folder: Path) -> Facts:
        """Start it; see System."""
        python = installed()
        port, metrics_port = free_ports(2)
        self.ports = (port,)
        log = folder / f"{self.name}.log"
        command = [str(python), "-m", "vllm_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--policy", self.policy, "--log-level", "warning", "--prometheus-port", str(metrics_port)]
        command += ["--worker-urls", *(f"http://127.0.0.1:{p}" for p in replicas)]
        self._process = process.start(command, cores, log)
        process.wait_until(lambda: local_http.completes(port, MODEL), self._process, log, START_TIMEOUT_S)
        return Facts(version=VERSION, configuration=f"policy {self.policy}, log level warning, otherwise defaults")

    def ingress(self) -> Mapping[str, tuple[int, ...]]:
        """The router."""
        return {"vllm-router": cpu.with_descendants([self._process.pid])} if self._process else {}

    def others(self) -> Mapping[str, tuple[int, ...]]:
        """None."""
        return {}

    def stop(self) -> None:
        """End it."""
        if self._process:
            process.stop(self._process)
