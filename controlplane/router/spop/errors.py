"""What can be wrong with a SPOP exchange, by the status codes that go over the wire (doc/SPOE.txt, 3.5)."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from controlplane.errors import ControlplaneError


class Status(IntEnum):
    """Status code of a DISCONNECT frame."""

    NORMAL = 0
    IO_ERROR = 1
    TIMEOUT = 2
    TOO_BIG = 3
    INVALID = 4
    NO_VERSION = 5
    NO_FRAME_SIZE = 6
    NO_CAPABILITIES = 7
    BAD_VERSION = 8
    BAD_FRAME_SIZE = 9
    NO_FRAGMENTATION = 10
    INTERLACED = 11
    NO_FRAME_ID = 12
    NO_RESOURCES = 13
    UNKNOWN = 99


class ProtocolError(ControlplaneError):
    """The peer sent what SPOP 2.0 does not allow; ``status`` is the code that the AGENT-DISCONNECT carries."""

    code: ClassVar[str] = "spop_protocol_error"

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
