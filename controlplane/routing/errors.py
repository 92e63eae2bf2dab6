"""The routing core's own errors."""

from __future__ import annotations

from typing import ClassVar

from controlplane.errors import InvalidRequest


class MalformedFeatures(InvalidRequest):
    """A feature record is not what docs/contracts.md says."""

    code: ClassVar[str] = "malformed_features"


class UnknownPolicy(InvalidRequest):
    """A model names a policy or a parameter that does not exist, or a value out of its range."""

    code: ClassVar[str] = "unknown_policy"
