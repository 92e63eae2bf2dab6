from __future__ import annotations

import http.client
import json
from typing import Any

from benchmarks import local_http
from benchmarks.replica import MODEL, BenchReplica, ReplicaStats


def post(port: int, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def chat(content: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "model": MODEL, **more}


def test_looks_like_an_engine(replica: BenchReplica) -> None:
    for port in replica.ports:
        assert local_http.answers(port, "/health")
        assert local_http.get_json(port, "/v1/models")["data"][0]["id"] == MODEL
    metrics = local_http.get(replica.ports[0], "/metrics")[1].decode()
    assert f'vllm:num_requests_running{{engine="0",model_name="{MODEL}"}} 0' in metrics
    assert local_http.get(replica.ports[0], "/nothing")[0] == 404


def test_stream_is_openai_shaped(replica: BenchReplica) -> None:
    status, body = post(replica.ports[0], "/v1/chat/completions", chat("hi", max_tokens=3, stream=True))
    events = [line.removeprefix(b"data: ") for line in body.split(b"\n") if line]
    assert status == 200
    assert events.pop() == b"[DONE]"
    chunks = [json.loads(event) for event in events]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [d["content"] for d in deltas[1:]] == [" word"] * 3
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, None, "length"]


def test_whole_answer_has_usage(replica: BenchReplica) -> None:
    answer = json.loads(post(replica.ports[0], "/v1/chat/completions", chat("hi", max_tokens=7))[1])
    assert answer["usage"]["completion_tokens"] == 7
    text = json.loads(post(replica.ports[0], "/v1/completions", {"prompt": "hi", "model": MODEL, "max_tokens": 2})[1])
    assert text["object"] == "text_completion"


def test_token_ids_depend_on_the_prompt_alone(replica: BenchReplica) -> None:
    first = json.loads(post(replica.ports[0], "/v1/chat/completions/render", chat("a" * 400 + "tail one"))[1])[
        "token_ids"
    ]
    again = json.loads(post(replica.ports[1], "/v1/chat/completions/render", chat("a" * 400 + "tail one"))[1])[
        "token_ids"
    ]
    other = json.loads(post(replica.ports[1], "/v1/chat/completions/render", chat("a" * 400 + "tail two"))[1])[
        "token_ids"
    ]
    assert first == again != other
    assert first[:100] == other[:100]
    assert json.loads(post(replica.ports[2], "/tokenize", {"prompt": "hello world"})[1])["count"] > 0
    stats = replica.stats()
    assert (stats.renders, stats.tokenizes, stats.requests) == (3, 1, 0)


def test_two_requests_in_one_segment_are_both_answered(replica: BenchReplica) -> None:
    body = json.dumps(chat("hi", max_tokens=1)).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    connection = http.client.HTTPConnection("127.0.0.1", replica.ports[0], timeout=5)
    connection.connect()
    connection.sock.sendall(request * 2)
    got = b""
    while got.count(b"completion_tokens") < 2:
        got += connection.sock.recv(65536)
    connection.close()
    assert replica.stats().completed == 2


def test_stats_of_ports_are_summed_and_subtracted() -> None:
    port = dict.fromkeys(ReplicaStats.__dataclass_fields__, 1)
    stats = ReplicaStats.from_json({"replicas": [port, {**port, "late_max_us": 9, "tokens": 5}]})
    assert (stats.requests, stats.tokens, stats.late_max_us) == (2, 6, 9)
    later = ReplicaStats.from_json({"replicas": [port, {**port, "late_max_us": 9, "tokens": 50}]})
    assert later.since(stats).tokens == 45
    assert later.since(stats).requests == 0
    assert later.since(stats).late_max_us == 9
