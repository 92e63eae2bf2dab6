"""``python -m dataplane.node``: the agent as a process."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

# gRPC reads it when it is imported. The agent forks to check HAProxy's files, and gRPC's handlers are not for children
# that only exec: they would log a line each time.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import uvloop

from dataplane.names import HOST, LABEL, PATH, checked
from dataplane.node.agent import NodeAgent, NodeIdentity
from dataplane.node.report_relay import ReportRelay
from dataplane.state_dir import StateDir

_TARGET = re.compile(rf"unix:{PATH.pattern}")


async def serve(state: StateDir, identity: NodeIdentity, routers: Sequence[str]) -> None:
    """Run the agent until SIGTERM or SIGINT; what it started runs on."""
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(_run(state, identity, routers))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        logging.getLogger(__name__).info("ends; what it started runs on")


async def _run(state: StateDir, identity: NodeIdentity, routers: Sequence[str]) -> None:
    agent = NodeAgent(state, identity)
    if not routers:  # the router of this machine reads the engines' reports itself
        await agent.run()
        return
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ReportRelay(state.reports_socket, routers).run())
        tasks.create_task(agent.run())


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m dataplane.node", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--name", default="local", help="the node's name in the spec")
    parser.add_argument("--address", default="127.0.0.1", help="where gateways reach this node's engines")
    parser.add_argument("--controller", help="unix:PATH; the state directory's socket unless given")
    parser.add_argument(
        "--router",
        action="append",
        default=[],
        help="unix:PATH of a router that engines' reports are relayed to, where none reads them itself; repeatable",
    )
    arguments = parser.parse_args()
    state = StateDir(arguments.state_dir.absolute())
    identity = NodeIdentity(
        name=checked(LABEL, arguments.name, "node name"),
        address=checked(HOST, arguments.address, "address"),
        controller=checked(_TARGET, arguments.controller or f"unix:{state.controller_socket}", "controller"),
    )
    routers = [checked(_TARGET, router, "router") for router in arguments.router]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    state.create()
    with (state.node / "agent.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it when this process ends
        except BlockingIOError:
            parser.exit(1, f"another node agent serves {state.root}\n")
        uvloop.run(serve(state, identity, routers))


if __name__ == "__main__":
    main()
