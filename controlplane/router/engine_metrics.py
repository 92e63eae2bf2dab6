"""The few figures that are read off a vLLM engine's ``/metrics`` page. Sans-I/O.

vLLM refreshes its gauges only with its steps: an engine that hangs shows what it last did, an engine that has nothing
to do shows nothing. So what counts is when a figure last changed, and gauges never overrule the router's own counts.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from dataplane.engines.probe import kv_sizes

_STARTED = b"process_start_time_seconds"
_NAMES = (
    b"vllm:num_requests_running",
    b"vllm:num_requests_waiting",
    b"vllm:kv_cache_usage_perc",
    b"vllm:prefix_cache_queries_total",
    b"vllm:prefix_cache_hits_total",
    b"vllm:generation_tokens_total",
    b"vllm:num_preemptions_total",
    b"vllm:time_to_first_token_seconds_count",
    b"vllm:time_to_first_token_seconds_sum",
    _STARTED,
)
_SIZES = b"\nvllm:cache_config_info{"
_NUMBER = re.compile(rb"[-+0-9.eE]{1,32}")
#: Engines of one page that are summed up.
_MAX_ENGINES = 4_096
#: Requests or tokens beyond which a figure is not believed.
_MAX_TOTAL = float(1 << 53)


class BadMetrics(ValueError):
    """A page that no vLLM engine makes."""


class Page(NamedTuple):
    """One reading; sums over the page's engines, ``kv_use`` their mean (0 to 1). Counts since the engine's start.

    ``started_s`` is the process's start in seconds since 1970, ``kv_capacity_tokens`` what fits into an engine's KV
    cache; 0 when it is not told.
    """

    running: int
    waiting: int
    kv_use: float
    prefix_queries: int
    prefix_hits: int
    generated: int
    preemptions: int
    first_tokens: int
    first_tokens_s: float
    started_s: float
    kv_capacity_tokens: int


def parse(page: bytes) -> Page:
    """Read a page. Raises BadMetrics when it has none of vLLM's figures, or an impossible one."""
    page = b"\n" + page
    values = {name: _values(page, name) for name in _NAMES}
    running, waiting, kv_use, queries, hits, generated, preemptions, count, seconds, started = values.values()
    if not running:
        raise BadMetrics("the page has none of vLLM's figures")
    return Page(
        running=int(sum(running)),
        waiting=int(sum(waiting)),
        kv_use=min(1.0, sum(kv_use) / max(1, len(kv_use))),
        prefix_queries=int(sum(queries)),
        prefix_hits=int(sum(hits)),
        generated=int(sum(generated)),
        preemptions=int(sum(preemptions)),
        first_tokens=int(sum(count)),
        first_tokens_s=sum(seconds),
        started_s=sum(started),
        kv_capacity_tokens=_capacity(page),
    )


def _capacity(page: bytes) -> int:
    at = page.find(_SIZES) + 1
    if not at:
        return 0
    end = page.find(b"\n", at)
    line = page[at : end if end >= 0 else len(page)]
    return min(kv_sizes(line.decode("utf-8", "replace"))[0], int(_MAX_TOTAL))


def _values(page: bytes, name: bytes) -> list[float]:
    """Return the values of one name, whatever their labels. Looked up by ``find``: a page has a thousand lines."""
    found: list[float] = []
    line = b"\n" + name
    at = page.find(line)
    while at >= 0:
        end = page.find(b"\n", at + 1)
        text = page[at + len(line) : end if end >= 0 else len(page)]
        if text[:1] in (b"{", b" "):
            found.append(_value(name, text.rpartition(b" ")[2]))
            if len(found) > _MAX_ENGINES:
                raise BadMetrics(f"{name.decode()} is there too often")
        at = page.find(line, at + len(line))
    return found


def _value(name: bytes, text: bytes) -> float:
    try:
        value = float(text) if _NUMBER.fullmatch(text) else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MAX_TOTAL:
        raise BadMetrics(f"{name.decode()} is out of range")
    return value


def began_again(before: Page, now: Page) -> bool:
    """Return whether another process answers than before: its start or one of its counters went elsewhere."""
    if before.started_s and now.started_s and abs(now.started_s - before.started_s) > 1.0:
        return True
    return (
        now.prefix_queries < before.prefix_queries
        or now.generated < before.generated
        or now.first_tokens < before.first_tokens
        or now.preemptions < before.preemptions
    )
