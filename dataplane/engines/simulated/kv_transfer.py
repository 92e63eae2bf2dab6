"""``kv_transfer_params`` in the shape of vLLM's NixlConnector; no bytes move, only time passes.

A prefill replica answers ``do_remote_decode`` with what the decode replica needs; a decode replica that gets it takes
the prompt's KV as transferred. Blocks are not pinned for the peer: they stay cached as any other.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

from dataplane.engines.simulated.sequence import Sequence

#: vLLM's own default (VLLM_NIXL_SIDE_CHANNEL_PORT).
SIDE_CHANNEL_PORT = 5_600
_NEEDED = ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")


class Connector:
    """One replica's end of the transfers."""

    def __init__(self, host: str, block_tokens: int) -> None:
        self.engine_id = str(uuid.uuid4())
        self._host = os.environ.get("VLLM_NIXL_SIDE_CHANNEL_HOST", host)
        self._port = int(os.environ.get("VLLM_NIXL_SIDE_CHANNEL_PORT", SIDE_CHANNEL_PORT))
        self._block_tokens = block_tokens

    def is_remote_prefill(self, params: dict[str, Any] | None) -> bool:
        """Return whether a peer has the prompt's KV; without all of its coordinates vLLM prefills itself."""
        return bool(params and params.get("do_remote_prefill") and all(params.get(name) for name in _NEEDED))

    def answer(self, params: dict[str, Any] | None, request_id: str, sequence: Sequence) -> dict[str, Any] | None:
        """Return what the decode replica needs, None when it was not asked for."""
        if not params or not params.get("do_remote_decode"):
            return None
        tokens = len(sequence.prompt.tokens)
        blocks = -(-tokens // self._block_tokens)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(1, blocks + 1))],
            "remote_engine_id": self.engine_id,
            "remote_request_id": f"{request_id}-0-{sequence.key:08x}",
            "remote_host": self._host,
            "remote_port": self._port,
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": tokens,
            "remote_blocks_expiry_time": None,
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": sequence.cached_tokens,
        }
