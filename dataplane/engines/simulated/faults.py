"""Fault switches: what a test can make a replica do. Set with POST /simulated/faults, shown by GET."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dataplane.engines.simulated.errors import ApiError

#: An hour: longer than any test, shorter than a forgotten switch.
MAX_DELAY_S = 3_600.0
MAX_COUNT = 1_000_000


@dataclass(frozen=True, slots=True)
class Faults:
    """All switches; the defaults are a healthy replica. ``crash`` ends the process at once, as a signal 9 does."""

    ttft_delay_s: float = 0.0  # seconds before a request reaches the engine
    token_delay_s: float = 0.0  # seconds that every engine step takes longer
    fail_next: int = 0  # requests that get `fail_status` instead of an answer
    fail_status: int = 500
    hang: bool = False  # the engine stops; the server goes on answering /health
    abort_after_tokens: int = 0  # streams are cut, without an end, after so many tokens; 0: never
    unhealthy: bool = False  # /health answers 503
    crash: bool = False


def updated(faults: Faults, given: Any) -> Faults:
    """Return ``faults`` with the given switches changed. Raises ApiError 400 for an unknown or wrong one."""
    known = {field.name: type(field.default) for field in fields(Faults)}
    if not isinstance(given, dict) or not set(given) <= set(known):
        raise ApiError(400, f"the body must be an object with keys of {sorted(known)}")
    for name, value in given.items():
        if known[name] is bool:
            good = isinstance(value, bool)
        elif known[name] is int:
            good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT
        else:
            good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_DELAY_S
        if not good:
            raise ApiError(400, f"{name} may not be {value!r}")
    result = replace(faults, **given)
    if not 400 <= result.fail_status <= 599:
        raise ApiError(400, "fail_status must be within 400..599")
    return result


def shown(faults: Faults) -> dict[str, object]:
    """Return the switches as JSON."""
    return asdict(faults)
