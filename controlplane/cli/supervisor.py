"""The process behind `slipstream up`: starts the control plane and the node agent, and keeps them.

It imports the standard library and the launcher only. It is the child subreaper: what a dead node agent leaves
behind (HAProxy, engines) stays its descendant, is adopted by the next node agent, and is ended with it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from dataplane.launchers.base import ProcessSpec, RunningProcess
from dataplane.launchers.leftovers import end_all
from dataplane.launchers.local import LocalLauncher
from dataplane.launchers.subreaper import become_subreaper, reap_orphans
from dataplane.state_dir import StateDir

#: Pause before a process that died is started again; doubles up to the last, and starts over once it has lived.
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 5.0
LIVED_S = 10.0
#: Time that processes get between SIGTERM and SIGKILL when the cluster is stopped.
STOP_GRACE_S = 10.0


def say(text: str) -> None:
    """Print one line for the operator."""
    sys.stderr.write(f"slipstream: {text}\n")
    sys.stderr.flush()


@dataclass(slots=True)
class Supervisor:
    """Keeps the processes named in ``specs`` alive until ``stop`` is set."""

    state: StateDir
    launcher: LocalLauncher
    specs: tuple[ProcessSpec, ...]
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    running: dict[str, RunningProcess] = field(default_factory=dict)

    async def keep(self, spec: ProcessSpec, adopted: RunningProcess | None) -> None:
        """Run one process for ever; a death is followed by a pause and a new start."""
        pause = FIRST_PAUSE_S
        process = adopted
        while not self.stop.is_set():
            if process is None:
                process = await self.launcher.start(spec)
            self.running[spec.name] = process
            began = time.monotonic()
            code = await asyncio.shield(process.exited)
            self.running.pop(spec.name, None)
            process = None
            if self.stop.is_set():
                return
            if time.monotonic() - began > LIVED_S:
                pause = FIRST_PAUSE_S
            say(f"{spec.name} ended ({_ending(code)}); starting it again in {pause:.1f} s")
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE_S)

    async def run(self, bringup: list[str]) -> int:
        """Keep everything until a signal, or until the bring-up fails; return the exit code."""
        left = {p.name: p for p in await self.launcher.adopt()}
        keepers = [asyncio.create_task(self.keep(s, left.get(s.name))) for s in self.specs]
        child = await asyncio.create_subprocess_exec(*bringup)
        failed = asyncio.create_task(child.wait())
        stopping = asyncio.create_task(self.stop.wait())
        code = 0
        pending: set[asyncio.Task[object]] = {failed, stopping, *keepers}
        while not self.stop.is_set():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            broken = next((t for t in done if t in keepers and t.exception()), None)
            if broken is not None:
                say(f"cannot start a process: {broken.exception()}")
            if broken is not None or (failed in done and failed.result() != 0):
                code = 1
                self.stop.set()
        if child.returncode is None:
            child.terminate()
            await child.wait()
        await self._end(keepers)
        return code

    async def _end(self, keepers: list[asyncio.Task[None]]) -> None:
        for task in keepers:
            task.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        say("stopping")
        # The agent goes first: it would start again what is ended below.
        agent = self.running.get("node")
        if agent is not None:
            await self.launcher.stop(agent, STOP_GRACE_S)
        ending = asyncio.create_task(end_all(self.state, STOP_GRACE_S))
        hurry = asyncio.create_task(self.hurry.wait())
        await asyncio.wait({ending, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not ending.done():
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
            say("killing what still runs")
            await end_all(self.state, 0.0)
        reap_orphans(set())

    def on_signal(self) -> None:
        """Stop at the first signal; stop waiting at the second."""
        if self.stop.is_set():
            self.hurry.set()
        self.stop.set()


def _ending(code: int | None) -> str:
    if code is None:
        return "exit code unknown"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def process_specs(state: StateDir, node: str, page: str) -> tuple[ProcessSpec, ...]:
    """Return what `slipstream up` keeps: controller, router and node agent."""
    common = ("--state-dir", str(state.root))
    paged = ("--page", page) if page else ()
    controller = (sys.executable, "-m", "controlplane.controller", *common, *paged)
    router = (sys.executable, "-m", "controlplane.router", *common)
    dialled = f"unix:{state.controller_socket}"
    agent = (sys.executable, "-m", "dataplane.node", *common, "--name", node, "--controller", dialled)
    return tuple(
        ProcessSpec(name=name, role=name, argv=argv, env={}, labels={})
        for name, argv in (("router", router), ("controller", controller), ("node", agent))
    )


async def supervise(arguments: argparse.Namespace) -> int:
    """Run the supervisor in this loop; return the exit code."""
    state = StateDir(arguments.state_dir)
    become_subreaper()
    supervisor = Supervisor(state, LocalLauncher(state), process_specs(state, arguments.node, arguments.page))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.on_signal)
    orphans = asyncio.create_task(_reap(supervisor))
    bringup = [sys.executable, "-m", "controlplane.cli.bringup", "--state-dir", str(state.root)]
    bringup += ["--spec", str(arguments.spec), "--started", str(arguments.started)]
    try:
        return await supervisor.run(bringup)
    finally:
        orphans.cancel()


async def _reap(supervisor: Supervisor) -> None:
    # Orphans come to the subreaper when a node agent dies; unreaped, each would stay a zombie for ever.
    while True:
        await asyncio.sleep(1.0)
        reap_orphans({p.pid for p in supervisor.running.values()})


def main() -> None:
    """Parse the arguments that `slipstream up` passes, and supervise."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--started", type=float, required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--page", default="")
    parser.add_argument("--lock-fd", type=int, required=True)
    arguments = parser.parse_args()
    os.set_inheritable(arguments.lock_fd, False)  # children must not hold the lock after this process is gone
    sys.exit(asyncio.run(supervise(arguments)))


if __name__ == "__main__":
    main()
