"""Token counts in OpenAI's shape, with the cached ones (vLLM with --enable-prompt-tokens-details)."""

from __future__ import annotations


def usage(prompt: int, completion: int) -> dict[str, object]:
    """Return the counts alone, as streams carry them."""
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def with_details(prompt: int, completion: int, cached: int) -> dict[str, object]:
    """Return the counts of a stream's last chunk; the details are there only when tokens were cached."""
    counts = usage(prompt, completion)
    if cached:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return counts


def full(prompt: int, completion: int, cached: int) -> dict[str, object]:
    """Return the counts of an answer that is no stream."""
    details = {"cached_tokens": cached} if cached else None
    return {**usage(prompt, completion), "prompt_tokens_details": details, "completion_tokens_details": None}
