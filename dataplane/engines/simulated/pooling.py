"""Embeddings, scores, ranks, pooling, classes: prompts are prefilled; answers are a pure function of the text."""

from __future__ import annotations

import base64
import math
import time
from array import array
from typing import Any

import xxhash

from dataplane.engines.simulated.errors import ApiError, validation_error
from dataplane.engines.simulated.http import ClientGone, Exchange
from dataplane.engines.simulated.prompts import completion_prompts, render
from dataplane.engines.simulated.replica import Replica
from dataplane.engines.simulated.sequence import State
from dataplane.engines.simulated.tokenizer import encode
from dataplane.engines.simulated.validation import Body

DIMENSIONS = 256
MAX_DIMENSIONS = 4_096
#: Prompts in one request, each a sequence of its own.
MAX_INPUTS = 2_048
LABELS = ("LABEL_0", "LABEL_1")


async def embeddings(replica: Replica, exchange: Exchange) -> None:
    """Answer with one vector per input."""
    body = Body(await exchange.json())
    model_name, form = body.text("model"), body.text("encoding_format") or "float"
    dimensions = body.integer("dimensions")
    body.check()
    if dimensions is not None and not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ApiError(400, f"dimensions must be within 1..{MAX_DIMENSIONS}, got {dimensions}.")
    if form not in ("float", "base64"):
        raise ApiError(400, f"encoding_format {form!r} is not supported: use float or base64.")
    prompts = _inputs(body)
    model = await _prefill(replica, exchange, model_name, prompts, body)
    data = []
    for i, prompt in enumerate(prompts):
        vector = _vector(prompt, dimensions or DIMENSIONS)
        shown = base64.b64encode(vector.tobytes()).decode() if form == "base64" else vector.tolist()
        data.append({"index": i, "object": "embedding", "embedding": shown})
    await exchange.reply(_list(replica, exchange, "embd", model, data, prompts))


async def pooling(replica: Replica, exchange: Exchange) -> None:
    """Answer with one vector per token of each input."""
    body = Body(await exchange.json())
    model_name = body.text("model")
    body.check()
    prompts = _inputs(body)
    model = await _prefill(replica, exchange, model_name, prompts, body)
    data = [
        {"index": i, "object": "pooling", "data": [_vector(array("I", (t,)), 8).tolist() for t in prompt]}
        for i, prompt in enumerate(prompts)
    ]
    await exchange.reply(_list(replica, exchange, "pooling", model, data, prompts))


async def classify(replica: Replica, exchange: Exchange) -> None:
    """Answer with the probabilities of two classes per input."""
    body = Body(await exchange.json())
    model_name = body.text("model")
    body.check()
    prompts = _inputs(body)
    model = await _prefill(replica, exchange, model_name, prompts, body)
    data = []
    for i, prompt in enumerate(prompts):
        first = _share(prompt)
        label = LABELS[0] if first >= 0.5 else LABELS[1]
        data.append({"index": i, "label": label, "probs": [first, 1.0 - first], "num_classes": len(LABELS)})
    await exchange.reply(_list(replica, exchange, "classify", model, data, prompts))


async def score(replica: Replica, exchange: Exchange) -> None:
    """Answer with the likeness of two texts, or of one text to each of several."""
    body = Body(await exchange.json())
    model_name = body.text("model")
    body.check()
    pairs = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
    named = next((pair for pair in pairs if pair[0] in body.value and pair[1] in body.value), None)
    if named is None:
        missing = {"type": "missing", "msg": "Field required", "input": "<dict>"}
        raise validation_error([{**missing, "loc": f"body.{name}"} for name in pairs[0]])
    left, right = body.texts(named[0]), body.texts(named[1])
    body.check()
    if not left or not right or (len(left) != len(right) and len(left) != 1):
        raise ApiError(400, "Input lengths must be either 1:1, 1:N or N:N")
    prompts = [_pair(left[i if len(left) > 1 else 0], text) for i, text in enumerate(right)]
    model = await _prefill(replica, exchange, model_name, prompts, body)
    data = [{"index": i, "object": "score", "score": _share(prompt)} for i, prompt in enumerate(prompts)]
    await exchange.reply(_list(replica, exchange, "score", model, data, prompts))


