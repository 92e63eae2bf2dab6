"""CPU microseconds of one decision: ``python -m benchmarks.decision [--json FILE] [--requests N]``.

Measured for every policy, number of replicas and body size, in one process that does nothing else:

* parse: the feature record becomes a request;
* decide: the choice, the count in flight, the prefix tree and the receipt;
* finish: the log line's completion.

Each request is timed on its own for p50 and p99 (wall time, so p99 has the machine's noise); ``cpu`` is the process's
CPU time for all of it, divided by the requests, with nothing timed in between: that is the figure to compare.
200 B, 32 KB and 100 KB bodies have 1, 8 and 25 blocks. Half of the prompts are new, half continue an earlier one;
64 requests per eight replicas (at most 4,096) are in flight.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from controlplane.routing.core import RoutingCore
from controlplane.routing.events import Completion
from controlplane.routing.features import Request, parse, record
from controlplane.routing.fleet import ModelInfo, PoolInfo, ReplicaInfo, Topology
from controlplane.routing.policies.registry import POLICIES

REPLICAS = (8, 64, 512, 4096)
BODIES = {"200 B": (200, 1), "32 KB": (32_768, 8), "100 KB": (102_400, 25)}
DEFAULT_REQUESTS = 10_000
MAX_IN_FLIGHT = 4_096


@dataclass(frozen=True, slots=True)
class Result:
    """Microseconds; ``cpu_us`` is parse, decide and finish together."""

    policy: str
    replicas: int
    body: str
    cpu_us: float
    parse_p50_us: float
    decide_p50_us: float
    decide_p99_us: float
    finish_p50_us: float


def topology(count: int, policy: str) -> Topology:
    replicas = tuple(
        ReplicaInfo(f"p-{i}.g1", f"p-{i}", "m", "p", "127.0.0.1", 8000, "ready", "mixed", 450_000) for i in range(count)
    )
    return Topology(1, "bench", (ModelInfo("m", (), (PoolInfo("p", "mixed"),), policy),), replicas)


def records(count: int, body_bytes: int, blocks: int) -> list[bytes]:
    """Return feature records: of each two, one begins a prompt and one repeats it with another end."""
    made = []
    for number in range(count):
        conversation = number // 2
        hashes = [xxhash.xxh64_intdigest(b"%d/%d" % (conversation, block)) for block in range(blocks)]
        hashes[-1] = xxhash.xxh64_intdigest(b"%d end" % number)
        request = Request(
            plain=True,
            kind=1,
            flags=1,
            model=b"m",
            session=b"x-session-id=session-%d" % (number % 1000),
            pin=b"",
            hashes=struct.pack(f"<{blocks}Q", *hashes),
            body_bytes=body_bytes,
            prompt_bytes=body_bytes - 30,
            max_tokens=128,
            tenant=b"",
            error="",
            missing="",
        )
        made.append(record(request))
    return made


def measure(policy: str, replicas: int, body: str, count: int) -> Result:
    """Run ``count`` requests twice, once timed as a whole and once one by one, on two fresh cores."""
    body_bytes, blocks = BODIES[body]
    asked = records(count, body_bytes, blocks)
    ids = [b"%036d" % number for number in range(count)]
    in_flight = min(MAX_IN_FLIGHT, 8 * replicas, count // 2)
    cpu_us = _whole(_core(replicas, policy), asked, ids, in_flight)
    parses, decides, finishes = _one_by_one(_core(replicas, policy), asked, ids, in_flight)
    return Result(
        policy=policy,
        replicas=replicas,
        body=body,
        cpu_us=cpu_us,
        parse_p50_us=_quantile(parses, 0.5),
        decide_p50_us=_quantile(decides, 0.5),
        decide_p99_us=_quantile(decides, 0.99),
        finish_p50_us=_quantile(finishes, 0.5),
    )


def _core(replicas: int, policy: str) -> RoutingCore:
    core = RoutingCore(receipt_capacity=20_000)
    core.install(topology(replicas, policy), 0.0)
    gc.collect()
    return core


def _whole(core: RoutingCore, asked: list[bytes], ids: list[bytes], in_flight: int) -> float:
    waiting: deque[tuple[bytes, bytes]] = deque()
    started = time.process_time()
    for request_id, data in zip(ids, asked, strict=True):
        decision = core.decide(request_id, parse(data, b""), 1e9)
        waiting.append((request_id, decision.server))
        if len(waiting) > in_flight:
            old, server = waiting.popleft()
            core.finished(Completion(old, server, 200, 20, 100, 1000, b"--", 0), 1e9)
    return (time.process_time() - started) / len(asked) * 1e6


def _one_by_one(
    core: RoutingCore, asked: list[bytes], ids: list[bytes], in_flight: int
) -> tuple[list[int], list[int], list[int]]:
    waiting: deque[tuple[bytes, bytes]] = deque()
    now = time.perf_counter_ns
    parses, decides, finishes = [], [], []
    for request_id, data in zip(ids, asked, strict=True):
        start = now()
        request = parse(data, b"")
        parsed = now()
        decision = core.decide(request_id, request, 1e9)
        decided = now()
        parses.append(parsed - start)
        decides.append(decided - parsed)
        waiting.append((request_id, decision.server))
        if len(waiting) > in_flight:
            old, server = waiting.popleft()
            completion = Completion(old, server, 200, 20, 100, 1000, b"--", 0)
            start = now()
            core.finished(completion, 1e9)
            finishes.append(now() - start)
    half = len(asked) // 2  # the first half fills tables and trees
    return parses[half:], decides[half:], finishes[len(finishes) // 2 :]


def _quantile(values: Sequence[int], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000


def main() -> None:
    """Print the table; write it as JSON when asked."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.decision", description="Cost of a decision.")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    arguments.add_argument("--requests", type=int, default=DEFAULT_REQUESTS, help="for each line (default %(default)s)")
    options = arguments.parse_args()
    gc.freeze()
    print(f"{'policy':14}{'replicas':>9}{'body':>8}{'cpu us':>9}{'parse':>8}{'decide':>8}{'p99':>8}{'finish':>8}")
    results = []
    for policy in POLICIES:
        for replicas in REPLICAS:
            for body in BODIES:
                result = measure(policy, replicas, body, options.requests)
                results.append(result)
                print(
                    f"{policy:14}{replicas:9}{body:>8}{result.cpu_us:9.1f}{result.parse_p50_us:8.1f}"
                    f"{result.decide_p50_us:8.1f}{result.decide_p99_us:8.1f}{result.finish_p50_us:8.1f}"
                )
    if options.json is not None:
        about = {"python": platform.python_version(), "machine": platform.machine(), "requests": options.requests}
        options.json.write_text(json.dumps({"about": about, "results": [asdict(r) for r in results]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
