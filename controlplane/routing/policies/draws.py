"""Draws that repeat: the same seed gives the same numbers, so a replay makes the same choices."""

from __future__ import annotations

_U32 = 0xFFFFFFFF


class Draws:
    """A 32-bit xorshift (Marsaglia 2003)."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        # Spread the seed's bits, and never start from 0, where xorshift stays.
        self._state = ((seed + 1) * 0x9E3779B1 & _U32) or 1

    def _next(self) -> int:
        state = self._state
        state ^= state << 13 & _U32
        state ^= state >> 17
        state ^= state << 5 & _U32
        self._state = state
        return state

    def below(self, count: int) -> int:
        """Return one of 0 .. count - 1; every number is as likely to within count / 2**32."""
        return self._next() % count

    def unit(self) -> float:
        """Return a number above 0 and below 1."""
        return self._next() / 4294967296.0

    def pair(self, count: int) -> tuple[int, int]:
        """Return two different ones of 0 .. count - 1; ``count`` is at least 2."""
        first = self.below(count)
        second = self.below(count - 1)
        return first, second + (second >= first)
