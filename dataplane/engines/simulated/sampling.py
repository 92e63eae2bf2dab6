"""The fields that chat, completions, responses and messages share, checked as vLLM checks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dataplane.engines.simulated.errors import ApiError, parameter_error
from dataplane.engines.simulated.validation import Body

#: Each choice is a sequence of its own with a copy of the prompt.
MAX_CHOICES = 128
MAX_STOPS = 64
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request wants its answer. ``max_tokens`` None: until the model ends by itself."""

    max_tokens: int | None
    choices: int = 1
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    salt: str = ""
    token_ids: bool = False
    logprobs: int | None = None  # None: none; else how many alternatives per token
    kv_transfer: dict[str, Any] | None = None


def read_sampling(body: Body, max_tokens: int | None, context_tokens: int, max_tokens_name: str) -> Sampling:
    """Return the common fields; the caller has read ``max_tokens`` under its own name. Raises ApiError 400."""
    choices = body.integer("n")
    temperature = body.number("temperature")
    top_p = body.number("top_p")
    stop = body.texts("stop")
    stream = body.flag("stream")
    options = body.mapping("stream_options")
    salt = body.text("cache_salt")
    sampling = Sampling(
        max_tokens=max_tokens,
        choices=1 if choices is None else choices,
        stop=tuple(s for s in stop[:MAX_STOPS] if s),
        include_stop=body.flag("include_stop_str_in_output"),
        stream=stream,
        include_usage=bool(options and options.get("include_usage")),
        continuous_usage=bool(options and options.get("include_usage") and options.get("continuous_usage_stats")),
        salt=salt or "",
        token_ids=body.flag("return_token_ids"),
        logprobs=_logprobs(body),
        kv_transfer=body.mapping("kv_transfer_params"),
    )
    body.check()
    if options and not stream:
        raise parameter_error("Stream options can only be defined when `stream=True`.", "stream_options")
    _check_ranges(sampling, temperature, top_p)
    if max_tokens is not None:
        _check_max_tokens(max_tokens, context_tokens, max_tokens_name)
    return sampling


def _logprobs(body: Body) -> int | None:
    if isinstance(body.value.get("logprobs"), bool):  # chat: a switch and a count
        top = body.integer("top_logprobs")
        return (top or 0) if body.value["logprobs"] else None
    return body.integer("logprobs")


def _check_ranges(sampling: Sampling, temperature: float | None, top_p: float | None) -> None:
    if temperature is not None and temperature < 0:
        raise parameter_error(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if top_p is not None and not 0 < top_p <= 1:
        raise parameter_error(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    if not 1 <= sampling.choices <= MAX_CHOICES:
        if sampling.choices < 1:
            raise ApiError(400, f"n must be at least 1, got {sampling.choices}.")
        raise ApiError(400, f"n must be at most {MAX_CHOICES}, got {sampling.choices}.")
    if sampling.choices > 1 and temperature == 0:
        raise ApiError(400, f"n must be 1 when using greedy sampling, got {sampling.choices}.")
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= MAX_TOP_LOGPROBS:
        raise parameter_error("`top_logprobs` must be within 0 and 20.", "top_logprobs", sampling.logprobs)


def _check_max_tokens(max_tokens: int, context_tokens: int, name: str) -> None:
    if max_tokens < 1:
        raise parameter_error(f"max_tokens must be at least 1, got {max_tokens}.", name, max_tokens)
    if max_tokens > context_tokens:
        message = (
            f"max_tokens={max_tokens} cannot be greater than max_model_len={context_tokens}. "
            "Please request fewer output tokens."
        )
        raise parameter_error(message, name, max_tokens)
