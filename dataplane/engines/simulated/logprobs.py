"""Log probabilities: of the right shape, and as sure of themselves as a model without weights can be."""

from __future__ import annotations

from typing import Any

from dataplane.engines.simulated import text
from dataplane.engines.simulated.answer import Answer

#: The chosen token's, and how much less each further alternative gets.
CHOSEN = -0.25
STEP = 0.5


def _candidates(answer: Answer, position: int, top: int) -> list[tuple[str, float]]:
    """Return the token at ``position`` and its alternatives, best first; at least the token itself."""
    index = text.piece(answer.ticket.sequence.seed, position)
    count = len(text.PIECES)
    return [(text.PIECES[(index + k) % count].decode(), CHOSEN - k * STEP) for k in range(max(1, top))]


def chat(answer: Answer, start: int, end: int, top: int) -> dict[str, Any]:
    """Return the ``logprobs`` of a chat choice for the tokens from ``start`` up to ``end``."""
    content = []
    for position in range(start, end):
        entries = [
            {"token": token, "logprob": value, "bytes": list(token.encode())}
            for token, value in _candidates(answer, position, top)
        ]
        content.append({**entries[0], "top_logprobs": entries[:top]})
    return {"content": content}


def completion(answer: Answer, start: int, end: int, top: int, offset: int) -> dict[str, Any]:
    """Return the ``logprobs`` of a completion choice; ``offset`` is where the token at ``start`` begins in the text."""
    found = [_candidates(answer, position, top) for position in range(start, end)]
    size = len(text.PIECES[0])
    return {
        "text_offset": [offset + i * size for i in range(end - start)],
        "token_logprobs": [candidates[0][1] for candidates in found],
        "tokens": [candidates[0][0] for candidates in found],
        "top_logprobs": [dict(candidates) for candidates in found],
    }
