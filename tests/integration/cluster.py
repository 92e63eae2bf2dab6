"""A whole cluster for a test: `slipstream up` in a process of its own, on leased ports, in a scratch directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.ports import lease_block

T = TypeVar("T")
SLIPSTREAM = (sys.executable, "-m", "controlplane.cli.main")
START_DEADLINE_S = 60.0
VLLM_START_DEADLINE_S = 300.0
STOP_DEADLINE_S = 30.0


def until(read: Callable[[], T], accept: Callable[[T], bool], what: str, seconds: float = 20.0) -> T:
    """Poll ``read`` until ``accept`` takes its value; fail with ``what`` and the last value otherwise."""
    deadline = time.monotonic() + seconds
    while True:
        value = read()
        if accept(value):
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}; last seen: {value!r}")
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class Cluster:
    """A running `slipstream up`."""

    def __init__(self, spec: Path, state: Path, port: int, page_port: int) -> None:
        self.spec = spec
        self.state = state
        self.port = port
        self.page_port = page_port
        self.output = state / "up.out"
        state.mkdir(mode=0o700, exist_ok=True)
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [*SLIPSTREAM, "up", str(spec), "--state-dir", str(state)],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    def wait_ready(self, seconds: float = START_DEADLINE_S) -> None:
        def banner() -> str:
            text = self.output.read_text(errors="replace")
            if self.process.poll() is not None:
                raise AssertionError(f"slipstream up ended with {self.process.returncode}:\n{text}")
            return text

        try:
            until(banner, lambda text: "Ready in" in text, "slipstream up is ready", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.all_logs()}") from error

    def all_logs(self) -> str:
        return "\n".join(
            f"--- {p.name}\n{p.read_text(errors='replace')[-3000:]}"
            for p in sorted((self.state / "logs").glob("*.log"))
        )

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*SLIPSTREAM, *arguments, "--state-dir", str(self.state)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"slipstream {arguments} exits {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.cli(*arguments, "--json").stdout)

    def records(self) -> dict[str, dict[str, Any]]:
        found = (json.loads(p.read_text()) for p in sorted((self.state / "processes").glob("*.json")))
        return {r["name"]: r for r in found}

    def pid(self, name: str) -> int:
        return int(self.records()[name]["pid"])

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def wait_new_pid(self, name: str, old: int, seconds: float = 20.0) -> int:
        def pid() -> int:
            try:
                return self.pid(name)
            except (KeyError, OSError, ValueError):
                return old

        return until(pid, lambda p: p != old and is_alive(p), f"{name} runs again", seconds)

    def ready_replicas(self) -> list[str]:
        done = self.cli("get", "replicas", "--json", check=False)
        views = json.loads(done.stdout) if done.returncode == 0 else []
        return sorted(v["replica"]["name"] for v in views if v["replica"]["state"] == "REPLICA_STATE_READY")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._end_leftovers()

    def _end_leftovers(self) -> None:
        for record in self.records().values():
            if is_alive(record["pid"]):
                os.kill(record["pid"], signal.SIGKILL)


@contextmanager
def running(spec_text: str, ready_s: float = START_DEADLINE_S) -> Iterator[Cluster]:
    """Run a cluster of a spec in which ``GATEWAY_PORT``, ``PAGE_PORT`` and ``ENGINE_PORTS`` stand for leased ports."""
    gateway, page, *engines = lease_block()
    first, last = engines[0], engines[-1]
    text = spec_text.replace("GATEWAY_PORT", str(gateway)).replace("PAGE_PORT", str(page))
    text = text.replace("ENGINE_PORTS", f"{first}-{last}")
    with tempfile.TemporaryDirectory(prefix="slipstream-test-") as folder:
        spec = Path(folder) / "spec.yaml"
        spec.write_text(text)
        cluster = Cluster(spec, Path(folder) / "s", gateway, page)
        try:
            cluster.wait_ready(ready_s)
            yield cluster
        finally:
            cluster.stop()
