"""One request's way through the engine."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from enum import Enum

from dataplane.engines.simulated import text
from dataplane.engines.simulated.tokenizer import TYPECODE


class State(Enum):
    """Where a sequence stands. WAITING: for a place or room; TRANSFERRING: its KV comes from a peer."""

    WAITING = "waiting"
    TRANSFERRING = "transferring"
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: tokens, and everything that decides which KV blocks may be shared and what the answer is.

    ``max_tokens`` is the length of the answer (0 for embeddings and their like, which only prefill). ``remote`` is
    true when a prefill replica has the KV of the whole prompt.
    """

    tokens: array[int]
    max_tokens: int
    adapter: str = ""
    salt: str = ""
    choice: int = 0
    remote: bool = False
    ends: str = "length"  # finish reason of an answer that is not cut short: length or stop


class Sequence:
    """Mutable state of one sequence; only the engine writes it. Times are seconds of the engine's clock."""

    __slots__ = (
        "admitted_s",
        "arrived_s",
        "cached_tokens",
        "computed",
        "created_tokens",
        "external_tokens",
        "first_token_s",
        "held",
        "key",
        "last_token_s",
        "names",
        "parent",
        "preemptions",
        "private",
        "produced",
        "prompt",
        "ready_s",
        "seed",
        "state",
        "tokens",
    )

    def __init__(self, key: int, prompt: Prompt, now_s: float, parent: int) -> None:
        self.key = key
        self.prompt = prompt
        self.state = State.WAITING
        self.seed = text.seed_of(prompt.tokens, prompt.adapter, prompt.choice)
        self.tokens = array(TYPECODE, prompt.tokens)  # prompt and what was produced
        self.produced = 0
        self.computed = 0  # tokens whose KV is here
        self.parent = parent  # root of the chain of names
        self.names: list[int] = []  # of all full blocks so far
        self.held = 0  # the first so many of them are held as named blocks
        self.private = 0
        self.cached_tokens = 0  # prompt tokens found in the prefix cache when it was admitted
        self.created_tokens = 0  # prompt tokens in full blocks that were new to the cache
        self.external_tokens = 0  # prompt tokens that a peer sent
        self.preemptions = 0
        self.arrived_s = now_s
        self.admitted_s = -1.0
        self.ready_s = 0.0  # when the transfer ends
        self.first_token_s = -1.0
        self.last_token_s = -1.0

    @property
    def missing(self) -> int:
        """Tokens to compute before the next one can be produced."""
        return len(self.tokens) - self.computed

    @property
    def done(self) -> bool:
        """Whether all of the answer is there."""
        return self.produced >= self.prompt.max_tokens

    def produce(self, now_s: float) -> None:
        """Add the next token of the answer."""
        if self.first_token_s < 0:
            self.first_token_s = now_s
        self.last_token_s = now_s
        if self.prompt.max_tokens:
            self.tokens.append(text.token(text.piece(self.seed, self.produced)))
            self.produced += 1
