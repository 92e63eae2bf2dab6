"""Small programs for the launchers to run."""

from __future__ import annotations

import sys

from dataplane.launchers import ProcessSpec

SLEEPER = "import time\nprint('up', flush=True)\ntime.sleep(600)"
DEAF = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\n"
    "while True: time.sleep(600)"
)
#: Starts a worker that outlives it and tells the worker's pid.
PARENT = (
    "import subprocess, sys, time\n"
    "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print('worker', worker.pid, flush=True)\ntime.sleep(600)"
)
SHOW = (
    "import json, os\nfds = os.listdir('/proc/self/fd')\n"
    "print(json.dumps({'env': dict(os.environ), 'fds': fds, 'sid': os.getsid(0)}))"
)


def python(name: str, source: str, role: str = "replica", **labels: str) -> ProcessSpec:
    """Return a process that runs ``source``."""
    return ProcessSpec(name, role, (sys.executable, "-S", "-c", source), labels=labels)
