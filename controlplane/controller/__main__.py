"""``python -m controlplane.controller``: the controller of one cluster."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop

from controlplane.controller.process import Controller
from controlplane.errors import ControlplaneError
from controlplane.store.sqlite import SqliteStore
from dataplane.state_dir import StateDir, default_root


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    parser = argparse.ArgumentParser(prog="slipstream controller", description="Run the controller of one cluster.")
    parser.add_argument("--state-dir", type=Path, default=default_root(), help="folder of sockets and records")
    parser.add_argument("--page", default="", metavar="HOST:PORT", help="serve health, metrics and the page here")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.umask(0o077)
    try:
        return uvloop.run(_serve(StateDir(arguments.state_dir.absolute()), arguments.page))
    except (ControlplaneError, ValueError, OSError) as error:
        logging.getLogger(__name__).error("%s", error)
        return 1


async def _serve(state: StateDir, page: str) -> int:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    state.create()
    controller = Controller(state, SqliteStore(state.database))
    await controller.start()
    shown = None
    if page:
        from controlplane.admin.page_server import PageServer  # a controller without a page needs no web framework

        shown = PageServer(controller, state, page)
        await shown.start()
    try:
        await ending.wait()
    finally:
        if shown is not None:
            await shown.stop()
        await controller.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