async def rerank(replica: Replica, exchange: Exchange) -> None:
    """Answer with the documents in order of their likeness to the query."""
    body = Body(await exchange.json())
    model_name, query = body.text("model"), body.text("query")
    body.require("query")
    body.require("documents")
    documents = body.texts("documents")
    top = body.integer("top_n") or 0
    body.check()
    prompts = [_pair(query or "", document) for document in documents]
    model = await _prefill(replica, exchange, model_name, prompts, body)
    results: list[dict[str, Any]] = [
        {"index": i, "document": {"text": text, "multi_modal": None}, "relevance_score": _share(prompts[i])}
        for i, text in enumerate(documents)
    ]
    results.sort(key=lambda result: -float(result["relevance_score"]))
    tokens = sum(map(len, prompts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    identity = {"id": replica.request_id(exchange, "rerank"), "model": model, "usage": usage}
    await exchange.reply({**identity, "results": results[:top] if top else results})


def _inputs(body: Body) -> list[array[int]]:
    if "messages" in body.value:
        messages = body.items("messages")
        body.check()
        return [render(messages)]
    value = body.require("input")
    body.check()
    prompts = completion_prompts(value)
    if len(prompts) > MAX_INPUTS:
        raise ApiError(400, f"at most {MAX_INPUTS} inputs, got {len(prompts)}")
    return prompts


def _pair(left: str, right: str) -> array[int]:
    return encode(left) + encode(right)


async def _prefill(
    replica: Replica, exchange: Exchange, model_name: str | None, prompts: list[array[int]], body: Body
) -> str:
    """Run the prompts through the engine; return the model's name. Raises ApiError, ClientGone."""
    if len(prompts) > MAX_INPUTS:
        raise ApiError(400, f"at most {MAX_INPUTS} inputs, got {len(prompts)}")
    model, adapter = replica.model(model_name)
    salt = body.value.get("cache_salt")
    for prompt in prompts:
        replica.check_prompt(prompt)
    await replica.admit()
    tickets = [replica.prefill_only(prompt, adapter, salt if isinstance(salt, str) else "") for prompt in prompts]

    def cancel() -> None:
        for ticket in tickets:
            replica.pacer.abort(ticket)

    exchange.on_gone(cancel)
    try:
        for ticket in tickets:
            await ticket.finished()
    finally:
        exchange.unwatch()
        cancel()
    if any(ticket.sequence.state is State.ABORTED for ticket in tickets):
        raise ClientGone
    return model


def _list(
    replica: Replica, exchange: Exchange, prefix: str, model: str, data: list[Any], prompts: list[array[int]]
) -> dict[str, Any]:
    tokens = sum(map(len, prompts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    details = {"prompt_tokens_details": None, "completion_tokens_details": None}
    identity = {"id": replica.request_id(exchange, prefix), "object": "list", "created": int(time.time())}
    return {**identity, "model": model, "data": data, "usage": {**usage, **details}}


def _vector(tokens: array[int], dimensions: int) -> array[float]:
    """Return a unit vector of 32-bit floats that depends on the tokens alone."""
    seed = xxhash.xxh3_64_intdigest(tokens.tobytes())
    values = []
    for i in range(dimensions):
        word = xxhash.xxh3_64_intdigest(i.to_bytes(4, "little"), seed=seed)
        values.append((word >> 11) / (1 << 52) - 1.0)
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return array("f", (value / length for value in values))


def _share(tokens: array[int]) -> float:
    """Return a number within 0..1 that depends on the tokens alone."""
    return (xxhash.xxh3_64_intdigest(tokens.tobytes()) >> 11) / (1 << 53)
