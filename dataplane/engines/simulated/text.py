"""What the simulated model says: a pure function of the prompt's tokens and the adapter.

Two replicas therefore give the same answer to the same prompt, and a preempted sequence goes on where it stopped.
Every token is four ASCII characters that JSON leaves as they are, and equals what the tokenizer makes of them.
"""

from __future__ import annotations

from array import array

import xxhash

from dataplane.engines.simulated.tokenizer import encode

_SYLLABLES = "ba de fi go lu ma ne pi ro su ta ve zo ka".split()
#: 196 starts and ends of words; a power of two would let the low bits alone choose.
PIECES: tuple[bytes, ...] = tuple(
    (f" {a}{b[0]}" if (i + j) % 2 else f"{a}{b}").encode()
    for i, a in enumerate(_SYLLABLES)
    for j, b in enumerate(_SYLLABLES)
)
_TOKENS = tuple(encode(piece.decode())[0] for piece in PIECES)
_COUNT = len(PIECES)
_MASK = (1 << 64) - 1
#: Weyl sequence and multiplier of splitmix64 (Steele, Lea, Flood 2014).
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = 0xBF58476D1CE4E5B9

#: An answer without a limit ends by itself after so many tokens.
MIN_NATURAL_TOKENS = 32
MAX_NATURAL_TOKENS = 159


def seed_of(prompt: array[int], adapter: str, choice: int = 0) -> int:
    """Return the 64-bit seed of one choice's answer."""
    salt = xxhash.xxh3_64_intdigest(adapter.encode())
    return (xxhash.xxh3_64_intdigest(prompt.tobytes(), seed=salt) + choice * _MIX) & _MASK


def piece(seed: int, position: int) -> int:
    """Return the index of the token at ``position`` (from 0) in PIECES."""
    x = (seed + (position + 1) * _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * _MIX) & _MASK
    return (x ^ (x >> 31)) % _COUNT


def token(index: int) -> int:
    """Return the token of a piece."""
    return _TOKENS[index]


def natural_length(seed: int) -> int:
    """Return how many tokens an answer has when nothing limits it."""
    return MIN_NATURAL_TOKENS + seed % (MAX_NATURAL_TOKENS - MIN_NATURAL_TOKENS + 1)


def say(seed: int, start: int, end: int) -> bytes:
    """Return the text of the tokens from ``start`` up to ``end``."""
    return b"".join([PIECES[piece(seed, i)] for i in range(start, end)])
