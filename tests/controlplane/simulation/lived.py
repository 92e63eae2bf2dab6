"""A router's eventful life, told to any routing core: the calls depend on the seed and on the core's answers only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from heapq import heappop, heappush

import xxhash

from controlplane.routing.admission.settings import Settings
from controlplane.routing.core import RoutingCore
from controlplane.routing.events import CacheCleared, Completion, EngineReport, FirstByte, Telemetry
from controlplane.routing.fleet import AdapterInfo, ModelInfo, PoolInfo, ReplicaInfo, Topology
from controlplane.routing.record import Request

MODELS = {"chat": "cost", "code": "prefix", "mail": "session", "dice": "power_of_two"}
START_S = 1_780_000_000.0
#: So tight that requests wait, are refused and come too late.
ADMISSION = Settings(ttft_target_s=0.02, max_requests=12, tenant_requests=8, timeouts_s=(1.0, 0.5, 0.3))


class Life:
    """Requests, their ends, and everything that goes wrong between."""

    def __init__(self, core: RoutingCore, seed: int = 1, policies: dict[str, str] | None = None) -> None:
        self.core = core
        self.policies = policies or MODELS
        self.random = random.Random(seed)
        self.now_s = START_S
        self.number = 0
        self.generations = {f"{model}-{i}": 1 for model in self.policies for i in range(6)}
        self.draining: set[str] = set()
        self.asked = 0
        #: (time, order, call)
        self.due: list[tuple[float, int, tuple[object, ...]]] = []
        self.conversations: dict[str, list[list[bytes]]] = {model: [] for model in self.policies}
        self.streams: dict[str, int] = {}
        self.waiting: dict[bytes, Request] = {}

    def live(self, decisions: int) -> None:
        """Take so many decisions."""
        self.install()
        while self.asked < decisions:
            self.now_s += self.random.expovariate(60.0)
            while self.due and self.due[0][0] <= self.now_s:
                at_s, _, call = heappop(self.due)
                self.hear(at_s, call)
            if self.random.random() < 0.006:
                self.change()
            self.ask()
            for request_id, decision in self.core.release(self.now_s):
                request = self.waiting.pop(request_id, None)
                if decision.outcome == "go" and request is not None:
                    self.go(request_id, request, decision.server)

    def install(self) -> None:
        self.number += 1
        replicas: list[ReplicaInfo] = []
        for name, generation in self.generations.items():
            model = name.split("-")[0]
            server = f"{name}.g{generation}"
            pin = f"{xxhash.xxh32_intdigest(server.encode()):08x}"
            state = "draining" if name in self.draining else "ready"
            made = ReplicaInfo(server, name, model, model, "127.0.0.1", 8000, state, "mixed", 60_000, 16, 64, pin)
            replicas.append(made if self.random.random() < 0.9 else replace(made, kv_capacity_tokens=0))
        models = tuple(
            ModelInfo(
                model,
                (AdapterInfo(f"{model}-lora"),),
                (PoolInfo(model, "mixed"),),
                policy,
                admission=ADMISSION if model == "chat" else None,
            )
            for model, policy in self.policies.items()
        )
        self.core.install(Topology(self.number, "test", models, tuple(replicas)), self.now_s)

    def change(self) -> None:
        name = self.random.choice(list(self.generations))
        match self.random.randrange(4):
            case 0:
                self.generations[name] += 1
            case 1:
                self.draining ^= {name}
            case 2:
                self.core.cache_cleared(CacheCleared(self.server(name)), self.now_s)
                return
            case 3:
                self.core.reconcile(dict(self.streams), self.now_s)
                return
        self.install()

    def server(self, name: str) -> bytes:
        return f"{name}.g{self.generations[name]}".encode()

    def ask(self) -> None:
        self.asked += 1
        pick = self.random
        model = pick.choice(list(self.policies))
        known = self.conversations[model]
        if known and pick.random() < 0.7:
            turns = pick.choice(known)
        else:
            turns = []
            known.append(turns)
            del known[:-50]
        turns += [pick.randbytes(8) for _ in range(pick.randrange(1, 4))]
        del turns[33:]
        size = len(turns) * 4096 - pick.randrange(4096)
        name = model.encode() if pick.random() < 0.9 else f"{model}-lora".encode()
        request = Request(
            True,
            pick.choice((1, 1, 1, 2, 5)),
            1,
            name,
            b"user=%d" % (id_of(turns) % 97),
            b"",
            b"".join(turns),
            size,
            size,
            pick.choice((0, 16, 900)),
            b"tenant %d" % pick.randrange(3),
            "",
            "",
        )
        match pick.randrange(100):
            case 0:
                request = request._replace(plain=False, pin=b"%08x" % pick.getrandbits(32), model=b"")
            case 1:
                request = request._replace(model=b"no such model \xff\n")
            case 2:
                request = request._replace(plain=False, error="empty_body")
            case 3:
                request = request._replace(plain=False, model=b"", missing="more")
        request_id = b"r%07d" % (self.asked - (self.asked % 500 == 0))  # now and then one is asked again
        decision = self.core.decide(request_id, request, self.now_s, priority=pick.randrange(3))
        self.waiting.pop(request_id, None)
        if decision.outcome == "go":
            self.go(request_id, request, decision.server)
        elif decision.outcome == "wait":
            self.waiting[request_id] = request
            if pick.random() < 0.1:
                self.core.leave(request_id, self.now_s)
                del self.waiting[request_id]

    def go(self, request_id: bytes, request: Request, server: bytes) -> None:
        pick = self.random
        first_s = pick.expovariate(4.0)
        total_s = first_s + pick.expovariate(0.5)
        fate = pick.random()
        if fate < 0.02:
            server = self.server(pick.choice(list(self.generations)))  # redispatched
        if fate > 0.3:
            self.later(first_s, FirstByte(request_id, server))
        prompt = request.prompt_bytes // 4
        if fate > 0.4:
            report = EngineReport(request_id, server, prompt, int(prompt * pick.random()), 50, 0.01, first_s / 2)
            self.later(total_s, report)
        if fate < 0.97:
            self.later(
                total_s, Completion(request_id, server, 200, int(first_s * 1e3), int(total_s * 1e3), 9, b"--", 0)
            )
        if fate > 0.9:
            self.later(first_s, Telemetry(server, 3, 1, pick.random(), 900, 100, 5_000, 0))

    def later(self, after_s: float, *call: object) -> None:
        heappush(self.due, (self.now_s + after_s, len(self.due) + self.asked * 1000, call))

    def hear(self, at_s: float, call: Sequence[object]) -> None:
        match call[0]:
            case FirstByte() as heard:
                self.core.first_byte(heard, at_s)
            case EngineReport() as report:
                self.core.reported(report, at_s)
            case Completion() as completion:
                self.core.finished(completion, at_s)
            case Telemetry() as telemetry:
                self.core.observed(telemetry, at_s)


def id_of(turns: list[bytes]) -> int:
    return int.from_bytes(turns[0], "little")
