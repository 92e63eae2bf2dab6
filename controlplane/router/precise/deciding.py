"""Decisions about precise models' requests: held back until the prompt's tokens are known, 40 ms at most."""

from __future__ import annotations

from typing import Protocol

from controlplane.router.deferred import Deferred
from controlplane.router.precise.matching import Matching, Prompt
from controlplane.router.questions import Question, Whole, variables
from controlplane.routing.body import MAX_BODY_BYTES
from controlplane.routing.record import WHOLE_BODY, Request

#: HAProxy is to send the body.
MORE = variables(more=b"1")


class Decide(Protocol):
    """Makes the decision and returns its payload, and the server that the request goes to (empty: to none)."""

    def __call__(
        self, request_id: bytes, request: Request, priority: int, prompt: Prompt | None
    ) -> tuple[bytes, bytes]:
        """Never raises."""


class PreciseDecisions:
    """Answers questions about precise models; runs on the router's event loop."""

    def __init__(self, matching: Matching, decide: Decide) -> None:
        self._matching = matching
        self._decide = decide

    def answer(self, question: Question | Whole, request: Request, priority: int) -> bytes | Deferred | None:
        """Return the payload, or what gives it later; None for a question that is to be answered by its text."""
        matching = self._matching
        if not matching.wants(request.model, request.kind):
            return None
        body = question.body
        if body is None:
            return MORE if request.flags & WHOLE_BODY and request.body_bytes <= MAX_BODY_BYTES else None
        if len(body) < request.body_bytes:
            return None  # more than a message carries
        waiting = _Answer(self._decide, question.request_id, request, priority)
        return (
            waiting.deferred
            if matching.match(request.model, request.kind, request.tenant, body, waiting.matched)
            else None
        )


class _Answer:
    """One question whose answer is held back."""

    __slots__ = ("_decide", "_lost", "_priority", "_request", "_request_id", "deferred")

    def __init__(self, decide: Decide, request_id: bytes, request: Request, priority: int) -> None:
        self._decide = decide
        self._request_id = request_id
        self._request = request
        self._priority = priority
        self._lost = False
        self.deferred = Deferred(self._ended)

    def matched(self, prompt: Prompt | None) -> None:
        """Decide and answer, unless nobody is there any more: HAProxy has balanced the request by itself."""
        if self._lost:
            return
        payload, server = self._decide(self._request_id, self._request, self._priority, prompt)
        self.deferred.answer(payload)
        if prompt is not None and server:
            prompt.sent(server)

    def _ended(self) -> None:
        self._lost = True
