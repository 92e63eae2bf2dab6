"""``python -m dataplane.node``: the agent as a process."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import re
import signal
from pathlib import Path

# gRPC reads it when it is imported. The agent forks to check HAProxy's files, and gRPC's handlers are not for children
# that only exec: they would log a line each time.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import uvloop

from dataplane.names import HOST, LABEL, PATH, checked
from dataplane.node.agent import NodeAgent, NodeIdentity
from dataplane.state_dir import StateDir

_TARGET = re.compile(rf"unix:{PATH.pattern}")


async def serve(state: StateDir, identity: NodeIdentity) -> None:
    """Run the agent until SIGTERM or SIGINT; what it started runs on."""
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(NodeAgent(state, identity).run())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        logging.getLogger(__name__).info("ends; what it started runs on")


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m dataplane.node", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--name", default="local", help="the node's name in the spec")
    parser.add_argument("--address", default="127.0.0.1", help="where gateways reach this node's engines")
    parser.add_argument("--controller", help="unix:PATH; the state directory's socket unless given")
    arguments = parser.parse_args()
    state = StateDir(arguments.state_dir.absolute())
    identity = NodeIdentity(
        name=checked(LABEL, arguments.name, "node name"),
        address=checked(HOST, arguments.address, "address"),
        controller=checked(_TARGET, arguments.controller or f"unix:{state.controller_socket}", "controller"),
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    state.create()
    with (state.node / "agent.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it when this process ends
        except BlockingIOError:
            parser.exit(1, f"another node agent serves {state.root}\n")
        uvloop.run(serve(state, identity))


if __name__ == "__main__":
    main()
