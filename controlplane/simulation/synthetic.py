"""Workloads that need no trace: agentic sessions, shared prefixes, conversations. Each is made from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from math import log, sqrt
from random import Random

from controlplane.simulation.prompt import Ask, Contents, Text

#: Blocks that one agent may number, and one conversation, and one turn of it. Block numbers have 63 bits.
ROOM = 1 << 32
CONVERSATION_ROOM = 1 << 26
TURN_ROOM = 1 << 12
#: Tokens of prompt and output that one request may have: a model's context length.
MAX_CONTEXT = 131_072


@dataclass(frozen=True, slots=True)
class Lognormal:
    """A lognormal distribution of tokens or seconds, as tools write it down: its mean and its median."""

    mean: float
    median: float

    def draw(self, random: Random) -> float:
        """Return one value."""
        return random.lognormvariate(log(self.median), sqrt(2 * log(self.mean / self.median)))


@dataclass(frozen=True, slots=True)
class AgenticShape:
    """Coding agents: a system prompt that all share, a session's own context, and turns that grow the prompt.

    Tokens and seconds; the numbers are those of vLLM's agentic benchmark with 96 % of the first prompt shared.
    """

    shared_tokens: int = 24_000
    session_tokens: int = 1_000
    turns: int = 20
    new_tokens: Lognormal = Lognormal(1_000, 400)
    output_tokens: Lognormal = Lognormal(230, 70)
    delay_s: Lognormal = Lognormal(2.0, 1.2)
    most_new: int = 32_768
    most_output: int = 8_192


class _Agent:
    """One user: where its session is."""

    __slots__ = ("contents", "number", "random", "sessions", "text", "turn")

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.random = Random(f"{seed}/{number}")
        self.contents = Contents((number + 1) * ROOM)
        self.sessions = 0
        self.turn = 0
        self.text = Text()


class Agentic:
    """``users`` agents, each waiting for its answer and a pause before its next turn, for ``length_s``.

    They begin in the middle of their sessions: fleets do not start all their agents at once.
    """

    expected = 0

    def __init__(self, users: int, length_s: float, seed: int = 0, shape: AgenticShape | None = None) -> None:
        self.name = f"agentic, {users} users"
        self.length_s = length_s
        self._users = users
        self._seed = seed
        self._shape = shape or AgenticShape()
        self._shared = Text()
        self._shared.add(Contents().new(self._shape.shared_tokens))
        self._agents: list[_Agent] = []

    def arrivals(self) -> Iterator[Ask]:
        """Return each user's first request."""
        random = Random(self._seed)
        self._agents = [_Agent(number, self._seed) for number in range(self._users)]
        starts = sorted(random.random() * self.length_s * 0.05 for _ in self._agents)
        for agent, at_s in zip(self._agents, starts, strict=True):
            self._begin(agent, agent.random.randrange(self._shape.turns))
            yield self._ask(agent, at_s)

    def answered(self, ask: Ask, now_s: float) -> Ask | None:
        """Return the user's next turn, of the next session when this one is over."""
        agent = self._agents[ask.user]
        at_s = now_s + self._shape.delay_s.draw(agent.random)
        agent.text.add(ask.kept)
        if agent.turn >= self._shape.turns or agent.text.tokens > MAX_CONTEXT - self._shape.most_new:
            self._begin(agent, 0)
        return self._ask(agent, at_s) if at_s < self.length_s else None

    def _begin(self, agent: _Agent, turn: int) -> None:
        agent.sessions += 1
        agent.text = self._shared.copy()
        agent.text.add(agent.contents.new(self._shape.session_tokens))
        agent.turn = turn
        for _ in range(turn):
            agent.text.add(agent.contents.new(self._new(agent) + self._output(agent)))

    def _new(self, agent: _Agent) -> int:
        return max(1, min(self._shape.most_new, round(self._shape.new_tokens.draw(agent.random))))

    def _output(self, agent: _Agent) -> int:
        return max(1, min(self._shape.most_output, round(self._shape.output_tokens.draw(agent.random))))

    def _ask(self, agent: _Agent, at_s: float) -> Ask:
        agent.turn += 1
        text = agent.text
        text.add(agent.contents.new(self._new(agent)))
        output = self._output(agent)
        return Ask(
            at_s,
            text.tokens,
            output,
            tuple(text.blocks),
            text.hashes(),
            b"x-session-id=%d-%d" % (agent.number, agent.sessions),
            tuple(agent.contents.new(output)),
            agent.number,
        )


