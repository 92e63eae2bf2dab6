"""What may be wrong with a simulation that somebody asks for."""

from __future__ import annotations

from typing import ClassVar

from controlplane.errors import InvalidRequest


class InvalidSimulation(InvalidRequest):
    """A simulation that cannot be run as it was put; the message names the option or the part of the spec."""

    code: ClassVar[str] = "invalid_simulation"


class InvalidTrace(InvalidRequest):
    """A trace file that cannot be read; the message names file, line and what was expected there."""

    code: ClassVar[str] = "invalid_trace"
