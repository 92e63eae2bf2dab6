"""POST /v1/chat/completions (vLLM: entrypoints/openai/chat_completion)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dataplane.engines.simulated import logprobs, usage
from dataplane.engines.simulated.answer import Answer, Piece
from dataplane.engines.simulated.errors import ApiError
from dataplane.engines.simulated.http import Exchange, encode, quoted
from dataplane.engines.simulated.prompts import render
from dataplane.engines.simulated.replica import FINGERPRINT, Replica
from dataplane.engines.simulated.sampling import Sampling, read_sampling
from dataplane.engines.simulated.streaming import DONE, cancelled_with_client, stream
from dataplane.engines.simulated.validation import Body


async def chat_completions(replica: Replica, exchange: Exchange) -> None:
    """Answer one conversation."""
    body = Body(await exchange.json())
    body.require("messages")
    messages = body.items("messages")
    model_name = body.text("model")
    limit = body.integer("max_completion_tokens")
    max_tokens = body.integer("max_tokens") if limit is None else limit
    sampling = read_sampling(body, max_tokens, replica.settings.context_tokens, "max_tokens")
    model, adapter = replica.model(model_name)
    if not messages:
        raise ApiError(400, "Cannot apply chat template to an empty conversation. Provide at least one message.")
    prompt = render(messages)
    replica.check_prompt(prompt)
    await replica.admit()
    answers = replica.answers([prompt], adapter, sampling)
    call = ChatCall(replica.request_id(exchange, "chatcmpl"), int(time.time()), model, len(prompt), sampling)
    if sampling.stream:
        render_piece = chunk_writer(call, prompt.tolist() if sampling.token_ids else None)
        await stream(exchange, replica, answers, render_piece, lambda: stream_end(call, answers))
    else:
        async with cancelled_with_client(exchange, answers):
            texts = [await answer.all() for answer in answers]
            content = _completion(replica, call, answers, texts, prompt.tolist() if sampling.token_ids else None)
        await exchange.reply(content)


@dataclass(frozen=True, slots=True)
class ChatCall:
    """What every part of one chat answer repeats."""

    id: str
    created: int
    model: str
    prompt_tokens: int
    sampling: Sampling


def _head(call: ChatCall) -> str:
    return (
        f'data: {{"id":{quoted(call.id)},"object":"chat.completion.chunk","created":{call.created},'
        f'"model":{quoted(call.model)},"choices":['
    )


def chunk_writer(call: ChatCall, prompt_ids: list[int] | None) -> Callable[[Answer, Piece], bytes]:
    """Return what turns a piece into events; the roles of all choices come before the first."""
    head = _head(call)
    plain = call.sampling.logprobs is None and not call.sampling.token_ids and not call.sampling.continuous_usage
    heads = [f'{head}{{"index":{i},"delta":{{"content":"'.encode() for i in range(call.sampling.choices)]
    tail = b'"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
    roles = b"".join(_role(call, head, i, prompt_ids) for i in range(call.sampling.choices))
    opened = False

    def write(answer: Answer, piece: Piece) -> bytes:
        if plain and piece.start and not piece.last:
            return heads[answer.index] + piece.text + tail
        nonlocal opened
        opening, opened = (b"" if opened else roles), True
        return opening + _chunk(call, head, answer, piece)

    return write


def _role(call: ChatCall, head: str, index: int, prompt_ids: list[int] | None) -> bytes:
    choice = f'{{"index":{index},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]'
    ids = encode(prompt_ids).decode()
    return f'{head}{choice}{_running_usage(call, 0)},"prompt_token_ids":{ids},"prompt_text":null}}\n\n'.encode()


def _chunk(call: ChatCall, head: str, answer: Answer, piece: Piece) -> bytes:
    ids = encode(answer.tokens(piece.start, piece.end)).decode() if call.sampling.token_ids else "null"
    probs = "null"
    if call.sampling.logprobs is not None:
        probs = encode(logprobs.chat(answer, piece.start, piece.end, call.sampling.logprobs)).decode()
    choice = f'{{"index":{answer.index},"delta":{{"content":"{piece.text.decode()}"}},"logprobs":{probs},'
    if not piece.last:
        return (
            f'{head}{choice}"finish_reason":null,"token_ids":{ids}}}]{_running_usage(call, piece.end)}}}\n\n'.encode()
        )
    stop = encode(answer.outline.stop).decode()
    choice += f'"finish_reason":"{answer.outline.reason}","stop_reason":{stop},"token_ids":{ids}}}]'
    fingerprint = "" if call.sampling.include_usage else f',"system_fingerprint":"{FINGERPRINT}"'
    return f"{head}{choice}{_running_usage(call, piece.end)}{fingerprint}}}\n\n".encode()


def _running_usage(call: ChatCall, completion: int) -> str:
    if not call.sampling.continuous_usage:
        return ""
    counts = {**usage.usage(call.prompt_tokens, completion), "completion_tokens_details": None}
    return ',"usage":' + encode(counts).decode()


def stream_end(call: ChatCall, answers: list[Answer]) -> bytes:
    """Return the usage event, when it was asked for, and the end."""
    if not call.sampling.include_usage:
        return DONE
    completion = sum(answer.seen for answer in answers)
    counts = encode(usage.of_stream(call.prompt_tokens, completion, usage.chat_cache(answers[0]))).decode()
    return f'{_head(call)}],"usage":{counts},"system_fingerprint":"{FINGERPRINT}"}}\n\n'.encode() + DONE


def _completion(
    replica: Replica, call: ChatCall, answers: list[Answer], texts: list[bytes], prompt_ids: list[int] | None
) -> dict[str, Any]:
    completion = sum(answer.seen for answer in answers)
    first = answers[0]
    return {
        "id": call.id,
        "object": "chat.completion",
        "created": call.created,
        "model": call.model,
        "choices": [_choice(call, answer, said) for answer, said in zip(answers, texts, strict=True)],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": usage.of_whole(call.prompt_tokens, completion, usage.chat_cache(first)),
        "prompt_logprobs": None,
        "prompt_token_ids": prompt_ids,
        "prompt_text": None,
        "kv_transfer_params": replica.connector.answer(call.sampling.kv_transfer, call.id, first.ticket.sequence),
        "ec_transfer_params": None,
        "metrics": None,
    }


def _choice(call: ChatCall, answer: Answer, said: bytes) -> dict[str, Any]:
    top = call.sampling.logprobs
    return {
        "index": answer.index,
        "message": {
            "role": "assistant",
            "content": said.decode(),
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        },
        "logprobs": None if top is None else logprobs.chat(answer, 0, answer.seen, top),
        "finish_reason": answer.outline.reason,
        "stop_reason": answer.outline.stop,
        "token_ids": answer.tokens(0, answer.seen) if call.sampling.token_ids else None,
        "routed_experts": None,
    }
