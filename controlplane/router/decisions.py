"""Questions to the routing core, and its decisions as the variables of docs/contracts.md.

Whatever the core does, HAProxy gets an answer at once: after an exception it sets no variable, and HAProxy balances
that request by itself.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

from controlplane.router.counters import Counters
from controlplane.router.questions import Question, Whole, variables
from controlplane.routing.core import RoutingCore
from controlplane.routing.features import WHOLE_BODY, Request, from_body, from_whole, parse
from controlplane.routing.load import Decision

_log = logging.getLogger(__name__)

#: Answers that are kept encoded; one for each server of a large cluster, and a few errors.
MAX_ENCODED = 8192
#: No variable is set: HAProxy routes by its map and its own balance.
NO_ANSWER = b""


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
    raise ValueError(f"a decision has no outcome {decision.outcome!r}")


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

    def topology_changed(self) -> None:
        """Drop the encoded answers: a new topology has other servers."""
        self._knows_the_cluster = True
        self._encoded.clear()

    def answer(self, question: Question | Whole) -> bytes:
        """Return the payload of the answer; never raises. Before the first topology HAProxy knows more than we do."""
        if not self._knows_the_cluster:
            return NO_ANSWER
        try:
            if isinstance(question, Whole):
                _, request_id, kind, tenant, size, (model, headers, content_type), body = question
                keys = self._core.session_keys
                request = from_whole(kind, size, body, model, headers, tenant, content_type, keys)
            else:
                request_id = question[1]
                request = parse(question[2], question[3]) if question[4] is None else request_of(question)
            decision = self._core.decide(request_id, request, self._clock())
            encoded = self._encoded.get(decision)
            return encoded if encoded is not None else self._encode(decision)
        except Exception as error:
            counters = self._counters
            counters.errors += 1
            if counters.errors.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...: a flood stays readable
                # Where, and not what: an exception's text may hold a piece of a prompt.
                where = "".join(traceback.format_tb(error.__traceback__))
                _log.warning("error no. %d, in a decision: %s\n%s", counters.errors, type(error).__name__, where)
            return NO_ANSWER

    def _encode(self, decision: Decision) -> bytes:
        if len(self._encoded) >= MAX_ENCODED:
            self._encoded.clear()
        encoded = self._encoded[decision] = payload(decision)
        return encoded
