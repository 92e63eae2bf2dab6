"""Questions to the routing core, and its decisions as the variables of docs/contracts.md.

Whatever the core does, HAProxy gets an answer at once: after an exception it sets no variable, and HAProxy balances
that request by itself.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from controlplane.router.counters import Counters
from controlplane.router.deferred import Deferred
from controlplane.router.questions import NO_LONGER, Question, Wait, Whole, variables
from controlplane.router.waiting import Waiting
from controlplane.routing.core import RoutingCore
from controlplane.routing.features import WHOLE_BODY, Request, from_body, from_whole, parse
from controlplane.routing.load import Decision

if TYPE_CHECKING:  # loaded with the first precise model only
    from controlplane.router.precise.deciding import PreciseDecisions
    from controlplane.router.precise.matching import Prompt

_log = logging.getLogger(__name__)

#: Answers that are kept encoded; one for each server of a large cluster, and a few errors.
MAX_ENCODED = 8192
#: No variable is set: HAProxy routes by its map and its own balance.
NO_ANSWER = b""
#: HAProxy is to ask again, with `wait`.
LATER = variables(later=b"1")


def payload(decision: Decision) -> bytes:
    """Return the list of actions that tells HAProxy of a decision."""
    match decision.outcome:
        case "go":
            return variables(srv=decision.server, pool=decision.pool)
        case "more":
            return variables(more=b"1")
        case "error":
            return variables(err=decision.error.encode())
        case "shed":
            return variables(shed=b"%d" % max(1, decision.retry_after_s))
        case "wait":
            return LATER
    raise ValueError(f"a decision has no outcome {decision.outcome!r}")


def ending(decision: Decision) -> bytes:
    """Return the list of actions that tells HAProxy of the decision about a request that waited."""
    return NO_LONGER if decision.outcome == "failed" else payload(decision) + NO_LONGER


def request_of(question: Question) -> Request:
    """Return the features of a question. Raises MalformedFeatures."""
    request = parse(question.record, question.tenant)
    if question.body is None:
        return request
    # The message carries at most the body's first 1,000,000 bytes.
    whole = bool(request.flags & WHOLE_BODY) and len(question.body) >= request.body_bytes
    return from_body(request, question.body, whole)


class Decisions:
    """Answers questions with one routing core; runs on one event loop."""

    def __init__(self, core: RoutingCore, clock: Callable[[], float], counters: Counters) -> None:
        self._core = core
        self._clock = clock
        self._counters = counters
        # The core gives the same object for the same server until the next topology.
        self._encoded: dict[Decision, bytes] = {}
        self._knows_the_cluster = False
        self.waiting = Waiting(core, clock, ending, self._failed)
        #: Set while any model is precise.
        self.precise: PreciseDecisions | None = None

    def topology_changed(self) -> None:
        """Drop the encoded answers: a new topology has other servers."""
        self._knows_the_cluster = True
        self._encoded.clear()

    def answer(self, question: Question | Whole | Wait) -> bytes | Deferred:
        """Return the answer's payload, or what gives it later; never raises.

        Before the first topology HAProxy knows more than we do.
        """
        if not self._knows_the_cluster:
            return NO_ANSWER
        try:
            if isinstance(question, Whole):
                _, request_id, kind, tenant, size, (model, headers, content_type, priority), body = question
                keys = self._core.session_keys
                request = from_whole(kind, size, body, model, headers, tenant, content_type, keys)
            elif isinstance(question, Wait):
                later = self.waiting.asked(question.request_id)
                return NO_LONGER if later is None else later
            else:
                request_id = question[1]
                priority = question[5]
                request = parse(question[2], question[3]) if question[4] is None else request_of(question)
            if self.precise is not None and request.plain:
                later = self.precise.answer(question, request, priority)
                if later is not None:
                    return later
            return self._payload(request_id, self._core.decide(request_id, request, self._clock(), None, priority))
        except Exception as error:
            self._failed(error)
            return NO_ANSWER

    def decide_precisely(
        self, request_id: bytes, request: Request, priority: int, prompt: Prompt | None
    ) -> tuple[bytes, bytes]:
        """Decide with what replicas really cache of a prompt (None: not known in time); never raises.

        Returns the answer's payload, and the server that the request goes to (empty: to none, or not yet).
        """
        try:
            held = None if prompt is None else prompt.held
            decision = self._core.decide(request_id, request, self._clock(), held, priority)
            return self._payload(request_id, decision), decision.server
        except Exception as error:
            self._failed(error)
            return NO_ANSWER, b""

    def _payload(self, request_id: bytes, decision: Decision) -> bytes:
        encoded = self._encoded.get(decision)
        if encoded is not None:
            return encoded
        if decision.outcome == "wait":
            self.waiting.began(request_id)
            return LATER
        return self._encode(decision)

    def _failed(self, error: Exception) -> None:
        counters = self._counters
        counters.errors += 1
        if counters.errors.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...: a flood stays readable
            # Where, and not what: an exception's text may hold a piece of a prompt.
            where = "".join(traceback.format_tb(error.__traceback__))
            _log.warning("error no. %d, in a decision: %s\n%s", counters.errors, type(error).__name__, where)

    def _encode(self, decision: Decision) -> bytes:
        if len(self._encoded) >= MAX_ENCODED:
            self._encoded.clear()
        encoded = self._encoded[decision] = payload(decision)
        return encoded
