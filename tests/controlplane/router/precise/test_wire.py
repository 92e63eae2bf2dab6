"""KV events as bytes: what vLLM sends, what older releases sent, and what nobody may send."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.router.precise import wire
from controlplane.routing.block_events import Cleared, Removed, Stored, Tier, as_tokens

#: One event of vLLM 0.32, as it was on the wire, shortened to two blocks of two tokens.
STORED = {
    "type": "BlockStored",
    "block_hashes": [16275881227211498577, 2],
    "parent_block_hash": None,
    "token_ids": [1, 2, 3, 4],
    "block_size": 2,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
    "extra_keys": [None, None],
    "group_idx": 0,
    "kv_cache_spec_kind": "full_attention",
}
PLAIN = Stored((16275881227211498577, 2), None, as_tokens([1, 2, 3, 4]), 2, group=0)


def packed(*events: Any, rank: int | None = 0) -> bytes:
    return msgspec.msgpack.encode([1.5, list(events), rank])


def test_maps_of_todays_release() -> None:
    removed = {"type": "BlockRemoved", "block_hashes": [b"\x01" * 32], "medium": "CPU", "group_idx": 1, "new": {}}
    assert wire.events(packed(STORED, removed, {"type": "AllBlocksCleared"})) == [
        PLAIN,
        Removed((b"\x01" * 32,), Tier.HOST, 1),
        Cleared(),
    ]


def test_arrays_of_older_releases() -> None:
    payload = msgspec.msgpack.encode(
        [1.5, [["BlockStored", [7], 6, [1, 2], 2, None], ["BlockRemoved", [7]], ["AllBlocksCleared"]]]
    )
    assert wire.events(payload) == [Stored((7,), 6, as_tokens([1, 2]), 2), Removed((7,)), Cleared()]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lora_name": "lora", "lora_id": 3, "extra_keys": [["lora"], ["lora"]]}, {"adapter": "lora"}),
        ({"lora_id": 3}, {"adapter": "#3"}),
        ({"extra_keys": [["tenant"], None]}, {"salt": "tenant"}),
        ({"lora_name": "l", "extra_keys": [["l", "tenant"], ["l"]]}, {"adapter": "l", "salt": "tenant"}),
        ({"medium": "STORAGE"}, {"tier": Tier.DISK}),
        ({"medium": None}, {"tier": Tier.GPU}),
        ({"kv_cache_spec_kind": "sliding_window"}, {"full_attention": False}),
    ],
)
def test_what_keeps_prompts_apart(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    (event,) = wire.events(packed(STORED | changes))
    assert isinstance(event, Stored)
    assert {name: getattr(event, name) for name in expected} == expected
    assert event.extras == ()


def test_media_make_their_blocks_differ() -> None:
    (event,) = wire.events(packed(STORED | {"extra_keys": [[["picture", 0], "salt"], [["picture", -2]]]}))
    assert isinstance(event, Stored)
    assert event.salt == "salt"
    assert len(set(event.extras)) == 2 and all(event.extras)


def test_a_store_of_an_unknown_kind_is_left_out() -> None:
    assert wire.events(packed(STORED | {"medium": "TAPE"}, STORED)) == [PLAIN]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        packed({"type": "BlockEaten"}),
        packed({"type": "BlockStored"}),
        packed(7),
        packed(STORED | {"token_ids": [-1, 2, 3, 4]}),
        packed(STORED | {"token_ids": [1 << 32]}),
        packed(STORED | {"block_hashes": ["text"]}),
        packed(STORED | {"block_hashes": [b"x" * 65]}),
        packed(STORED | {"block_size": -2}),
        packed(STORED | {"lora_name": "x" * 600}),
        packed(STORED | {"block_hashes": [1] * (wire.MAX_BLOCKS_PER_EVENT + 1)}),
        packed(*[{"type": "AllBlocksCleared"}] * (wire.MAX_EVENTS + 1)),
        b"\x93\xcb" + bytes(8) + b"\x91" * 100_000,
        b"\0" * (wire.MAX_PAYLOAD_BYTES + 1),
    ],
)
def test_what_breaks_a_bound_is_refused_whole(payload: bytes) -> None:
    with pytest.raises(wire.MalformedEvents):
        wire.events(payload)


VALUES = st.recursive(
    st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(max_size=70) | st.text(max_size=9) | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=64) | VALUES.map(msgspec.msgpack.encode))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_anything_else_is_refused_or_read(payload: bytes) -> None:
    try:
        wire.events(payload)
    except wire.MalformedEvents:
        pass


@given(st.dictionaries(st.sampled_from(sorted(STORED)), VALUES, max_size=3))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_any_field_may_be_anything(changes: dict[str, Any]) -> None:
    try:
        wire.events(packed(STORED | changes))
    except wire.MalformedEvents:
        pass
