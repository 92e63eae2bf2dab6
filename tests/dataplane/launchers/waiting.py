"""Wait for a condition with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

DEADLINE_S = 20.0


async def eventually(condition: Callable[[], object]) -> None:
    """Return once ``condition()`` is true; fail when it is not within the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while not condition():
        assert loop.time() < deadline, f"not true within {DEADLINE_S} s"
        await asyncio.sleep(0.01)
