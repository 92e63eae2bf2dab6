"""Tokens of prompts' beginnings, kept: a conversation's next turn is tokenised from where the last one ended.

Special tokens divide a text before anything else looks at it: ``tokens(a + special + b)`` is ``tokens(a)`` followed by
``tokens(special + b)``. So a text is cut before each special token, each cut named by the chained hash of all before
it, and only what follows the longest known cut is tokenised. That a tokenizer keeps to this is tried when it is
loaded; one that does not is always given the whole text.
"""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping
from threading import Lock

import xxhash

from controlplane.routing.block_events import TYPECODE

#: 32 MB: some 1,000 conversations of 8,000 tokens.
MAX_KEPT_TOKENS = 8_388_608
#: Cuts of one prompt that are kept, the last ones: a conversation of so many messages.
MAX_CUTS = 256
#: Shorter beginnings are tokenised as fast as they are found.
MIN_KEPT_TOKENS = 64

#: Pieces on either side of a special token that would be joined by a tokenizer that looks across it.
_TRIALS = ("a", " a", "a ", "a\n", "\n", "1", "Ünï", "日本", "")


class Beginnings:
    """Tokenises texts with ``encode``; ``boundaries`` are the special tokens that divide a text, with their ids."""

    def __init__(self, encode: Callable[[str], array[int]], boundaries: Mapping[str, int]) -> None:
        self._encode = encode
        self._ids = frozenset(boundaries.values())
        self._cut = re.compile("|".join(map(re.escape, sorted(boundaries, key=len, reverse=True)))).finditer
        self.divides = bool(boundaries) and all(self._divides(special) for special in boundaries)
        self.reused = 0
        self._lock = Lock()
        self._kept: OrderedDict[int, tuple[array[int], list[int]]] = OrderedDict()  # by its last cut; with all cuts
        self._cuts: dict[int, tuple[array[int], int, int]] = {}  # -> tokens that begin so, how many, and of which
        self._kept_tokens = 0

    def tokens(self, text: str) -> array[int]:
        """Return a text's tokens; adds none."""
        if not self.divides:
            return self._encode(text)
        starts = [found.start() for found in self._cut(text)]
        names = _names(text, starts)
        known, place = self._longest(names)
        tokens = known + self._encode(text[starts[place] :] if place >= 0 else text)
        self._keep(tokens, names)
        return tokens

    def _longest(self, names: list[int]) -> tuple[array[int], int]:
        """Return the tokens of the longest known beginning and the place of its cut, -1: none is known."""
        with self._lock:
            for place in range(len(names) - 1, -1, -1):
                found = self._cuts.get(names[place])
                if found is not None:
                    tokens, count, last = found
                    self._kept.move_to_end(last)
                    self.reused += bool(count)
                    return tokens[:count], place
        return array(TYPECODE), -1

    def _keep(self, tokens: array[int], names: list[int]) -> None:
        places = [place for place, token in enumerate(tokens) if token in self._ids]
        if len(places) != len(names) or not places or places[-1] < MIN_KEPT_TOKENS:
            return
        kept = tokens[: places[-1]]
        last = names[-1]
        with self._lock:
            if last in self._kept:
                return
            self._kept[last] = (kept, names[-MAX_CUTS:])
            self._kept_tokens += len(kept)
            for name, place in zip(names[-MAX_CUTS:], places[-MAX_CUTS:], strict=True):
                self._cuts[name] = (kept, place, last)
            while self._kept_tokens > MAX_KEPT_TOKENS:
                self._forget()

    def _forget(self) -> None:
        last, (kept, names) = self._kept.popitem(last=False)
        self._kept_tokens -= len(kept)
        for name in names:
            if self._cuts.get(name, (None, 0, 0))[2] == last:
                del self._cuts[name]

    def _divides(self, special: str) -> bool:
        return all(
            self._encode(before + special + after) == self._encode(before) + self._encode(special + after)
            for before in _TRIALS
            for after in _TRIALS
        )


def _names(text: str, starts: list[int]) -> list[int]:
    """Return the chained hash of all before each cut."""
    names: list[int] = []
    name = at = 0
    for start in starts:
        name = xxhash.xxh3_64_intdigest(text[at:start].encode("utf-8", "surrogatepass"), seed=name)
        names.append(name)
        at = start
    return names
