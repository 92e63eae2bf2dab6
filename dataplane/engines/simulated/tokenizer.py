"""Text to tokens and back: four bytes of UTF-8 make one token. No vocabulary, no state, and fast.

A token is the little-endian number of its four bytes; a piece's last token is filled with 0xFF, which never occurs in
UTF-8, so that decoding restores the text exactly. Pieces (messages, prompts) are tokenized one by one: a text that is
unchanged keeps its tokens whatever follows it, as real chat templates with their special tokens do.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

#: Unsigned, 32 bits.
TYPECODE = "I"
TOKEN_BYTES = 4
#: One more than the largest token.
VOCABULARY = 1 << 32
_FILL = b"\xff"

#: Special tokens: their first bytes, 0xFE and 0xFD, do not occur in UTF-8 either.
START = 0xFFFFFFFE
END = 0xFFFFFFFD
SPECIAL = {START: "<|im_start|>", END: "<|im_end|>"}


def encode(text: str) -> array[int]:
    """Return the tokens of one piece of text."""
    data = text.encode("utf-8", "surrogatepass")
    data += _FILL * (-len(data) % TOKEN_BYTES)
    tokens = array(TYPECODE)
    tokens.frombytes(data)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens


def decode(tokens: Iterable[int]) -> str:
    """Return the text of tokens; special ones as ``<|name|>``, bytes that are not UTF-8 as U+FFFD."""
    parts: list[str] = []
    run = bytearray()
    for token in tokens:
        name = SPECIAL.get(token)
        if name is None:
            run += token.to_bytes(TOKEN_BYTES, "little").rstrip(_FILL)
            continue
        parts.append(run.decode("utf-8", "replace"))
        parts.append(name)
        run.clear()
    parts.append(run.decode("utf-8", "replace"))
    return "".join(parts)
