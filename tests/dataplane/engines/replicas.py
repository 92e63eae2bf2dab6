"""Start simulated replicas as processes, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from tests.ports import lease

START_DEADLINE_S = 20.0
PIN = "0123abcd"
MIDDLEWARE = "dataplane.middleware.SlipstreamMiddleware"
#: Small and fast: a step of half a millisecond.
DEFAULTS: dict[str, Any] = {
    "model": "tiny",
    "host": "127.0.0.1",
    "adapters": ["tiny-lora"],
    "step_base_ms": 0.5,
    "max_model_tokens": 2048,
    "kv_capacity_tokens": 65536,
    "kv_block_tokens": 16,
    "fault_switches": True,
}


class Running:
    """A replica's process and a client for it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx2.Client(base_url=self.url, timeout=20)

    def post(self, path: str, body: dict[str, Any]) -> httpx2.Response:
        """POST JSON."""
        return self.client.post(path, json=body)

    def metric(self, name: str, labels: str = "") -> float:
        """Return a sample whose labels contain ``labels``."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and labels in line:
                return float(line.rsplit(" ", 1)[1])
        raise KeyError(name)

    def wait_for(self, name: str, value: float, labels: str = "", deadline_s: float = 10.0) -> None:
        """Wait until a metric has a value."""
        end = time.monotonic() + deadline_s
        while (found := self.metric(name, labels)) != value:
            assert time.monotonic() < end, f"{name} is {found}, not {value}"
            time.sleep(0.01)


@contextmanager
def replica(middleware: bool = True, **settings: Any) -> Iterator[Running]:
    """Run a replica until the block ends; ``settings`` overrule DEFAULTS."""
    port = settings.pop("port", None) or lease()[0]
    config = json.dumps({**DEFAULTS, "port": port, **settings})
    argv = [sys.executable, "-m", "dataplane.engines.simulated", "--config-json", config]
    argv += ["--middleware", MIDDLEWARE] if middleware else []
    with subprocess.Popen(argv, env={**os.environ, "SLIPSTREAM_PIN": PIN}) as process:
        running = Running(process, port)
        try:
            _wait(running)
            yield running
        finally:
            running.client.close()
            process.kill()


def _wait(running: Running) -> None:
    end = time.monotonic() + START_DEADLINE_S
    while True:
        assert running.process.poll() is None, "the replica ended"
        assert time.monotonic() < end, "the replica does not answer"
        try:
            if running.client.get("/health").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.02)
