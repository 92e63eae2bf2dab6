"""/metrics in Prometheus's text format, with vLLM's names, labels and buckets, true at the moment of the scrape."""

from __future__ import annotations

import json
import resource
import time
from typing import TYPE_CHECKING

from dataplane.engines.simulated.engine import kv_usage
from dataplane.engines.simulated.statistics import Histogram

if TYPE_CHECKING:
    from dataplane.engines.simulated.replica import Replica

Sample = tuple[str, float]  # labels beyond engine and model, value


class Page:
    """Lines of one scrape."""

    def __init__(self, model: str) -> None:
        self._lines: list[str] = []
        self._labels = f'engine="0",model_name={json.dumps(model, ensure_ascii=False)}'

    def add(self, kind: str, name: str, text: str, *samples: Sample) -> None:
        """Write one metric; a counter's name gets ``_total``."""
        full = f"vllm:{name}_total" if kind == "counter" else f"vllm:{name}"
        self._lines += (f"# HELP {full} {text}", f"# TYPE {full} {kind}")
        for labels, value in samples:
            self._lines.append(f"{full}{{{self._labels}{labels and ',' + labels}}} {float(value)}")

    def histogram(self, name: str, text: str, histogram: Histogram) -> None:
        """Write one histogram."""
        full = f"vllm:{name}"
        self._lines += (f"# HELP {full} {text}", f"# TYPE {full} histogram")
        total = 0
        for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
            total += count
            self._lines.append(f'{full}_bucket{{{self._labels},le="{bound}"}} {float(total)}')
        self._lines.append(f"{full}_count{{{self._labels}}} {float(total)}")
        self._lines.append(f"{full}_sum{{{self._labels}}} {histogram.sum}")

    def bare(self, kind: str, name: str, text: str, labels: str, value: float) -> None:
        """Write one metric with its own labels alone."""
        full = f"vllm:{name}"
        self._lines += (f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full}{{{labels}}} {float(value)}")

    def line(self, kind: str, name: str, text: str, value: float) -> None:
        """Write one process metric without labels."""
        self._lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {float(value)}")

    def body(self) -> bytes:
        """Return the page."""
        return ("\n".join(self._lines) + "\n").encode()


def render(replica: Replica) -> bytes:
    """Return the page of a replica."""
    page = Page(replica.settings.model)
    _process(page, replica)
    _gauges(page, replica)
    _adapters(page, replica)
    _counters(page, replica)
    _histograms(page, replica)
    _cache_config(page, replica)
    return page.body()


def _process(page: Page, replica: Replica) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    page.line("gauge", "process_resident_memory_bytes", "Resident memory size in bytes.", _resident_bytes())
    page.line("gauge", "process_start_time_seconds", "Start time of the process since unix epoch.", replica.started_s)
    text = "Total user and system CPU time spent in seconds."
    page.line("counter", "process_cpu_seconds_total", text, used.ru_utime + used.ru_stime)


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize()


def _gauges(page: Page, replica: Replica) -> None:
    engine = replica.pacer.engine
    page.add("gauge", "num_requests_running", "Number of requests in model execution batches.", ("", engine.running))
    waiting, deferred = engine.waiting, engine.transferring
    page.add("gauge", "num_requests_waiting", "Number of requests waiting to be processed.", ("", waiting + deferred))
    page.add(
        "gauge",
        "num_requests_waiting_by_reason",
        "Number of waiting requests by reason.",
        ('reason="capacity"', waiting),
        ('reason="deferred"', deferred),
    )
    sleep = [
        (f'sleep_state="{state}"', float(state == "awake")) for state in ("awake", "weights_offloaded", "discard_all")
    ]
    page.add("gauge", "engine_sleep_state", "Engine sleep state; awake = 1 means engine is awake.", *sleep)
    page.add("gauge", "kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", ("", kv_usage(engine)))


def _adapters(page: Page, replica: Replica) -> None:
    names = replica.settings.adapters
    if not names:
        return
    running, waiting = replica.pacer.engine.adapters()
    shown = (json.dumps(",".join(group), ensure_ascii=False) for group in (running, waiting))
    labels = 'max_lora="{}",running_lora_adapters={},waiting_lora_adapters={}'.format(len(names), *shown)
    page.bare("gauge", "lora_requests_info", "Running stats on lora requests.", labels, time.time())


