"""KV events on the wire, and KV transfer between two replicas."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import zmq

from tests.dataplane.engines.replicas import replica
from tests.ports import lease

DEADLINE_S = 10.0


def _ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 2, "temperature": 0, **more}


class Subscriber:
    """Binds; the replica's endpoint has no ``*`` and connects."""

    def __init__(self, port: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.bind(f"tcp://127.0.0.1:{port}")
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")

    def next(self, kind: str) -> tuple[int, list[dict[str, Any]]]:
        """Return the number and events of the next message that has an event of a kind."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            if self._socket.poll(100):
                topic, number, payload = self._socket.recv_multipart()
                assert topic == b""
                _, events, rank = msgspec.msgpack.decode(payload)
                assert rank == 0
                if any(event["type"] == kind for event in events):
                    return int.from_bytes(number, "big"), events
        raise AssertionError(f"no {kind}")

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


def test_events() -> None:
    port = lease()[0]
    subscriber = Subscriber(port)
    with replica(kv_events_endpoint=f"tcp://127.0.0.1:{port}", kv_capacity_tokens=256) as running:
        end = time.monotonic() + DEADLINE_S
        while not subscriber._socket.poll(50):  # until the subscription has reached the publisher
            assert time.monotonic() < end
            running.post("/v1/chat/completions", _ask(f"{time.monotonic()} " * 8))
        number, events = subscriber.next("BlockStored")
        stored = next(event for event in events if event["type"] == "BlockStored")
        assert (stored["block_size"], len(stored["token_ids"]), stored["medium"]) == (16, 16, "GPU")
        assert set(stored) >= {"block_hashes", "parent_block_hash", "lora_id", "lora_name", "extra_keys", "group_idx"}
        for i in range(8):
            running.post("/v1/chat/completions", _ask(f"{i} " * 100, model="tiny-lora"))
        later, events = subscriber.next("BlockRemoved")
        assert later > number
        assert running.post("/reset_prefix_cache", {}).json() == {"success": True}
        subscriber.next("AllBlocksCleared")
    subscriber.close()


def test_the_same_prompt_has_the_same_hashes_everywhere() -> None:
    hashes = []
    for _ in range(2):
        port = lease()[0]
        subscriber = Subscriber(port)
        with replica(kv_events_endpoint=f"tcp://127.0.0.1:{port}") as running:
            end = time.monotonic() + DEADLINE_S
            while not subscriber._socket.poll(50):
                assert time.monotonic() < end
                running.post("/reset_prefix_cache", {})
                running.post("/v1/chat/completions", _ask("same " * 40))
            _, events = subscriber.next("BlockStored")
            hashes.append([event["block_hashes"] for event in events if event["type"] == "BlockStored"])
        subscriber.close()
    assert hashes[0] == hashes[1]


def test_prefill_here_decode_there() -> None:
    with replica(kv_transfer_us_per_token=10) as prefill, replica() as decode:
        ask = _ask("words and words " * 40)
        whole = prefill.post("/v1/chat/completions", ask).json()
        asked = {**ask, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}}
        params = prefill.post("/v1/chat/completions", asked).json()["kv_transfer_params"]
        tokens = params["remote_num_tokens"]
        assert params["do_remote_prefill"] is True and len(params["remote_block_ids"][0]) == -(-tokens // 16)
        answer = decode.post("/v1/chat/completions", {**ask, "kv_transfer_params": params}).json()
        assert answer["choices"][0]["message"] == whole["choices"][0]["message"]
        assert decode.metric("vllm:prompt_tokens_by_source_total", "external_kv_transfer") == tokens
        assert decode.metric("vllm:prompt_tokens_by_source_total", "local_compute") == 0
        local = decode.post("/v1/chat/completions", _ask("x", kv_transfer_params={"do_remote_prefill": True}))
        assert local.status_code == 200
        assert decode.metric("vllm:prompt_tokens_by_source_total", "local_compute") > 0


def test_requests_wait_for_room() -> None:
    with replica(kv_capacity_tokens=1024, max_model_tokens=1024, step_base_ms=5) as running:
        long = _ask("y" * 2400, max_tokens=300, stream=True)
        with running.client.stream("POST", "/v1/chat/completions", json=long) as first:
            chunks = first.iter_bytes()
            next(chunks)
            other = _ask("z" * 2400, max_tokens=300, stream=True, cache_salt="other")
            with running.client.stream("POST", "/v1/chat/completions", json=other, timeout=20) as second:
                assert running.metric("vllm:request_success_total", 'finished_reason="length"') == 1
                assert b"".join(second.iter_bytes()).endswith(b"data: [DONE]\n\n")
            assert b"".join(chunks).endswith(b"data: [DONE]\n\n")
