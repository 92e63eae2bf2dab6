"""Variable-length integers, strings and typed values of SPOP (doc/SPOE.txt, 3.1).

Decoders take the bytes and an offset, return the value and the offset behind it, and raise only ProtocolError.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from controlplane.router.spop.errors import ProtocolError, Status

#: Values from here on take more than one byte.
_ONE_BYTE = 240
#: 4 bits in the first byte and 7 in each later one: ten bytes hold any 64-bit value.
_VARINT_BYTES = 10
_U64 = 1 << 64
_TRUE = 0x10


class Kind(IntEnum):
    """Type of a value, the low four bits of its first byte."""

    NULL = 0
    BOOLEAN = 1
    INT32 = 2
    UINT32 = 3
    INT64 = 4
    UINT64 = 5
    IPV4 = 6
    IPV6 = 7
    STRING = 8
    BINARY = 9


_BYTES_OF_ADDRESS = {Kind.IPV4: 4, Kind.IPV6: 16}
_RANGE = {
    Kind.INT32: (-(1 << 31), 1 << 31),
    Kind.UINT32: (0, 1 << 32),
    Kind.INT64: (-(1 << 63), 1 << 63),
    Kind.UINT64: (0, _U64),
}
_SIGNED = (Kind.INT32, Kind.INT64)


@dataclass(frozen=True, slots=True)
class Typed:
    """A value with its type. Addresses, strings and binaries are bytes."""

    kind: Kind
    value: bool | int | bytes | None

    @classmethod
    def string(cls, value: bytes) -> Typed:
        """Return a STRING."""
        return cls(Kind.STRING, value)

    @classmethod
    def uint32(cls, value: int) -> Typed:
        """Return a UINT32."""
        return cls(Kind.UINT32, value)


def truncated() -> ProtocolError:
    """Return the error of a frame that ends inside a value."""
    return ProtocolError(Status.INVALID, "the frame ends inside a value")


def encode_varint(value: int) -> bytes:
    """Return ``value`` (0 <= value < 2**64) in Peers encoding."""
    if not 0 <= value < _U64:
        raise ValueError(f"{value} is not an unsigned 64-bit integer")
    if value < _ONE_BYTE:
        return bytes((value,))
    encoded = bytearray(((value & 15) | _ONE_BYTE,))
    rest = (value - _ONE_BYTE) >> 4
    while rest >= 128:
        encoded.append((rest & 127) | 128)
        rest = (rest - 128) >> 7
    encoded.append(rest)
    return bytes(encoded)


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """Read one unsigned 64-bit integer."""
    if at >= len(data):
        raise truncated()
    value = data[at]
    if value < _ONE_BYTE:
        return value, at + 1
    shift = 4
    for index in range(at + 1, min(at + _VARINT_BYTES, len(data))):
        byte = data[index]
        value += byte << shift
        if byte < 128:
            if value >= _U64:
                break
            return value, index + 1
        shift += 7
    else:
        if at + _VARINT_BYTES > len(data):
            raise truncated()
    raise ProtocolError(Status.INVALID, "an integer is larger than 64 bits")


def encode_string(value: bytes) -> bytes:
    """Return ``value`` with its length in front."""
    return encode_varint(len(value)) + value


def decode_string(data: bytes, at: int) -> tuple[bytes, int]:
    """Read one string."""
    size, at = decode_varint(data, at)
    end = at + size
    if end > len(data):
        raise truncated()
    return data[at:end], end


def encode_typed(typed: Typed) -> bytes:
    """Return type and value. Raises ValueError when the value is not of that type."""
    kind, value = typed.kind, typed.value
    if kind is Kind.NULL and value is None:
        return bytes((kind,))
    if kind is Kind.BOOLEAN and isinstance(value, bool):
        return bytes((kind | (_TRUE if value else 0),))
    if kind in _RANGE and isinstance(value, int) and not isinstance(value, bool):
        first, behind = _RANGE[kind]
        if first <= value < behind:
            return bytes((kind,)) + encode_varint(value % _U64)
    if isinstance(value, bytes):
        if kind in (Kind.STRING, Kind.BINARY):
            return bytes((kind,)) + encode_string(value)
        if _BYTES_OF_ADDRESS.get(kind) == len(value):
            return bytes((kind,)) + value
    raise ValueError(f"{value!r} is not a {kind.name}")


def decode_typed(data: bytes, at: int) -> tuple[Typed, int]:
    """Read one type and value."""
    if at >= len(data):
        raise truncated()
    head = data[at]
    at += 1
    try:
        kind = Kind(head & 15)
    except ValueError:
        raise ProtocolError(Status.INVALID, f"values of type {head & 15} do not exist") from None
    if kind is Kind.NULL:
        return Typed(kind, None), at
    if kind is Kind.BOOLEAN:
        return Typed(kind, bool(head & _TRUE)), at
    if kind in _RANGE:
        return _decode_integer(kind, data, at)
    if kind in _BYTES_OF_ADDRESS:
        end = at + _BYTES_OF_ADDRESS[kind]
        if end > len(data):
            raise truncated()
        return Typed(kind, data[at:end]), end
    text, at = decode_string(data, at)
    return Typed(kind, text), at


def _decode_integer(kind: Kind, data: bytes, at: int) -> tuple[Typed, int]:
    value, at = decode_varint(data, at)
    if kind in _SIGNED and value >= _U64 >> 1:
        value -= _U64  # negative numbers are sign-extended to 64 bits before they are encoded
    first, behind = _RANGE[kind]
    if not first <= value < behind:
        raise ProtocolError(Status.INVALID, f"{value} is not a {kind.name}")
    return Typed(kind, value), at
