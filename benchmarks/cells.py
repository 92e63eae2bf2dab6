"""What is measured: each cell is one load, on all systems, once in every round."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.load import LoadPlan

#: Body sizes in bytes: a short question, a long document, an agent's context.
BODY_BYTES = {"200 B": 200, "32 KB": 32 << 10, "100 KB": 100 << 10}
REQUEST_CONNECTIONS = 16
SATURATION_CONNECTIONS = 64
#: A quarter of each prompt is new, the rest its session's: prefixes are there to be found.
SESSIONS = 64
STREAMS = 64
STREAM_TOKENS = 100
FIRST_TOKEN_MS = 20.0
GAP_MS = 10.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One load. ``first_token_ms`` and ``gap_ms`` are the replicas' times; CPU cells skip the baseline."""

    name: str
    plan: LoadPlan
    first_token_ms: float = 0.0
    gap_ms: float = 0.0
    skips_direct: bool = False


def request_cell(size: str, model_first: bool) -> Cell:
    """Return the cell that measures CPU per request: answers of one token, not streamed, closed loop."""
    plan = LoadPlan(
        connections=REQUEST_CONNECTIONS,
        duration_ms=1_500,
        warmup_ms=400,
        body_bytes=BODY_BYTES[size],
        model_first=model_first,
        sessions=SESSIONS,
    )
    return Cell(f"{size}, model {'first' if model_first else 'last'}", plan, skips_direct=True)


#: CPU of this one is taken off the streams' to leave the tokens'.
BASE_REQUEST = request_cell("200 B", model_first=False)
REQUESTS = tuple(request_cell(size, first) for size in BODY_BYTES for first in (False, True))
STREAM = Cell(
    f"{STREAMS} streams, {GAP_MS:g} ms gaps",
    LoadPlan(
        connections=STREAMS,
        duration_ms=4_000,
        warmup_ms=1_200,
        stream=True,
        max_tokens=STREAM_TOKENS,
        sessions=SESSIONS,
        ramp_ms=round(FIRST_TOKEN_MS + GAP_MS * (STREAM_TOKENS - 1)),
    ),
    first_token_ms=FIRST_TOKEN_MS,
    gap_ms=GAP_MS,
)
SATURATION = Cell(
    "saturation, 200 B", replace(BASE_REQUEST.plan, connections=SATURATION_CONNECTIONS), skips_direct=True
)

FULL = (*REQUESTS, STREAM, SATURATION)
QUICK = (BASE_REQUEST, request_cell("32 KB", model_first=False), STREAM)
