"""KV events over ZeroMQ, framed and encoded as vLLM 0.32 does (vllm/distributed/kv_events.py).

One message per engine step that changed the cache: ``[topic, sequence number (8 bytes, big endian), payload]``, the
payload MessagePack of ``[time, [event, ...], data parallel rank]``, each event a map with a ``type``. Who missed some
asks the replay socket with ``["", number]`` and gets each message from that one on that is still held, as
``["", topic, number, payload]``, and one numbered -1 at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import msgspec
import zmq

from dataplane.engines.simulated.block_pool import AllBlocksCleared, BlockEvent, BlockRemoved, BlockStored

#: Messages that wait for a slow subscriber before further ones are dropped (vLLM's hwm).
HIGH_WATER_MARK = 100_000
#: Messages that can be asked for again (vLLM's buffer_steps).
REPLAY_MESSAGES = 10_000

_END = (-1).to_bytes(8, "big", signed=True)
_encode = msgspec.msgpack.Encoder().encode


def binds(endpoint: str) -> bool:
    """Return whether an endpoint is one to bind; any other is connected to, as in vLLM."""
    return "*" in endpoint or "::" in endpoint or endpoint.startswith("ipc://")


class Publisher:
    """A PUB socket, and a ROUTER socket for replays when there is an endpoint for it. Needs a running event loop."""

    def __init__(self, endpoint: str, block_tokens: int, replay_endpoint: str = "", topic: str = "") -> None:
        self._block_tokens = block_tokens
        self._topic = topic.encode()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set_hwm(HIGH_WATER_MARK)
        self._number = 0
        self._held: deque[tuple[bytes, bytes]] = deque(maxlen=REPLAY_MESSAGES)
        self._replay: zmq.Socket[bytes] | None = None
        if binds(endpoint):
            self._socket.bind(endpoint)
        else:
            self._socket.connect(endpoint)
        if replay_endpoint:
            self._replay = self._context.socket(zmq.ROUTER)
            self._replay.set_hwm(HIGH_WATER_MARK)
            self._replay.bind(replay_endpoint)
            asyncio.get_running_loop().add_reader(self._replay.fileno(), self._answer_replays)

    def publish(self, events: list[BlockEvent]) -> None:
        """Send the events of one step; never waits."""
        payload = _encode([time.time(), [self._shape(event) for event in events], 0])
        number = self._number.to_bytes(8, "big")
        self._socket.send_multipart((self._topic, number, payload), flags=zmq.NOBLOCK)
        self._number += 1
        if self._replay is not None:
            self._held.append((number, payload))

    def close(self) -> None:
        """Close without waiting for subscribers."""
        if self._replay is not None:
            asyncio.get_running_loop().remove_reader(self._replay.fileno())
            self._replay.close(linger=0)
        self._socket.close(linger=0)
        self._context.term()

    def _answer_replays(self) -> None:
        """Answer every request that waits: the descriptor tells only once of all that came."""
        assert self._replay is not None
        while int(self._replay.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            frames = self._replay.recv_multipart(flags=zmq.NOBLOCK)
            if len(frames) == 3:
                self._send_from(frames[0], frames[2])

    def _send_from(self, client: bytes, first: bytes) -> None:
        assert self._replay is not None
        for number, payload in self._held:
            if number >= first:
                self._replay.send_multipart((client, b"", self._topic, number, payload), flags=zmq.NOBLOCK)
        self._replay.send_multipart((client, b"", b"", _END, b""), flags=zmq.NOBLOCK)

    def _shape(self, event: BlockEvent) -> dict[str, Any]:
        match event:
            case BlockStored():
                extra = [event.adapter] if event.adapter else []
                if event.salt and event.parent is None:
                    extra.append(event.salt)
                return {
                    "type": "BlockStored",
                    "block_hashes": [event.name],
                    "parent_block_hash": event.parent,
                    "token_ids": event.tokens,
                    "block_size": self._block_tokens,
                    "lora_id": None,
                    "medium": "GPU",
                    "lora_name": event.adapter or None,
                    "extra_keys": [extra or None],
                    "group_idx": 0,
                    "kv_cache_spec_kind": "full_attention",
                }
            case BlockRemoved():
                return {"type": "BlockRemoved", "block_hashes": [event.name], "medium": "GPU", "group_idx": 0}
            case AllBlocksCleared():
                return {"type": "AllBlocksCleared"}
