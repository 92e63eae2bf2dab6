"""Whether the tokens that are made here are those that a model's engines compute with.

An engine may be told to use another template or tokenizer than its weights' folder has. Nothing would then ever be
found, and every prompt would look as if nobody cached it. So some prompts are followed: a few seconds after one was
sent, its replica must have told of its first block.
"""

from __future__ import annotations

import asyncio
import logging
from array import array

from controlplane.routing.block_index import BlockIndex

_log = logging.getLogger(__name__)

#: Seconds from sending a prompt to looking for it: events come with the engine's next step, and a queue may be before.
LOOK_AFTER_S = 5.0
#: Weight of the newest look. One prompt is followed at a time: four misses in a row, 20 s, end the agreement.
WEIGHT = 0.2
LOWEST = 0.5
#: Prompts of fewer blocks may have none that is whole.
MIN_BLOCKS = 2
#: Of engines that never told of a block.
UNKNOWN_BLOCK_TOKENS = 256


class Agreement:
    """Follows prompts of one model."""

    def __init__(self, model: str, index: BlockIndex) -> None:
        self.share = 1.0
        self._model = model
        self._index = index
        self._timer: asyncio.TimerHandle | None = None

    @property
    def holds(self) -> bool:
        """Whether what is looked up may be believed."""
        return self.share >= LOWEST

    def sent(self, server: bytes, space: tuple[str, str], tokens: array[int]) -> None:
        """Note that a prompt goes to a replica now; ``space`` is adapter and salt."""
        block = self._index.block_tokens or UNKNOWN_BLOCK_TOKENS
        if self._timer is None and len(tokens) >= MIN_BLOCKS * block:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LOOK_AFTER_S, self._look, server, space, tokens[:block])

    def stop(self) -> None:
        """Follow no prompt any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, server: bytes, space: tuple[str, str], tokens: array[int]) -> None:
        self._timer = None
        if server not in self._index.servers:
            return  # it is gone, and proves nothing
        before = self.holds
        self.share += WEIGHT * (self._index.holds(server, tokens, *space) - self.share)
        if before and not self.holds:
            _log.warning(
                "model %s is routed by text: its engines do not tell of the tokens that its tokenizer makes",
                self._model,
            )
        elif self.holds and not before:
            _log.info("model %s is routed by its engines' KV events again", self._model)
