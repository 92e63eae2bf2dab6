"""KV events over ZeroMQ, framed and encoded as vLLM 0.32 does (vllm/distributed/kv_events.py).

One message per engine step that changed the cache: ``[topic, sequence number (8 bytes, big endian), payload]``, the
payload MessagePack of ``[time, [event, ...], data parallel rank]``, each event a map with a ``type``.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
import zmq

from dataplane.engines.simulated.block_pool import AllBlocksCleared, BlockEvent, BlockRemoved, BlockStored

TOPIC = b""
#: Messages that wait for a slow subscriber before further ones are dropped (vLLM's hwm).
HIGH_WATER_MARK = 100_000

_encode = msgspec.msgpack.Encoder().encode


class Publisher:
    """A PUB socket. An endpoint with ``*`` binds, any other connects, as in vLLM."""

    def __init__(self, endpoint: str, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set_hwm(HIGH_WATER_MARK)
        self._number = 0
        if "*" in endpoint:
            self._socket.bind(endpoint)
        else:
            self._socket.connect(endpoint)

    def publish(self, events: list[BlockEvent]) -> None:
        """Send the events of one step; never waits."""
        payload = _encode([time.time(), [self._shape(event) for event in events], 0])
        self._socket.send_multipart((TOPIC, self._number.to_bytes(8, "big"), payload), flags=zmq.NOBLOCK)
        self._number += 1

    def close(self) -> None:
        """Close without waiting for subscribers."""
        self._socket.close(linger=0)
        self._context.term()

    def _shape(self, event: BlockEvent) -> dict[str, Any]:
        match event:
            case BlockStored():
                return {
                    "type": "BlockStored",
                    "block_hashes": [event.name],
                    "parent_block_hash": event.parent,
                    "token_ids": event.tokens,
                    "block_size": self._block_tokens,
                    "lora_id": None,
                    "medium": "GPU",
                    "lora_name": event.adapter or None,
                    "extra_keys": [None],
                    "group_idx": 0,
                    "kv_cache_spec_kind": "full_attention",
                }
            case BlockRemoved():
                return {"type": "BlockRemoved", "block_hashes": [event.name], "medium": "GPU", "group_idx": 0}
            case AllBlocksCleared():
                return {"type": "AllBlocksCleared"}
