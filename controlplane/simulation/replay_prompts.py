"""A journal's prompts as engines see them: equal beginnings become equal blocks."""

from __future__ import annotations

from controlplane.routing.load import BLOCK_BYTES
from controlplane.routing.prefix_index import HASH_BYTES
from controlplane.routing.record import Request
from controlplane.simulation.cache import BLOCK_TOKENS, block

#: Engine blocks that one router block can become: 4,096 tokens of one byte each.
_PIECES = BLOCK_BYTES // BLOCK_TOKENS


class Prompts:
    """Numbers each router block by itself and all before it, per name and, where tenants are kept apart, per tenant.

    A prompt's end that fills no router block, and what lies beyond the hashed part, is nobody else's.
    """

    def __init__(self, router_block_tokens: int) -> None:
        full, rest = divmod(router_block_tokens, BLOCK_TOKENS)
        self._sizes = [BLOCK_TOKENS] * full + ([rest] if rest else [])
        self._tokens = router_block_tokens
        self._numbers: dict[tuple[int, bytes], int] = {}

    def blocks(self, request: Request, prompt_tokens: int, tenant: bytes = b"") -> list[int]:
        """Return the engine blocks of a prompt, at most ``prompt_tokens`` in all."""
        hashes = request.hashes
        count = min(len(hashes) // HASH_BYTES, request.prompt_bytes // BLOCK_BYTES, prompt_tokens // self._tokens)
        numbers = self._numbers
        number = numbers.setdefault((-1, request.model + b"\0" + tenant), len(numbers))
        made: list[int] = []
        for place in range(count):
            content = hashes[place * HASH_BYTES : (place + 1) * HASH_BYTES]
            number = numbers.setdefault((number, content), len(numbers))
            made += [block(number * _PIECES + piece, size) for piece, size in enumerate(self._sizes)]
        return made
