"""A stand-in for an engine's interpreter: starts in a tenth of a second and does what its environment says."""

from __future__ import annotations

import sys
from pathlib import Path

from dataplane.names import pin_key, server_name
from dataplane.pb import engine_pb2, node_pb2, topology_pb2

_SOURCE = """#!{python} -S
import http.server, json, os, signal, subprocess, sys
config = json.loads(sys.argv[sys.argv.index("--config-json") + 1])
mode = os.environ.get("MODE", "")
print("starting", config["replica"], flush=True)
if mode == "crash":
    for number in range(30):
        print("line", number)
    print("boom: no accelerator", flush=True)
    sys.exit(3)
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "worker":
    print("worker", subprocess.Popen(["sleep", "600"]).pid, flush=True)

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer.daemon_threads = True
http.server.ThreadingHTTPServer((config["host"], config["port"]), Health).serve_forever()
"""


def write(folder: Path) -> str:
    """Write the program and return its path."""
    path = folder / "engine"
    path.write_text(_SOURCE.format(python=sys.executable))
    path.chmod(0o700)
    return str(path)


def order(
    program: str, replica: str, generation: int, port: int, mode: str = "", grace_s: float = 5.0
) -> node_pb2.EngineOrder:
    """Return the order for one incarnation that the program stands in for."""
    launch = engine_pb2.EngineLaunch(
        replica=replica,
        generation=generation,
        kind=topology_pb2.ENGINE_KIND_SIMULATED,
        served_model="tiny",
        host="127.0.0.1",
        port=port,
        python=program,
        pin_key=pin_key(server_name(replica, generation)),
        env={"MODE": mode} if mode else {},
    )
    return node_pb2.EngineOrder(launch=launch, stop_grace_s=grace_s)


def external(replica: str, generation: int, *endpoints: str) -> node_pb2.EngineOrder:
    """Return the order to probe endpoints that are not ours."""
    launch = engine_pb2.EngineLaunch(
        replica=replica, generation=generation, kind=topology_pb2.ENGINE_KIND_EXTERNAL, served_model="tiny"
    )
    return node_pb2.EngineOrder(launch=launch, external_endpoint=endpoints)
