"""POST /v1/audio/transcriptions and /translations: a multipart form; the text comes from the sound's length alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import xxhash

from dataplane.engines.simulated.answer import Answer, Piece
from dataplane.engines.simulated.errors import ApiError, validation_error
from dataplane.engines.simulated.http import Exchange, encode
from dataplane.engines.simulated.replica import Replica
from dataplane.engines.simulated.sampling import Sampling
from dataplane.engines.simulated.streaming import DONE, cancelled_with_client, stream
from dataplane.engines.simulated.tokenizer import encode as tokens_of

#: 16-bit mono sound at 16 kHz.
BYTES_PER_SECOND = 32_000
TOKENS_PER_SECOND = 4
MIN_TOKENS = 4
MAX_TOKENS = 400
#: vLLM's VLLM_MAX_AUDIO_CLIP_FILESIZE_MB.
MAX_FILE_BYTES = 25 << 20
MAX_FIELD_BYTES = 64 << 10
MAX_PARTS = 64


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a multipart form, and its file."""

    fields: dict[str, str]
    file: bytes | None


async def transcriptions(replica: Replica, exchange: Exchange) -> None:
    """Write down what is said."""
    await _speech(replica, exchange, "transcription", "trsc")


async def translations(replica: Replica, exchange: Exchange) -> None:
    """Write down in English what is said."""
    await _speech(replica, exchange, "translation", "trsl")


async def _speech(replica: Replica, exchange: Exchange, kind: str, prefix: str) -> None:
    form = parse_form(exchange.header(b"content-type") or "", await exchange.body())
    if form.file is None:
        raise _no_file("<dict>")
    if len(form.file) > MAX_FILE_BYTES:
        raise ApiError(400, "Maximum file size exceeded.")
    model, adapter = replica.model(form.fields.get("model"))
    form_of_answer = form.fields.get("response_format", "json")
    streamed = form.fields.get("stream", "").lower() in ("true", "1")
    if form_of_answer not in ("json", "text", "verbose_json"):
        raise ApiError(400, "Currently only support response_format: `text`, `json` or `verbose_json`")
    seconds = len(form.file) / BYTES_PER_SECOND
    limit = min(MAX_TOKENS, max(MIN_TOKENS, int(seconds * TOKENS_PER_SECOND)))
    sampling = Sampling(max_tokens=limit, stream=streamed)
    # The sound's content is the prompt's identity; its length is what it costs.
    prompt = tokens_of(f"{kind} {xxhash.xxh3_64_hexdigest(form.file)} ".ljust(4 * limit, "."))
    replica.check_prompt(prompt)
    await replica.admit()
    answers = replica.answers([prompt], adapter, sampling)
    if streamed:
        head = {"id": replica.request_id(exchange, prefix), "object": f"{kind}.chunk", "created": int(time.time())}
        await stream(exchange, replica, answers, lambda a, p: _chunk({**head, "model": model}, a, p), lambda: DONE)
        return
    async with cancelled_with_client(exchange, answers):
        text = (await answers[0].all()).decode()
    await exchange.reply(_shown(form_of_answer, kind, form.fields.get("language", "en"), text, seconds))


def _chunk(head: dict[str, Any], answer: Answer, piece: Piece) -> bytes:
    choice: dict[str, Any] = {"delta": {"content": piece.text.decode()}}
    if piece.last:
        choice |= {"finish_reason": answer.outline.reason, "stop_reason": None}
    return b"data: %s\n\n" % encode({**head, "choices": [choice]})


def _shown(form: str, kind: str, language: str, text: str, seconds: float) -> dict[str, Any]:
    if form == "verbose_json":
        return {"duration": seconds, "language": language, "text": text, "segments": None, "words": None}
    if kind == "translation":
        return {"text": text}
    return {"text": text, "usage": {"type": "duration", "seconds": int(seconds + 0.999)}}


def parse_form(content_type: str, body: bytes) -> Form:
    """Return the parts of a multipart/form-data body (RFC 7578). Raises ApiError 400."""
    media, _, parameters = content_type.partition(";")
    boundary = _parameters(parameters).get("boundary", "")
    if media.strip().lower() != "multipart/form-data" or not boundary:
        raise _no_file("None")
    mark = b"--" + boundary.encode("latin-1", "replace")
    parts = (b"\r\n" + body).split(b"\r\n" + mark, MAX_PARTS)
    fields: dict[str, str] = {}
    file: bytes | None = None
    for part in parts[1:]:
        if part.startswith(b"--"):
            return Form(fields, file)
        head, found, value = part.partition(b"\r\n\r\n")
        if not found:
            break
        disposition = _disposition(head)
        name = disposition.get("name", "")
        if name == "file" and "filename" in disposition:
            file = value
        elif len(value) <= MAX_FIELD_BYTES:
            fields[name] = value.decode("utf-8", "replace")
    raise ApiError(400, "There was an error parsing the body", "Bad Request")


def _no_file(shown: str) -> ApiError:
    return validation_error([{"type": "missing", "loc": "body.file", "msg": "Field required", "input": shown}])


def _disposition(head: bytes) -> dict[str, str]:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return _parameters(value.decode("utf-8", "replace").partition(";")[2])
    return {}


def _parameters(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in text.split(";"):
        key, _, value = item.partition("=")
        found[key.strip().lower()] = value.strip().strip('"')
    return found
