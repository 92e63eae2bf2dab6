import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.router.spop.errors import ProtocolError, Status
from controlplane.router.spop.values import (
    Kind,
    Typed,
    decode_typed,
    decode_varint,
    encode_typed,
    encode_varint,
)

# A busy machine is slow: neither deadlines nor the health check of speed say anything about the code.
RUNS = settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])

TYPED = st.one_of(
    st.just(Typed(Kind.NULL, None)),
    st.builds(Typed, st.just(Kind.BOOLEAN), st.booleans()),
    st.builds(Typed, st.just(Kind.INT32), st.integers(-(1 << 31), (1 << 31) - 1)),
    st.builds(Typed, st.just(Kind.UINT32), st.integers(0, (1 << 32) - 1)),
    st.builds(Typed, st.just(Kind.INT64), st.integers(-(1 << 63), (1 << 63) - 1)),
    st.builds(Typed, st.just(Kind.UINT64), st.integers(0, (1 << 64) - 1)),
    st.builds(Typed, st.just(Kind.IPV4), st.binary(min_size=4, max_size=4)),
    st.builds(Typed, st.just(Kind.IPV6), st.binary(min_size=16, max_size=16)),
    st.builds(Typed, st.sampled_from((Kind.STRING, Kind.BINARY)), st.binary(max_size=3000)),
)


@RUNS
@given(st.one_of(st.integers(0, 5000), st.integers(0, (1 << 64) - 1)), st.binary(max_size=4))
def test_varint_round_trip(value: int, rest: bytes) -> None:
    encoded = encode_varint(value)
    assert decode_varint(encoded + rest, 0) == (value, len(encoded))


@pytest.mark.parametrize(
    ("first", "behind", "size"),
    [(0, 240, 1), (240, 2288, 2), (2288, 264_432, 3), (264_432, 33_818_864, 4), (33_818_864, 4_328_786_160, 5)],
)
def test_varint_sizes_are_those_of_the_specification(first: int, behind: int, size: int) -> None:
    assert len(encode_varint(first)) == len(encode_varint(behind - 1)) == size


@pytest.mark.parametrize("encoded", [b"", b"\xf0", b"\xff\xff", b"\xf0" + b"\x80" * 8])
def test_cut_varint(encoded: bytes) -> None:
    with pytest.raises(ProtocolError, match="ends inside"):
        decode_varint(encoded, 0)


@pytest.mark.parametrize("encoded", [b"\xff" * 10, b"\xff" * 11, b"\xff" * 9 + b"\x7f", b"\xff" * 5000])
def test_varint_past_64_bits(encoded: bytes) -> None:
    with pytest.raises(ProtocolError, match="64 bits") as caught:
        decode_varint(encoded, 0)
    assert caught.value.status is Status.INVALID


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_varint_refuses_what_it_cannot_hold(value: int) -> None:
    with pytest.raises(ValueError, match="unsigned 64-bit"):
        encode_varint(value)


@RUNS
@given(TYPED, st.binary(max_size=4))
def test_typed_round_trip(value: Typed, rest: bytes) -> None:
    encoded = encode_typed(value)
    assert decode_typed(encoded + rest, 0) == (value, len(encoded))


@RUNS
@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_a_protocol_error(data: bytes) -> None:
    try:
        value, end = decode_typed(data, 0)
    except ProtocolError:
        return
    assert 0 < end <= len(data)
    assert decode_typed(encode_typed(value), 0)[0] == value


@pytest.mark.parametrize(
    "wrong",
    [Typed(Kind.STRING, 1), Typed(Kind.UINT32, -1), Typed(Kind.INT32, True), Typed(Kind.IPV4, b"123")],
)
def test_values_of_the_wrong_type_are_not_encoded(wrong: Typed) -> None:
    with pytest.raises(ValueError, match="is not a"):
        encode_typed(wrong)
