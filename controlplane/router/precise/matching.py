"""Which replicas cache a request's prompt, by its tokens and the engines' own events; off the router's event loop.

A request gets its answer by a deadline, or none: HAProxy balances by itself when its own timeout has passed. Whoever
gets none is routed by the text of its prompt, as every request of other models is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from controlplane.router.precise.agreement import Agreement
from controlplane.router.precise.conversation import Unsupported
from controlplane.router.precise.counters import Counters
from controlplane.router.precise.recent import Recent
from controlplane.router.precise.simulated import SimulatedTokenizer
from controlplane.router.precise.subscriber import Source, Subscriber
from controlplane.router.precise.tokenizer import KINDS, ModelTokenizer, Tokenizer, UnusableTokenizer, own_salt, read
from controlplane.routing.block_index import MAX_ENTRIES, BlockIndex
from controlplane.routing.fleet import DRAINING, READY, ModelInfo, Topology

_log = logging.getLogger(__name__)

#: Tokenising leaves the interpreter's lock alone; more threads than a gateway has cores to spare would not help.
THREADS = 2
#: Prompts that wait for a thread; at 2 ms each the last one's deadline has passed.
MAX_WAITING = 64


class _Model:
    """One precise model: its tokenizer (None while it is read, or when it cannot be used) and its replicas' blocks."""

    def __init__(self, info: ModelInfo, capacity: int) -> None:
        self.info = info
        self.index = BlockIndex(capacity)
        self.recent = Recent()
        self.agreement = Agreement(info.name, self.index)
        self.tokenizer: Tokenizer | None = None
        self.loading: asyncio.Task[None] | None = None


class Prompt:
    """A prompt's tokens and what replicas cache of it: {server: tokens}, best first; None: its text is to decide."""

    __slots__ = ("_model", "held", "space", "tokens")

    def __init__(
        self, model: _Model, space: tuple[str, str], tokens: array[int], held: dict[bytes, int] | None
    ) -> None:
        self._model = model
        self.space = space
        self.tokens = tokens
        self.held = held

    def sent(self, server: bytes) -> None:
        """Note where the prompt goes: it will be cached there before the engine tells of it."""
        self._model.recent.add(server, self.space, self.tokens, time.monotonic())
        self._model.agreement.sent(server, self.space, self.tokens)


