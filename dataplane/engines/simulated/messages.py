"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API as vLLM serves it."""

from __future__ import annotations

from array import array
from typing import Any

from dataplane.engines.simulated import usage
from dataplane.engines.simulated.answer import Answer, Piece
from dataplane.engines.simulated.http import Exchange, encode
from dataplane.engines.simulated.prompts import content_text, render
from dataplane.engines.simulated.replica import Replica
from dataplane.engines.simulated.sampling import read_sampling
from dataplane.engines.simulated.streaming import cancelled_with_client, stream
from dataplane.engines.simulated.validation import Body

_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"'
_DELTA_END = b'"},"index":0}\n\n'


def _prompt(body: Body) -> array[int]:
    messages = body.items("messages")
    system = body.value.get("system")
    if system is not None:
        messages = [{"role": "system", "content": content_text(system, "body.system")}, *messages]
    return render(messages)


async def messages(replica: Replica, exchange: Exchange) -> None:
    """Answer one conversation."""
    body = Body(await exchange.json())
    body.require("messages")
    body.require("max_tokens")
    model_name, max_tokens = body.text("model"), body.integer("max_tokens")
    stops = body.texts("stop_sequences")
    body.value["stop"] = stops
    sampling = read_sampling(body, max_tokens, replica.settings.context_tokens, "max_tokens")
    model, adapter = replica.model(model_name)
    prompt = _prompt(body)
    replica.check_prompt(prompt)
    await replica.admit()
    answers = replica.answers([prompt], adapter, sampling)
    answer = answers[0]
    message_id = replica.request_id(exchange, "chatcmpl")
    if sampling.stream:
        start = {"id": message_id, "type": "message", "role": "assistant", "content": [], "model": model}

        def write(found: Answer, piece: Piece) -> bytes:
            del found
            opening = b"" if piece.start else _opening(start, len(prompt))
            return opening + _DELTA + piece.text + _DELTA_END

        await stream(exchange, replica, answers, write, lambda: _closing(answer, len(prompt)))
        return
    async with cancelled_with_client(exchange, answers):
        said = (await answer.all()).decode()
        params = replica.connector.answer(sampling.kv_transfer, message_id, answer.ticket.sequence)
    content: dict[str, Any] = {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": said}],
        "model": model,
        **_stop(answer),
        "usage": _usage(answer, len(prompt)),
    }
    await exchange.reply(content if params is None else {**content, "kv_transfer_params": params})


async def count_tokens(replica: Replica, exchange: Exchange) -> None:
    """Count a conversation's tokens."""
    body = Body(await exchange.json())
    body.require("messages")
    model_name = body.text("model")
    body.check()
    replica.model(model_name)
    count = len(_prompt(body))
    await exchange.reply({"input_tokens": count, "context_management": {"original_input_tokens": count}})


def _stop(answer: Answer) -> dict[str, str]:
    if answer.outline.stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": answer.outline.stop}
    return {"stop_reason": "max_tokens" if answer.outline.reason == "length" else "end_turn"}


def _usage(answer: Answer, prompt: int) -> dict[str, int]:
    """Return the counts as Anthropic splits them: read from the cache, written to it, and the rest."""
    cache = usage.chat_cache(answer)
    read, created = cache["cached_tokens"], cache["created_cache_tokens"]
    counts = {"input_tokens": prompt - read - created, "output_tokens": answer.seen}
    return {**counts, "cache_creation_input_tokens": created, "cache_read_input_tokens": read}


def _event(kind: str, content: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), encode({"type": kind, **content}))


def _opening(start: dict[str, Any], prompt: int) -> bytes:
    counts = {"input_tokens": prompt, "output_tokens": 0}
    message = {**start, "stop_reason": None, "stop_sequence": None, "usage": counts}
    block = {"content_block": {"type": "text", "text": ""}, "index": 0}
    return _event("message_start", {"message": message}) + _event("content_block_start", block)


def _closing(answer: Answer, prompt: int) -> bytes:
    counts = _usage(answer, prompt)
    delta = {"delta": {"stop_reason": None, "stop_sequence": None, **_stop(answer)}, "usage": counts}
    return _event("content_block_stop", {"index": 0}) + _event("message_delta", delta) + _event("message_stop", {})
