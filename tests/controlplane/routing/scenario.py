"""Runs scenario text files: input block, ``----``, expected block, empty line.

Set SLIPSTREAM_REWRITE_TESTDATA=1 to write what the code says into the expected blocks; the diff is the review.

``topology N`` installs what the lines below say: ``model NAME [POLICY] [parameter=value ...]``, ``adapter NAME``,
``keys NAME ...``, ``pool NAME ROLE``, ``replica NAME GENERATION STATE [kv=TOKENS]``.
``time SECONDS`` sets the clock.
``request ID [model=] [session=] [pin=] [blocks=a,b,...] [kind=] [state=none|ambiguous] [flags=N]`` decides a record.
``body ID whole|cut`` decides with the body below, for a request that was answered ``more``.
``finish ID SERVER [STATUS] [FIRST_BYTE_MS]`` is a log line; ``streams [SERVER=N ...]`` are HAProxy's counts.
``loads``, ``counters`` and ``receipt ID`` print.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from controlplane.routing.core import RoutingCore
from controlplane.routing.events import CacheCleared, Completion, EngineReport, FirstByte, Telemetry
from controlplane.routing.features import KIND_NUMBERS, Request, from_body, parse, record
from controlplane.routing.fleet import AdapterInfo, ModelInfo, PoolInfo, ReplicaInfo, Topology
from controlplane.routing.load import Decision
from tests.controlplane.routing import worlds

REWRITE = os.environ.get("SLIPSTREAM_REWRITE_TESTDATA") == "1"
STATES = {"seen": 1, "none": 0, "ambiguous": 2}


def check(path: Path) -> None:
    """Run one file. Raises AssertionError when an expected block differs, unless REWRITE."""
    blocks = [block for block in path.read_text().split("\n\n") if block.strip()]
    scenario = Scenario()
    written = []
    for block in blocks:
        said, _, expected = block.strip("\n").partition("\n----\n")
        comments = [line for line in said.splitlines() if line.startswith("#")]
        lines = [line for line in said.splitlines() if not line.startswith("#")]
        if not lines:
            written.append("\n".join(comments))
            continue
        result = scenario.run(lines)
        if not REWRITE:
            assert result == expected.strip("\n"), f"{path.name}: {lines[0]}"
        written.append("\n".join([*comments, *lines, "----", result]))
    if REWRITE:
        path.write_text("\n\n".join(written) + "\n")


class Scenario:
    """One routing core and its clock."""

    def __init__(self) -> None:
        self.core = RoutingCore(receipt_capacity=1000)
        self.now_s = 1000.0
        self.asked: dict[str, Request] = {}

    def run(self, lines: list[str]) -> str:
        results = []
        while lines:
            word, *rest = lines[0].split()
            below = [line.strip() for line in _indented(lines[1:])]
            command: Callable[[list[str], list[str]], str] = getattr(self, f"do_{word}")
            results.append(command(rest, below))
            lines = lines[1 + len(below) :]
        return "\n".join(results)

    def do_time(self, words: list[str], below: list[str]) -> str:
        self.now_s = float(words[0])
        return "ok"

    def do_topology(self, words: list[str], below: list[str]) -> str:
        models: list[ModelInfo] = []
        replicas: list[ReplicaInfo] = []
        for line in below:
            word, *rest = line.split()
            if word == "model":
                policy = [part for part in rest[1:] if "=" not in part]
                settings = {name: float(value) for name, value in _settings(rest[1:]).items()}
                models.append(
                    ModelInfo(
                        rest[0],
                        policy=policy[0] if policy else "",
                        parameters=settings,
                        isolated=bool(settings.pop("isolated", 0.0)),
                    )
                )
            elif word == "adapter":
                models[-1] = _with(models[-1], adapters=(*models[-1].adapters, AdapterInfo(rest[0])))
            elif word == "keys":
                models[-1] = _with(models[-1], session_keys=tuple(rest))
            elif word == "pool":
                models[-1] = _with(models[-1], pools=(*models[-1].pools, PoolInfo(rest[0], rest[1])))
            else:
                pool = models[-1].pools[-1]
                kv = int(_settings(rest).get("kv", "0"))
                replicas.append(
                    worlds.replica(
                        rest[0],
                        int(rest[1]),
                        model=models[-1].name,
                        pool=pool.name,
                        state=rest[2],
                        role=pool.role,
                        kv_capacity_tokens=kv,
                        pin=f"{len(replicas):08x}",
                    )
                )
        self.core.install(Topology(int(words[0]), "test", tuple(models), tuple(replicas)), self.now_s)
        return "ok"

    def do_request(self, words: list[str], below: list[str]) -> str:
        told = _settings(words[1:])
        blocks = [block for block in told.get("blocks", "").split(",") if block]
        made = worlds.request(
            told.get("model", "" if "state" in told else "m"),
            session=told.get("session", ""),
            blocks=blocks,
            pin=told.get("pin", "").encode(),
            kind=KIND_NUMBERS[told.get("kind", "chat")],
            flags=int(told.get("flags", "1")),
        )
        parsed = parse(record(made, STATES[told.get("state", "seen")]), told.get("tenant", "").encode())
        self.asked[words[0]] = parsed
        return _said(self.core.decide(words[0].encode(), parsed, self.now_s))

    def do_body(self, words: list[str], below: list[str]) -> str:
        body = "\n".join(below).encode().decode("unicode_escape").encode("latin-1")
        told = from_body(self.asked[words[0]], body, words[1] == "whole")
        return _said(self.core.decide(words[0].encode(), told, self.now_s))

    def do_finish(self, words: list[str], below: list[str]) -> str:
        status = int(words[2]) if len(words) > 2 else 200
        first = int(words[3]) if len(words) > 3 else 20
        ended = Completion(words[0].encode(), words[1].encode(), status, first, 100, 1000, b"--", 0)
        return "finished" if self.core.finished(ended, self.now_s) else "unknown"

    def do_first_byte(self, words: list[str], below: list[str]) -> str:
        return _heard(self.core.first_byte(FirstByte(words[0].encode(), words[1].encode()), self.now_s))

    def do_report(self, words: list[str], below: list[str]) -> str:
        told = {name: float(value) for name, value in _settings(words[2:]).items()}
        report = EngineReport(
            request_id=words[0].encode(),
            server=words[1].encode(),
            prompt_tokens=int(told.get("prompt", -1)),
            cached_tokens=int(told.get("cached", -1)),
            output_tokens=int(told.get("output", -1)),
            queue_s=told.get("queue_s", -1.0),
            prefill_s=told.get("prefill_s", -1.0),
        )
        return _heard(self.core.reported(report, self.now_s))

    def do_telemetry(self, words: list[str], below: list[str]) -> str:
        told = {name: float(value) for name, value in _settings(words[1:]).items()}
        running, waiting = int(told.get("running", 0)), int(told.get("waiting", 0))
        seen = Telemetry(words[0].encode(), running, waiting, told.get("kv_use", 0.0), 0, 0, 0, 0)
        return _heard(self.core.observed(seen, self.now_s))

    def do_cache_cleared(self, words: list[str], below: list[str]) -> str:
        return _heard(self.core.cache_cleared(CacheCleared(words[0].encode()), self.now_s))

    def do_exact(self, words: list[str], below: list[str]) -> str:
        """Decide with the cached tokens that are known exactly: exact ID server=tokens ... blocks=a,b."""
        told = _settings(words[1:])
        blocks = [block for block in told.pop("blocks", "").split(",") if block]
        held = {server.encode(): int(tokens) for server, tokens in told.items()}
        return _said(self.core.decide(words[0].encode(), worlds.request("m", blocks=blocks), self.now_s, held))

    def do_beliefs(self, words: list[str], below: list[str]) -> str:
        return "\n".join(
            f"{load.server} waiting={load.waiting} queued_tokens={load.queued_tokens} "
            f"context_tokens={load.context_tokens} prefill_tokens_per_s={load.prefill_tokens_per_s:.0f} "
            f"decode_factor={load.decode_factor:.3f} trust={load.trust:.3f} kv_use={load.kv_use:g}"
            for load in self.core.loads(self.now_s)
        )

    def do_streams(self, words: list[str], below: list[str]) -> str:
        self.core.reconcile({server: int(count) for server, count in _settings(words).items()}, self.now_s)
        return self.do_loads([], [])

    def do_loads(self, words: list[str], below: list[str]) -> str:
        return "\n".join(
            f"{load.server} {load.state} in_flight={load.in_flight} first_byte_ms={load.first_byte_ms:g}"
            for load in self.core.loads()
        )

    def do_counters(self, words: list[str], below: list[str]) -> str:
        counted = self.core.counters()
        names = ("decisions", "bodies_asked", "errors", "completions", "unmatched", "orphans", "in_flight", "receipts")
        return " ".join(f"{name}={getattr(counted, name)}" for name in names)

    def do_receipt(self, words: list[str], below: list[str]) -> str:
        receipt = self.core.receipt(words[0].encode())
        if receipt is None:
            return "none"
        lines = [
            f"no. {receipt.number}, {receipt.kind}, model={receipt.model} adapter={receipt.adapter or '-'}: "
            f"{receipt.outcome} {receipt.server or receipt.error_code or '-'} because {receipt.reason}",
            f"policy {receipt.policy or '-'} no. {receipt.policy_number}, topology {receipt.topology_number}, "
            f"eligible {receipt.eligible}, rejected {receipt.rejected}",
        ]
        lines += [
            f"  {place.server} score={place.score:g} "
            + " ".join(f"{s.name}={s.value:g}" + (f"({s.age_ms:g}ms)" if s.age_ms >= 0 else "") for s in place.signals)
            for place in receipt.candidates
        ]
        if receipt.runner_up:
            lines.append(f"runner-up {receipt.runner_up}, margin {receipt.margin:g}")
        if receipt.completion is not None:
            ended = receipt.completion
            lines.append(f"ended on {ended.server or '-'}: {ended.status}, first byte {ended.first_byte_ms} ms")
        return "\n".join(lines)


def _indented(lines: list[str]) -> list[str]:
    kept = []
    for line in lines:
        if not line.startswith("  "):
            break
        kept.append(line)
    return kept


def _settings(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words if "=" in word)


def _with(model: ModelInfo, **changes: object) -> ModelInfo:
    fields = {name: getattr(model, name) for name in ModelInfo.__slots__}
    return ModelInfo(**{**fields, **changes})


def _heard(taken: bool) -> str:
    return "taken" if taken else "ignored"


def _said(decision: Decision) -> str:
    if decision.outcome == "go":
        return f"go {decision.pool_name} {decision.server_name}"
    return f"{decision.outcome} {decision.error}".strip()
