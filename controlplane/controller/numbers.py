"""Sequences whose numbers are never given twice, taken from the store in blocks."""

from __future__ import annotations

import logging

from controlplane.errors import ControlplaneError
from controlplane.store.base import Store

#: Numbers reserved at once: with the disk full, half as many changes can still be published; a restart skips the rest.
BLOCK = 200

_log = logging.getLogger(__name__)


class Sequence:
    """One named sequence. A number is reserved on disk before it is given, so a killed process repeats none.

    The next block is reserved when half of the present one is used; while that fails, the other half lasts.
    """

    def __init__(self, store: Store, name: str, block: int = BLOCK) -> None:
        self._store = store
        self._name = name
        self._block = block
        self._next = 0
        self._end = 0
        self._spare: tuple[int, int] | None = None

    async def take(self) -> int:
        """Return the next number. Raises StoreFull or StoreFailed when none is left and none can be reserved."""
        if self._spare is None and self._end - self._next <= self._block // 2:
            await self._reserve()
        if self._next >= self._end and self._spare is not None:
            self._next, self._end = self._spare
            self._spare = None
        number = self._next
        self._next += 1
        return number

    async def _reserve(self) -> None:
        try:
            first = await self._store.reserve(self._name, self._block)
        except ControlplaneError as error:
            if self._next >= self._end:
                raise
            _log.warning("no numbers reserved for %s: %s; %d are left", self._name, error, self._end - self._next)
            return
        self._spare = (first, first + self._block)
