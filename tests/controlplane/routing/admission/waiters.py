"""Requests for the tests of admission."""

from __future__ import annotations

from itertools import count

from controlplane.routing.admission.queue import Queue
from controlplane.routing.admission.settings import NORMAL, Settings
from controlplane.routing.admission.waiter import Waiter

_ids = count(1)


def waiter(
    tenant: str = "a", tokens: int = 100, priority: int = NORMAL, output: int = 0, at_s: float = 0.0
) -> Waiter[None]:
    """Return a request with an id of its own."""
    return Waiter(f"r{next(_ids)}".encode(), tenant.encode(), priority, tokens, output, at_s, None)


def queue(**settings: object) -> Queue[None]:
    """Return an empty queue."""
    return Queue(Settings(**settings))  # type: ignore[arg-type]


def always(waiter: Waiter[None]) -> bool:
    """There is room for everybody."""
    return True
