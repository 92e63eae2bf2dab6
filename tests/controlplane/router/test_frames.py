import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controlplane.router.spop.errors import ProtocolError, Status
from controlplane.router.spop.frames import (
    Ack,
    AgentHello,
    Disconnect,
    Frame,
    HaproxyHello,
    Message,
    Notify,
    Scope,
    SetVar,
    Unknown,
    UnsetVar,
    decode,
    encode,
)
from controlplane.router.spop.values import Kind, Typed
from tests.controlplane.router import recorded
from tests.controlplane.router.test_values import RUNS, TYPED

TEXT = st.binary(max_size=300)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
MESSAGE = st.builds(Message, TEXT, st.lists(st.tuples(TEXT, TYPED), max_size=6).map(tuple))
ACTION = st.one_of(
    st.builds(SetVar, st.sampled_from(Scope), TEXT, TYPED),
    st.builds(UnsetVar, st.sampled_from(Scope), TEXT),
)
FRAME = st.one_of(
    st.builds(HaproxyHello, TEXT, U32, TEXT, st.booleans(), TEXT),
    st.builds(AgentHello, TEXT, U32, TEXT),
    st.builds(Disconnect, U32, TEXT, st.booleans()),
    st.builds(Notify, U64, U64, st.lists(MESSAGE, max_size=8).map(tuple)),
    st.builds(Ack, U64, U64, st.lists(ACTION, max_size=8).map(tuple)),
)


def known(data: bytes) -> HaproxyHello | AgentHello | Disconnect | Notify | Ack:
    frame = decode(data)
    assert not isinstance(frame, Unknown)
    return frame


@RUNS
@given(FRAME)
def test_round_trip(frame: HaproxyHello | AgentHello | Disconnect | Notify | Ack) -> None:
    encoded = encode(frame)
    assert int.from_bytes(encoded[:4], "big") == len(encoded) - 4
    assert decode(encoded[4:]) == frame


@pytest.mark.parametrize("data", recorded.ALL[1:])
def test_recorded_frames_are_encoded_to_the_same_bytes(data: bytes) -> None:
    assert encode(known(data[4:])) == data


def test_recorded_meaning() -> None:
    assert decode(recorded.HEALTHCHECK[4:]) == HaproxyHello(b"2.0", 1_048_572, b"", healthcheck=True)
    full = decode(recorded.FULL[4:])
    assert isinstance(full, Notify)
    assert (full.stream_id, full.frame_id, full.messages[0].name) == (4, 2, b"full")
    assert full.messages[0].arguments[3] == (b"body", Typed(Kind.BINARY, b'{"model":"tiny"}'))


@RUNS
@given(st.binary(max_size=200))
@example(b"\x03\0\0\0\x01\0\0\x05route\xff")
def test_any_bytes_are_a_frame_or_a_protocol_error(data: bytes) -> None:
    check_total(data)


@settings(RUNS, max_examples=300)
@given(
    st.sampled_from(recorded.ALL),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 1 << 16),
)
def test_mutated_recorded_frames(data: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    mutated = bytearray(data[4:])
    for at, byte in changes:
        mutated[at % len(mutated)] = byte
    check_total(bytes(mutated))
    check_total(bytes(mutated[: cut % len(mutated)]))


def check_total(data: bytes) -> None:
    try:
        frame: Frame = decode(data)
    except ProtocolError as error:
        assert error.status in Status
        return
    if not isinstance(frame, Unknown):
        assert decode(encode(frame)[4:]) == frame


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", Status.INVALID),
        (b"\x03\0\0\0\0\0\0", Status.NO_FRAGMENTATION),
        (b"\x00\0\0\0\x01\0\0", Status.NO_FRAGMENTATION),
        (b"\x01\0\0\0\x01\0\0", Status.NO_VERSION),
        (b"\x01\0\0\0\x01\0\0\x12supported-versions\x08\x032.0", Status.NO_FRAME_SIZE),
        (b"\x01\0\0\0\x01\0\0\x12supported-versions\x08\x032.0\x0emax-frame-size\x03\x10", Status.NO_CAPABILITIES),
        (b"\x67\0\0\0\x01\0\0\x01\x03\x05", Status.INVALID),
        (b"\x67\0\0\0\x01\0\0\x01\x02\x01", Status.INVALID),
        (b"\x03\0\0\0\x01\0\0" + b"\x01r\x00" * 9, Status.INVALID),
        (b"\x03\0\0\0\x01\0\0\x01r\xff" + b"\x00\x00" * 255, Status.INVALID),
        (b"\x01\0\0\0\x01\0\0\x01a\x00\x01a\x00", Status.INVALID),
    ],
)
def test_status_of_each_fault(data: bytes, status: Status) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    assert caught.value.status is status


def test_allocation_is_bounded_by_the_frame() -> None:
    arguments = b"\x01r\x20" + b"\x00\x00" * 32
    frames = (
        b"\x03\0\0\0\x01\0\0" + arguments * 8,
        b"\x01\0\0\0\x01\0\0" + b"".join(b"\x01" + bytes((c,)) + b"\x00" for c in range(32)),
        b"\x67\0\0\0\x01\0\0" + b"\x02\x02\x00\x00" * 32,
    )
    for data in frames:
        tracemalloc.start()
        try:
            decode(data)
        except ProtocolError:
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 * max(1024, len(data)), data[:1]
