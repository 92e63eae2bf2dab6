"""Engines that run alone, with requests at given times."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.simulation.engine import IDLE, Engine, Job
from controlplane.simulation.prompt import Ask, Contents


def ask(prompt_tokens: int, output_tokens: int, blocks: Sequence[int] | None = None, kept: Sequence[int] = ()) -> Ask:
    """Return a request; its content is its own unless ``blocks`` are given."""
    content = Contents(next(_serials) << 32).new(prompt_tokens) if blocks is None else blocks
    return Ask(0.0, prompt_tokens, output_tokens, content, b"", b"", kept)


_serials = iter(range(1, 1 << 30))


def serve(engine: Engine, asked: Sequence[tuple[float, Ask]]) -> list[Job]:
    """Run requests (time, ask), ordered by time, to their end; return their jobs."""
    jobs = []
    for at_s, each in asked:
        while engine.due_s <= at_s:
            engine.advance(engine.due_s)
        jobs.append(Job(each, at_s))
        engine.submit(jobs[-1], at_s)
    while engine.due_s != IDLE:
        engine.advance(engine.due_s)
    return jobs