class Matching:
    """Serves all precise models of one router; everything but tokenising runs on its event loop."""

    def __init__(self, salt: Callable[[bytes], str]) -> None:
        """``salt`` returns the cache salt of a tenant, for models whose tenants share no cached prompts."""
        self.counters = Counters()
        self._salt = salt
        self._models: dict[str, _Model] = {}
        self._names: dict[bytes, tuple[_Model, str]] = {}
        self._subscriber = Subscriber(self.counters)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenise")
        self._waiting = 0

    def install(self, topology: Topology) -> None:
        """Follow the precise models and replicas of a topology; what stays keeps its state."""
        wanted = {model.name: model for model in topology.models if model.precise}
        for name in [name for name in self._models if name not in wanted]:
            self._forget(self._models.pop(name))
        for info in wanted.values():
            known = self._models.get(info.name)
            if known is None or known.info.tokenizer != info.tokenizer:
                if known is not None:
                    self._forget(known)
                known = self._models[info.name] = _Model(info, MAX_ENTRIES // len(wanted))
                known.loading = asyncio.create_task(self._load(known))
            known.info = info
        self._names = {
            name.encode(): (model, adapter)
            for model in self._models.values()
            for name, adapter in (
                (model.info.name, ""),
                *((adapter.name, adapter.name) for adapter in model.info.adapters),
            )
        }
        self._follow(topology)

    def _follow(self, topology: Topology) -> None:
        sources: dict[bytes, Source] = {}
        for replica in topology.replicas:
            model = self._models.get(replica.model)
            if model is None or not replica.kv_events_endpoint or replica.state not in (READY, DRAINING):
                continue
            server = replica.server.encode()
            sources[server] = Source(replica.kv_events_endpoint, replica.kv_replay_endpoint, model.index)
            model.index.join(
                server, block_tokens=replica.kv_block_tokens, kv_capacity_tokens=replica.kv_capacity_tokens
            )
        for model in self._models.values():
            for server in [server for server in model.index.servers if server not in sources]:
                model.index.leave(server)
        self._subscriber.follow(sources)

    def wants(self, name: bytes, kind: int) -> bool:
        """Return whether requests for a model or adapter are to be matched, body and all."""
        return kind in KINDS and name in self._names

    def models(self) -> Iterator[tuple[str, bool, BlockIndex]]:
        """Yield each precise model's name, whether it has a tokenizer, and its blocks."""
        for name, model in self._models.items():
            yield name, model.tokenizer is not None, model.index

    def match(
        self,
        name: bytes,
        kind: int,
        tenant: bytes,
        body: bytes | memoryview,
        answer: Callable[[Prompt | None], object],
    ) -> bool:
        """Have ``answer`` called once, later, at the latest after the deadline; with None for a request to go by text.

        Return False, and never call it, when that is clear at once.
        """
        model, adapter = self._names.get(name, (None, ""))
        reason = self._refusal(model, kind)
        if model is None or model.tokenizer is None or reason:
            self.counters.fall_back(reason)
            return False
        loop = asyncio.get_running_loop()
        self._waiting += 1
        salt = self._salt(tenant) if model.info.isolated else None
        question = _Question(model, adapter, answer, self.counters)
        question.timer = loop.call_later(model.info.deadline_s, question.late)
        job = loop.run_in_executor(self._pool, _tokenise, model.tokenizer, kind, bytes(body), salt)
        job.add_done_callback(lambda done: self._tokenised(question, done))
        return True

    async def prompt(self, name: bytes, kind: int, tenant: bytes, body: bytes) -> Prompt | None:
        """Return what ``match`` answers."""
        answer: asyncio.Future[Prompt | None] = asyncio.get_running_loop().create_future()

        def given(prompt: Prompt | None) -> None:
            if not answer.done():
                answer.set_result(prompt)

        if not self.match(name, kind, tenant, body, given):
            return None
        return await answer

    def _refusal(self, model: _Model | None, kind: int) -> str:
        """Return why a request goes by its text at once; empty: it does not."""
        if model is None:
            return "model"
        if kind not in KINDS:
            return "kind"
        if model.tokenizer is None:
            return "no_tokenizer"
        return "busy" if self._waiting >= MAX_WAITING else ""

    def _tokenised(self, question: _Question, job: asyncio.Future[tuple[array[int], str]]) -> None:
        self._waiting -= 1
        if job.cancelled():
            question.give_up("ended")
            return
        error = job.exception()
        if error is None:
            self.counters.tokenised += 1
            question.tokenised(*job.result())
        elif isinstance(error, Unsupported):
            question.give_up(error.reason)
        else:
            question.give_up("error")
            # Which, and not what: an exception's text may hold a piece of a prompt.
            _log.warning("a prompt could not be tokenised: %s", type(error).__name__)

    async def run(self) -> None:
        """Take the engines' events until cancelled."""
        await self._subscriber.run()

    async def close(self) -> None:
        """Let go of the engines; questions that are open get no answer any more."""
        await self._subscriber.close()
        for model in self._models.values():
            self._forget(model)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _load(self, model: _Model) -> None:
        folder = model.info.tokenizer
        try:
            model.tokenizer = await asyncio.to_thread(_tokenizer, folder)
        except (UnusableTokenizer, OSError) as error:
            _log.warning("model %s is routed by text: %s", model.info.name, error)

    @staticmethod
    def _forget(model: _Model) -> None:
        if model.loading is not None:
            model.loading.cancel()
        model.agreement.stop()
        for server in tuple(model.index.servers):
            model.index.leave(server)


class _Question:
    """One request that waits for its tokens."""

    __slots__ = ("_adapter", "_answer", "_counters", "_model", "timer")

    def __init__(
        self, model: _Model, adapter: str, answer: Callable[[Prompt | None], object], counters: Counters
    ) -> None:
        self._model = model
        self._adapter = adapter
        self._answer: Callable[[Prompt | None], object] | None = answer
        self._counters = counters
        self.timer: asyncio.TimerHandle | None = None

    def late(self) -> None:
        """Go on without an answer; the tokens still come, and make the next turn's faster."""
        self.give_up("late")

    def give_up(self, reason: str) -> None:
        """Answer that there is none."""
        if self._answer is not None:
            self._counters.fall_back(reason)
            self._end(None)

    def tokenised(self, tokens: array[int], salt: str) -> None:
        """Look the tokens up and answer, if it is not too late."""
        if self._answer is None:
            return
        index = self._model.index
        space = (self._adapter, salt)
        held = index.lookup(tokens, *space)
        self._model.recent.raise_to(held, space, tokens, time.monotonic())
        if not held and not all(index.complete(server) for server in index.servers):
            self.give_up("incomplete")  # something may be cached that the index was never told
            return
        if self._model.agreement.holds:
            self._counters.matched += 1
            self._end(Prompt(self._model, space, tokens, held))
        else:
            self._counters.fall_back("disagreement")
            self._end(Prompt(self._model, space, tokens, None))

    def _end(self, prompt: Prompt | None) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if self.timer is not None:
            self.timer.cancel()
        answer(prompt)


def _tokenise(tokenizer: Tokenizer, kind: int, body: bytes, salt: str | None) -> tuple[array[int], str]:
    """Return a prompt's tokens and its cache salt: the tenant's, or without isolation what the client asks for."""
    asked = read(body)
    return tokenizer.tokens(kind, asked), own_salt(asked) if salt is None else salt


def _tokenizer(folder: str) -> Tokenizer:
    return ModelTokenizer(Path(folder)) if folder else SimulatedTokenizer()
