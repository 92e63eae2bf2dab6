"""How long HAProxy lets the router hold a request back before it asks again.

HAProxy never tells an agent that a client has left; once it has noticed it itself, which HAProxy 2.8 does early for
some clients and for others only when it is told a server, it does not ask again. So a wait is cut into slices: at
the end of each the router answers nothing, and HAProxy asks with the next of its WAIT_RULES rules.
"""

from __future__ import annotations

from dataplane.gateway.limits import number
from dataplane.pb import topology_pb2

#: Rules of one request; each costs requests that do not wait some 25 ns.
WAIT_RULES = 10
#: Slices that the longest wait takes: one rule more for its rest, and one for a slice that was cut short.
_SLICES = WAIT_RULES - 2
#: Asking again costs HAProxy and the router some 50 us: no more than this much of a core for 1,000 that wait.
MIN_SLICE_S = 1.0
#: Seconds that an answer may be late before HAProxy routes by itself; a router that hangs is found out in 1.5 s.
ANSWER_GRACE_S = 5.0
#: Nobody waits longer for a first token.
MAX_TIMEOUT_MS = 300_000


def longest_timeout_s(topology: topology_pb2.Topology) -> float:
    """Return the longest time that any request may wait; 0: none waits. Raises InvalidGateway."""
    timeouts = [timeout_s for model in topology.models for timeout_s in model.routing.admission.timeouts_s]
    return number(max(timeouts) * 1_000, 1, MAX_TIMEOUT_MS, "a wait's timeout in ms") / 1_000 if timeouts else 0.0


def slice_s(longest_timeout_s: float) -> float:
    """Return the seconds after which a waiting request is asked for again."""
    return max(MIN_SLICE_S, longest_timeout_s / _SLICES)


def processing_timeout_ms(longest_timeout_s: float) -> int:
    """Return the milliseconds that HAProxy waits for the answer to one ``wait``."""
    return int((slice_s(longest_timeout_s) + ANSWER_GRACE_S) * 1000)
