"""Scenarios of the engine as text: a block of commands, ``----``, and what they print.

Commands: ``engine key=value ...`` (times in ms and us as in SimulatedEngine), ``submit NAME tokens=N max=N [like=NAME]
[adapter=A] [salt=S] [remote=1]``, ``steps N`` (or until idle), ``abort NAME``, ``show``, ``events``, ``reset``.
``like`` begins the prompt with another's tokens, up to the length of either.
"""

from __future__ import annotations

from array import array

from dataplane.engines.simulated.block_pool import AllBlocksCleared, BlockRemoved, BlockStored
from dataplane.engines.simulated.engine import Engine, Sizes, Speeds
from dataplane.engines.simulated.sequence import Prompt, Sequence
from dataplane.engines.simulated.statistics import Statistics

MAX_STEPS = 10_000


class Scenario:
    """An engine, its clock, and the names of its sequences."""

    def __init__(self) -> None:
        self._sequences: dict[str, Sequence] = {}
        self._names: dict[int, str] = {}
        self._blocks: dict[int, str] = {}
        self._now_s = 0.0
        self._out: list[str] = []

    def run(self, commands: str) -> str:
        """Return what the commands print."""
        for line in commands.strip().splitlines():
            word, *rest = line.split()
            options = dict(item.split("=") for item in rest if "=" in item)
            getattr(self, f"_{word}")([item for item in rest if "=" not in item], options)
        return "\n".join(self._out)

    def _engine(self, _: list[str], options: dict[str, str]) -> None:
        o = {"step": "10", "prefill": "100", "decode": "0", "transfer": "0", "batched": "64", "running": "8", **options}
        speeds = Speeds(float(o["step"]) / 1e3, *(float(o[k]) / 1e6 for k in ("prefill", "decode", "transfer")))
        sizes = Sizes(int(o["batched"]), int(o["running"]), int(o.get("kv", "1024")), int(o.get("block", "16")))
        self._core = Engine(speeds, sizes, Statistics(), record_events=True)

    def _submit(self, rest: list[str], options: dict[str, str]) -> None:
        (name,) = rest
        count = int(options["tokens"])
        tokens = array("I", (len(self._sequences) * 100_000 + i for i in range(count)))
        if "like" in options:
            shared = self._sequences[options["like"]].tokens[:count]
            tokens[: len(shared)] = shared
        prompt = Prompt(
            tokens, int(options["max"]), options.get("adapter", ""), options.get("salt", ""), remote="remote" in options
        )
        self._sequences[name] = self._core.submit(prompt, self._now_s)
        self._names[self._sequences[name].key] = name

    def _steps(self, rest: list[str], _: dict[str, str]) -> None:
        for _n in range(int(rest[0]) if rest else MAX_STEPS):
            step = self._core.start_step(self._now_s)
            if step is None:
                ready = self._core.next_ready_s()
                if ready is None:
                    self._out.append(f"{self._now_s * 1e3:8.3f} idle")
                    return
                self._now_s = ready
                continue
            work = " ".join(f"{self._names[s.key]}+{n}" for s, n in step.work)
            self._now_s += step.duration_s
            got = [self._token(s) for s in self._core.finish_step(step, self._now_s)]
            self._out.append(f"{self._now_s * 1e3:8.3f} {work} -> {' '.join(got) or '-'}")

    def _token(self, sequence: Sequence) -> str:
        return f"{self._names[sequence.key]}:{sequence.produced}{'.' if sequence.done else ''}"

    def _abort(self, rest: list[str], _: dict[str, str]) -> None:
        self._core.abort(self._sequences[rest[0]])

    def _show(self, _: list[str], __: dict[str, str]) -> None:
        core, s = self._core, self._core.statistics
        self._out.append(
            f"running={core.running} waiting={core.waiting} transferring={core.transferring} "
            f"in_use={core.pool.in_use} cached={core.pool.cached} hits={s.prefix_hits} computed={s.computed_tokens} "
            f"transferred={s.transferred} preemptions={s.preemptions}"
        )

    def _reset(self, _: list[str], __: dict[str, str]) -> None:
        self._out.append(f"reset {self._core.reset_prefix_cache()}")

    def _events(self, _: list[str], __: dict[str, str]) -> None:
        for event in self._core.take_events():
            match event:
                case BlockStored():
                    parent = self._blocks[event.parent] if event.parent is not None else "root"
                    self._blocks[event.name] = f"b{len(self._blocks)}"
                    tokens = f"{event.tokens[0]}..{event.tokens[-1]}"
                    self._out.append(
                        f"stored {self._blocks[event.name]} after {parent}: {tokens} {event.adapter}".rstrip()
                    )
                case BlockRemoved():
                    self._out.append(f"removed {self._blocks[event.name]}")
                case AllBlocksCleared():
                    self._out.append("cleared")
