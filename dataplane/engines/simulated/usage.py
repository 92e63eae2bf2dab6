"""Token counts in OpenAI's shape, with the cached ones (vLLM with --enable-prompt-tokens-details)."""

from __future__ import annotations

from dataplane.engines.simulated.answer import Answer


def usage(prompt: int, completion: int) -> dict[str, object]:
    """Return the counts alone, as each event of a stream carries them."""
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def chat_cache(answer: Answer) -> dict[str, int]:
    """Return the cache's part in a prompt as chat tells it: found there, and put there."""
    return {"cached_tokens": answer.cached_tokens, "created_cache_tokens": answer.ticket.sequence.created_tokens}


def completion_cache(answers: list[Answer]) -> dict[str, int]:
    """Return the cache's part in all prompts as completions tell it; one answer of each prompt is given."""
    return {"cached_tokens": sum(answer.cached_tokens for answer in answers)}


def of_stream(prompt: int, completion: int, cache: dict[str, int]) -> dict[str, object]:
    """Return the counts of a stream's last event."""
    return {**usage(prompt, completion), "prompt_tokens_details": cache}


def of_whole(prompt: int, completion: int, cache: dict[str, int]) -> dict[str, object]:
    """Return the counts of an answer that is no stream."""
    details = {"created_cache_tokens": None, "multimodal_tokens": None}
    ordered = {"cached_tokens": cache["cached_tokens"], **details, **cache}
    return {**usage(prompt, completion), "prompt_tokens_details": ordered, "completion_tokens_details": None}