def _counters(page: Page, replica: Replica) -> None:
    s = replica.pacer.engine.statistics
    page.add("counter", "prefix_cache_queries", "Prefix cache queries, in tokens.", ("", s.prefix_queries))
    page.add("counter", "prefix_cache_hits", "Prefix cache hits, in tokens.", ("", s.prefix_hits))
    page.add(
        "counter", "external_prefix_cache_queries", "Queries from KV connector, in tokens.", ("", s.external_queries)
    )
    page.add("counter", "external_prefix_cache_hits", "Hits from KV connector, in tokens.", ("", s.external_hits))
    page.add("counter", "num_preemptions", "Cumulative number of preemption from the engine.", ("", s.preemptions))
    page.add("counter", "prompt_tokens", "Number of prefill tokens processed.", ("", s.prompt_tokens))
    page.add(
        "counter",
        "prompt_tokens_by_source",
        "Number of prompt tokens by source.",
        ('source="local_compute"', s.computed_tokens),
        ('source="local_cache_hit"', s.local_hits),
        ('source="external_kv_transfer"', s.transferred),
    )
    page.add("counter", "prompt_tokens_cached", "Number of cached prompt tokens.", ("", s.local_hits + s.transferred))
    tiers = {"device": s.prefix_hits, "host": 0, "p2p": s.external_hits, "disk": 0, "external_unspecified": 0}
    samples = [(f'source="{tier}"', float(count)) for tier, count in tiers.items()]
    page.add("counter", "prompt_tokens_cached_by_source", "Prefix-cache hit tokens by cache tier.", *samples)
    page.add("counter", "generation_tokens", "Number of generation tokens processed.", ("", s.generation_tokens))
    finished = [(f'finished_reason="{reason}"', float(count)) for reason, count in s.finish.items()]
    page.add("counter", "request_success", "Count of successfully processed requests.", *finished)


def _histograms(page: Page, replica: Replica) -> None:
    s = replica.pacer.engine.statistics
    for name, text, histogram in (
        ("request_prompt_tokens", "Number of prefill tokens processed.", s.request_prompt),
        ("request_generation_tokens", "Number of generation tokens processed.", s.request_generation),
        ("iteration_tokens_total", "Histogram of number of tokens per engine_step.", s.step_tokens),
        (
            "request_max_num_generation_tokens",
            "Maximum number of requested generation tokens.",
            s.request_max_generation,
        ),
        ("request_params_n", "Histogram of the n request parameter.", s.request_choices),
        ("request_params_max_tokens", "Histogram of the max_tokens request parameter.", s.request_max_tokens),
        ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", s.first_token),
        ("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", s.inter_token),
        ("request_time_per_output_token_seconds", "Time per output token per request.", s.per_output_token),
        ("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", s.end_to_end),
        ("request_queue_time_seconds", "Time spent in WAITING phase for request.", s.queue),
        ("request_inference_time_seconds", "Time spent in RUNNING phase for request.", s.inference),
        ("request_prefill_time_seconds", "Time spent in PREFILL phase for request.", s.prefill),
        ("request_decode_time_seconds", "Time spent in DECODE phase for request.", s.decode),
        ("request_num_preemptions", "Number of times a request was preempted.", s.request_preemptions),
        ("request_prefill_kv_computed_tokens", "New KV tokens computed during prefill.", s.request_computed),
    ):
        page.histogram(name, text, histogram)


def _cache_config(page: Page, replica: Replica) -> None:
    settings = replica.settings
    tokens = settings.kv_blocks * settings.kv_block_tokens
    labels = (
        f'engine="0",block_size="{settings.kv_block_tokens}",enable_prefix_caching="True",'
        f'kv_cache_size_tokens="{tokens}",num_gpu_blocks="{settings.kv_blocks}"'
    )
    page.bare("gauge", "cache_config_info", "Information of the LLMEngine CacheConfig", labels, 1.0)
