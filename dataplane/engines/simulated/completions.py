"""POST /v1/completions (vLLM: entrypoints/openai/completion)."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dataplane.engines.simulated import logprobs, usage
from dataplane.engines.simulated.answer import Answer, Piece
from dataplane.engines.simulated.errors import ApiError, parameter_error
from dataplane.engines.simulated.http import Exchange, encode, quoted
from dataplane.engines.simulated.prompts import completion_prompts
from dataplane.engines.simulated.replica import FINGERPRINT, Replica
from dataplane.engines.simulated.sampling import Sampling, read_sampling
from dataplane.engines.simulated.streaming import DONE, cancelled_with_client, stream
from dataplane.engines.simulated.tokenizer import decode
from dataplane.engines.simulated.validation import Body

#: OpenAI's default, and vLLM's.
DEFAULT_MAX_TOKENS = 16
#: Prompts in one request, each a sequence of its own.
MAX_PROMPTS = 1_024


@dataclass(frozen=True, slots=True)
class Call:
    """What every part of one answer repeats."""

    id: str
    created: int
    model: str
    prompts: list[array[int]]
    echo: bool
    sampling: Sampling

    def prompt(self, answer: Answer) -> array[int]:
        """Return the prompt of a choice."""
        return self.prompts[answer.index // self.sampling.choices]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(prompt) for prompt in self.prompts)


async def completions(replica: Replica, exchange: Exchange) -> None:
    """Answer one or more prompts."""
    body = Body(await exchange.json())
    model_name = body.text("model")
    max_tokens = body.integer("max_tokens")
    echo = body.flag("echo")
    limit = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
    sampling = read_sampling(body, limit, replica.settings.context_tokens, "max_tokens")
    prompt = body.value.get("prompt")
    if prompt is None or prompt == "":
        raise parameter_error("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    prompts = completion_prompts(prompt)
    if len(prompts) > MAX_PROMPTS:
        raise ApiError(400, f"at most {MAX_PROMPTS} prompts, got {len(prompts)}")
    model, adapter = replica.model(model_name)
    for tokens in prompts:
        replica.check_prompt(tokens)
    await replica.admit()
    answers = replica.answers(prompts, adapter, sampling)
    call = Call(replica.request_id(exchange, "cmpl"), int(time.time()), model, prompts, echo, sampling)
    if sampling.stream:
        await stream(exchange, replica, answers, _chunk_writer(call, len(answers)), lambda: _stream_end(call, answers))
    else:
        async with cancelled_with_client(exchange, answers):
            texts = [await answer.all() for answer in answers]
        await exchange.reply(_completion(replica, call, answers, texts))


def _head(call: Call) -> str:
    return (
        f'data: {{"id":{quoted(call.id)},"object":"text_completion","created":{call.created},'
        f'"model":{quoted(call.model)},"choices":['
    )


def _chunk_writer(call: Call, choices: int) -> Callable[[Answer, Piece], bytes]:
    head = _head(call)
    sampling = call.sampling
    plain = sampling.logprobs is None and not sampling.token_ids and not sampling.continuous_usage and not call.echo
    heads = [f'{head}{{"index":{i},"text":"'.encode() for i in range(choices)]
    tail = b'","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}\n\n'

    def write(answer: Answer, piece: Piece) -> bytes:
        if plain and not piece.last:
            return heads[answer.index] + piece.text + tail
        return _chunk(call, head, answer, piece)

    return write


def _chunk(call: Call, head: str, answer: Answer, piece: Piece) -> bytes:
    sampling = call.sampling
    said = piece.text.decode()
    if call.echo and not piece.start:
        said = decode(call.prompt(answer)) + said
    first_ids = call.prompt(answer).tolist() if sampling.token_ids and not piece.start else None
    choice = {
        "index": answer.index,
        "text": said,
        "logprobs": _logprobs(call, answer, piece.start, piece.end),
        "finish_reason": answer.outline.reason if piece.last else None,
        "stop_reason": answer.outline.stop if piece.last else None,
        "prompt_token_ids": first_ids,
        "token_ids": answer.tokens(piece.start, piece.end) if sampling.token_ids else None,
    }
    event = head + encode(choice).decode() + "]"
    if sampling.continuous_usage:
        event += ',"usage":' + encode(usage.usage(len(call.prompt(answer)), piece.end)).decode()
    if piece.last and not sampling.include_usage:
        event += f',"system_fingerprint":"{FINGERPRINT}"'
    return f"{event}}}\n\n".encode()


def _logprobs(call: Call, answer: Answer, start: int, end: int) -> dict[str, Any] | None:
    top = call.sampling.logprobs
    if top is None:
        return None
    offset = len(decode(call.prompt(answer))) if call.echo else 0
    return logprobs.completion(answer, start, end, top, offset + 4 * start)


def _stream_end(call: Call, answers: list[Answer]) -> bytes:
    if not call.sampling.include_usage:
        return DONE
    cache = usage.completion_cache(answers[:: call.sampling.choices])
    counts = usage.of_stream(call.prompt_tokens, sum(answer.seen for answer in answers), cache)
    event = f'{_head(call)}],"usage":{encode(counts).decode()},"system_fingerprint":"{FINGERPRINT}"}}\n\n'
    return event.encode() + DONE


def _completion(replica: Replica, call: Call, answers: list[Answer], texts: list[bytes]) -> dict[str, Any]:
    cache = usage.completion_cache(answers[:: call.sampling.choices])
    return {
        "id": call.id,
        "object": "text_completion",
        "created": call.created,
        "model": call.model,
        "choices": [_choice(call, answer, said) for answer, said in zip(answers, texts, strict=True)],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": usage.of_whole(call.prompt_tokens, sum(answer.seen for answer in answers), cache),
        "kv_transfer_params": replica.connector.answer(call.sampling.kv_transfer, call.id, answers[0].ticket.sequence),
        "ec_transfer_params": None,
        "metrics": None,
    }


def _choice(call: Call, answer: Answer, said: bytes) -> dict[str, Any]:
    ids = call.sampling.token_ids
    return {
        "index": answer.index,
        "text": (decode(call.prompt(answer)) if call.echo else "") + said.decode(),
        "logprobs": _logprobs(call, answer, 0, answer.seen),
        "finish_reason": answer.outline.reason,
        "stop_reason": answer.outline.stop,
        "token_ids": answer.tokens(0, answer.seen) if ids else None,
        "prompt_logprobs": None,
        "prompt_token_ids": call.prompt(answer).tolist() if ids else None,
        "routed_experts": None,
    }