class SharedPrefix:
    """Groups of requests with one long system prompt each and a question of their own, at ``rate`` a second.

    150 groups, 6,000 + 1,200 tokens, 1,000 tokens of output: llm-d-benchmark's shared-prefix profile.
    """

    def __init__(
        self,
        rate: float,
        length_s: float,
        seed: int = 0,
        *,
        groups: int = 150,
        prefix_tokens: int = 6_000,
        question_tokens: int = 1_200,
        output_tokens: int = 1_000,
    ) -> None:
        self.name = f"shared_prefix, {rate:g} req/s"
        self.length_s = length_s
        self.expected = round(rate * length_s)
        self._rate = rate
        self._seed = seed
        self._groups = groups
        self._prefix_tokens = prefix_tokens
        self._question_tokens = question_tokens
        self._output_tokens = output_tokens

    def arrivals(self) -> Iterator[Ask]:
        """Return all requests, as a Poisson process."""
        random = Random(self._seed)
        contents = Contents()
        prefixes = []
        for _ in range(self._groups):
            prefix = Text()
            prefix.add(contents.new(self._prefix_tokens))
            prefixes.append(prefix)
        at_s = random.expovariate(self._rate)
        while at_s < self.length_s:
            group = random.randrange(self._groups)
            text = prefixes[group].copy()
            text.add(contents.new(self._question_tokens))
            session = b"x-session-id=%d" % group
            yield Ask(at_s, text.tokens, self._output_tokens, text.blocks, text.hashes(), session)
            at_s += random.expovariate(self._rate)

    def answered(self, ask: Ask, now_s: float) -> Ask | None:
        """Nobody goes on."""
        return None


@dataclass(frozen=True, slots=True)
class ConversationShape:
    """Chats with long prompts. The means are those of the conversation trace that Mooncake published (12,035 tokens
    in, 343 out, 36.6 % of blocks seen before); the distributions are assumed.
    """

    first_tokens: Lognormal = Lognormal(8_000, 5_000)
    new_tokens: Lognormal = Lognormal(2_000, 600)
    output_tokens: Lognormal = Lognormal(343, 250)
    pause_s: Lognormal = Lognormal(90.0, 45.0)
    mean_turns: float = 2.5
    most_tokens: int = 65_536
    most_output: int = 4_096
    past_s: float = 900.0
    """Conversations that began so long before the start go on after it."""


class Conversations:
    """Conversations that begin as a Poisson process, ``rate`` requests a second in all."""

    def __init__(self, rate: float, length_s: float, seed: int = 0, shape: ConversationShape | None = None) -> None:
        self.name = f"conversation, {rate:g} req/s"
        self.length_s = length_s
        self.expected = round(rate * length_s)
        self._rate = rate
        self._seed = seed
        self._shape = shape or ConversationShape()

    def arrivals(self) -> Iterator[Ask]:
        """Return all requests. A user's next turn follows a pause, whatever the answer took."""
        random = Random(self._seed)
        shape = self._shape
        starts = self._rate / shape.mean_turns
        #: (time, conversation, its text)
        turns: list[tuple[float, int, Text]] = []
        begin_s = random.expovariate(starts) - shape.past_s
        number = 0
        while True:
            if begin_s < self.length_s and (not turns or begin_s <= turns[0][0]):
                at_s, conversation, text = begin_s, number, Text()
                text.add(
                    Contents(number * CONVERSATION_ROOM).new(
                        self._tokens(random, shape.first_tokens, shape.most_tokens)
                    )
                )
                number += 1
                begin_s += random.expovariate(starts)
            elif turns:
                at_s, conversation, text = heappop(turns)
            else:
                return
            output = self._tokens(random, shape.output_tokens, shape.most_output)
            contents = Contents(conversation * CONVERSATION_ROOM + TURN_ROOM * (1 + len(text.blocks)))
            kept = contents.new(output)
            session = b"x-session-id=%d" % conversation
            if at_s >= 0:
                yield Ask(at_s, text.tokens, output, tuple(text.blocks), text.hashes(), session, tuple(kept))
            next_s = at_s + shape.pause_s.draw(random)
            goes_on = random.random() < 1 - 1 / shape.mean_turns
            if goes_on and next_s < self.length_s and text.tokens < shape.most_tokens:
                text.add(kept)
                text.add(contents.new(self._tokens(random, shape.new_tokens, shape.most_tokens)))
                heappush(turns, (next_s, conversation, text))

    def answered(self, ask: Ask, now_s: float) -> Ask | None:
        """Nobody goes on because of an answer."""
        return None

    @staticmethod
    def _tokens(random: Random, length: Lognormal, most: int) -> int:
        return max(1, min(most, round(length.draw(random))))
