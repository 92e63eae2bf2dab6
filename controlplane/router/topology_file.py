"""The last good topology on disk: the router starts and serves from it when no controller answers.

One line, ``slipstream-topology 1 <sha256 of the rest>``, then the serialized message.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from google.protobuf.message import DecodeError

from dataplane.launchers.atomic import write_atomically
from dataplane.pb.topology_pb2 import Topology

FILE_NAME = "topology.pb"
#: 4,096 replicas take about a megabyte.
MAX_TOPOLOGY_BYTES = 16 << 20

_MAGIC = b"slipstream-topology 1 "
_SHA256_HEX_BYTES = 64
_HEAD_BYTES = len(_MAGIC) + _SHA256_HEX_BYTES + 1


class CorruptTopology(Exception):
    """The file is not what was written."""


def encoded(payload: bytes) -> bytes:
    """Return the file's content for a serialized topology."""
    return _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def decoded(content: bytes) -> Topology:
    """Return the topology in a file's content. Raises CorruptTopology."""
    payload = content[_HEAD_BYTES:]
    if len(payload) > MAX_TOPOLOGY_BYTES:
        raise CorruptTopology("it is too large")
    if content != encoded(payload):
        raise CorruptTopology("its checksum is wrong")
    try:
        return Topology.FromString(payload)
    except DecodeError as error:
        raise CorruptTopology("it is not a topology") from error


def read(path: Path) -> Topology | None:
    """Return the topology, or None when there is no file. Raises CorruptTopology and OSError."""
    try:
        with path.open("rb") as file:
            return decoded(file.read(MAX_TOPOLOGY_BYTES + _HEAD_BYTES + 1))
    except FileNotFoundError:
        return None


def write(path: Path, topology: Topology) -> None:
    """Replace the file as a whole, mode 0600. Raises OSError, then the former file is still there."""
    write_atomically(path, encoded(topology.SerializeToString()), durable=True)
