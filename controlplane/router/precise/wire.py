"""KV events on the wire -> routing.block_events: MessagePack as vLLM writes it (vllm/distributed/kv_events.py).

A payload is ``[time, [event, ...], data parallel rank]``. An event is a map with a ``type``, in releases before 0.12 an
array that begins with it; both are read with the same bounds. What is not known of an event is ignored, so that fields
that later releases add do no harm; a payload that breaks a bound or a type is refused whole.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from controlplane.routing.block_events import (
    BlockEvent,
    Cleared,
    EngineHash,
    Removed,
    Stored,
    Tier,
    as_tokens,
)

#: One engine step's events: a million tokens and their hashes.
MAX_PAYLOAD_BYTES = 16 << 20
MAX_EVENTS = 65_536
MAX_BLOCKS_PER_EVENT = 65_536
MAX_TOKENS_PER_EVENT = 1 << 20
MAX_HASH_BYTES = 64
MAX_NAME_CHARS = 512

#: As engines call their tiers. A medium that is not here is a store that we know nothing about.
TIERS = {None: Tier.GPU, "GPU": Tier.GPU, "CPU": Tier.HOST, "STORAGE": Tier.DISK, "DISK": Tier.DISK}
#: Kinds of cache that keep a prompt from its first block on; None: an engine that has only these.
FULL_ATTENTION = frozenset((None, "full_attention", "mla_attention"))

_Hash: TypeAlias = int | Annotated[bytes, Meta(min_length=1, max_length=MAX_HASH_BYTES)]
_Hashes: TypeAlias = Annotated[list[_Hash], Meta(max_length=MAX_BLOCKS_PER_EVENT)]
_Tokens: TypeAlias = Annotated[list[Annotated[int, Meta(ge=0, lt=1 << 32)]], Meta(max_length=MAX_TOKENS_PER_EVENT)]
_Name: TypeAlias = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]


class MalformedEvents(ValueError):
    """A payload is not what an engine sends."""


class _Stored(Struct, tag="BlockStored", gc=False):
    block_hashes: _Hashes
    parent_block_hash: _Hash | None
    token_ids: _Tokens
    block_size: Annotated[int, Meta(ge=0, lt=1 << 32)]
    lora_id: int | None = None
    medium: _Name | None = None
    lora_name: _Name | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: _Name | None = None


class _Removed(Struct, tag="BlockRemoved", gc=False):
    block_hashes: _Hashes
    medium: _Name | None = None
    group_idx: int | None = None


class _Cleared(Struct, tag="AllBlocksCleared", gc=False):
    pass


class _StoredArray(_Stored, array_like=True, tag="BlockStored"):
    pass


class _RemovedArray(_Removed, array_like=True, tag="BlockRemoved"):
    pass


class _ClearedArray(_Cleared, array_like=True, tag="AllBlocksCleared"):
    pass


class _Batch(Struct, array_like=True, gc=False):
    time_s: float
    events: Annotated[list[msgspec.Raw], Meta(max_length=MAX_EVENTS)]
    data_parallel_rank: int | None = None


_decode_batch = msgspec.msgpack.Decoder(_Batch).decode
_decode_map = msgspec.msgpack.Decoder(_Stored | _Removed | _Cleared).decode
_decode_array = msgspec.msgpack.Decoder(_StoredArray | _RemovedArray | _ClearedArray).decode
_encode = msgspec.msgpack.Encoder(order="deterministic").encode

#: First bytes of a MessagePack array.
_ARRAY_HEADS = frozenset((*range(0x90, 0xA0), 0xDC, 0xDD))


def events(payload: bytes) -> list[BlockEvent]:
    """Return the events of one batch, in order. Raises MalformedEvents; the text holds nothing of the payload."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise MalformedEvents(f"more than {MAX_PAYLOAD_BYTES} bytes")
    try:
        batch = _decode_batch(payload)
        found = [_event(raw) for raw in batch.events]
    except (msgspec.MsgspecError, UnicodeError, RecursionError, TypeError) as error:
        raise MalformedEvents(type(error).__name__) from None
    return [event for event in found if event is not None]


def _event(raw: msgspec.Raw) -> BlockEvent | None:
    """Return None for an event of a tier that is not known."""
    data = memoryview(raw)
    event = _decode_array(raw) if data and data[0] in _ARRAY_HEADS else _decode_map(raw)
    if isinstance(event, _Cleared):
        return Cleared()
    tier = TIERS.get(event.medium)
    if tier is None:
        return None
    hashes: tuple[EngineHash, ...] = tuple(event.block_hashes)
    if isinstance(event, _Removed):
        return Removed(hashes, tier, event.group_idx)
    adapter = event.lora_name or ("" if event.lora_id is None else f"#{event.lora_id}")
    salt, extras = _extras(event, adapter)
    return Stored(
        hashes=hashes,
        parent=event.parent_block_hash,
        tokens=as_tokens(event.token_ids),
        block_tokens=event.block_size,
        tier=tier,
        adapter=adapter,
        salt=salt,
        extras=extras,
        group=event.group_idx,
        full_attention=event.kv_cache_spec_kind in FULL_ATTENTION,
    )


def _extras(event: _Stored, adapter: str) -> tuple[str, tuple[bytes, ...]]:
    """Return the cache salt, and what else makes each block differ.

    An entry lists, in this order, the adapter's name, media, the salt (in a prompt's first block only), embeddings.
    """
    salt = ""
    extras: list[bytes] = []
    for place, entry in enumerate(event.extra_keys or ()):
        left = list(entry or ())
        if adapter and left and left[0] == adapter:
            del left[0]
        if place == 0 and event.parent_block_hash is None:
            for value in left:
                if isinstance(value, str):
                    salt = value
                    left.remove(value)
                    break
        extras.append(_encode(left) if left else b"")
    return salt, tuple(extras) if any(extras) else ()
