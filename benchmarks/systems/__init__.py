"""What is compared: each system in front of the same bench replicas."""

from collections.abc import Callable

from benchmarks.systems.base import System, Unavailable
from benchmarks.systems.direct import Direct
from benchmarks.systems.haproxy import PlainHaproxy
from benchmarks.systems.slipstream import Slipstream
from benchmarks.systems.vllm_router import VllmRouter

__all__ = ["BY_NAME", "Direct", "PlainHaproxy", "Slipstream", "System", "Unavailable", "VllmRouter"]

#: Name on the command line and in results -> maker, in the order of a round.
BY_NAME: dict[str, Callable[[], System]] = {
    "direct": Direct,
    "slipstream": Slipstream,
    "haproxy": PlainHaproxy,
    "vllm-router-rr": lambda: VllmRouter("round_robin"),
    "vllm-router-ca": lambda: VllmRouter("cache_aware"),
}
