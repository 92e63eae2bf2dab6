"""POST /v1/responses, GET /v1/responses/{id}, POST /v1/responses/{id}/cancel. The store is always on."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any
from urllib.parse import parse_qs

from dataplane.engines.simulated.answer import Aborted
from dataplane.engines.simulated.errors import ApiError, parameter_error, response_not_found
from dataplane.engines.simulated.http import Exchange
from dataplane.engines.simulated.prompts import render
from dataplane.engines.simulated.replica import MAX_REQUEST_ID_CHARS, Replica
from dataplane.engines.simulated.response_shapes import Events, ResponseState
from dataplane.engines.simulated.response_store import Kept
from dataplane.engines.simulated.sampling import read_sampling
from dataplane.engines.simulated.streaming import cancelled_with_client, cut_after
from dataplane.engines.simulated.validation import Body

PREFIX = "/v1/responses/"
CANCEL = "/cancel"


async def create_response(replica: Replica, exchange: Exchange) -> None:
    """Answer, or start to answer in the background."""
    body = Body(await exchange.json())
    body.require("input")
    model_name = body.text("model")
    max_tokens = body.integer("max_output_tokens")
    background, store = body.flag("background"), body.flag("store", default=True)
    given_id = body.text("request_id")
    sampling = read_sampling(body, max_tokens, replica.settings.context_tokens, "max_output_tokens")
    if background and not store:
        raise parameter_error("background can only be used when `store` is true", "background")
    model, adapter = replica.model(model_name)
    messages = _conversation(replica, body.value)
    prompt = render(messages)
    replica.check_prompt(prompt)
    await replica.admit()
    answer = replica.answers([prompt], adapter, sampling)[0]
    limit = sampling.max_tokens or replica.settings.context_tokens - len(prompt)
    response_id = given_id[:MAX_REQUEST_ID_CHARS] if given_id else f"resp_{secrets.token_hex(8)}"
    state = ResponseState(response_id, body.value, model, limit, "queued" if background else "in_progress")
    state.input_tokens = len(prompt)
    kept = Kept(state, messages, answer)
    if store:
        replica.responses.put(kept)
    if background:
        await _in_background(exchange, kept, sampling.stream)
    elif sampling.stream:
        await _stream(replica, exchange, kept)
    else:
        async with cancelled_with_client(exchange, [answer]):
            await _finish(kept)
            params = replica.connector.answer(sampling.kv_transfer, response_id, answer.ticket.sequence)
            state.kv_transfer_params = params
        await exchange.reply(state.shown())


def _conversation(replica: Replica, request: dict[str, Any]) -> list[Any]:
    """Return the messages: instructions, what came before, and the input."""
    messages: list[Any] = []
    if isinstance(request.get("instructions"), str):
        messages.append({"role": "system", "content": request["instructions"]})
    previous = request.get("previous_response_id")
    if previous is not None:
        kept = replica.responses.get(previous) if isinstance(previous, str) else None
        if kept is None:
            raise response_not_found(str(previous))
        messages += [m for m in kept.messages if m.get("role") != "system"]
        messages.append({"role": "assistant", "content": kept.state.text or ""})
    given = request["input"]
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list):
        body = Body(request)
        body.texts("input")
        body.check()
    return messages + [_item(item) for item in given]


def _item(item: Any) -> Any:
    """Return an input item as a message; calls and their outputs keep their text."""
    if not isinstance(item, dict) or "role" in item:
        return item
    text = item.get("output") or item.get("arguments") or ""
    return {"role": str(item.get("type", "item")), "content": text if isinstance(text, str | list) else str(text)}


def _end(kept: Kept, text: str) -> None:
    state, answer = kept.state, kept.answer
    state.text, state.reason = text, answer.outline.reason
    state.output_tokens, state.cached_tokens = answer.seen, answer.cached_tokens
    if state.status != "cancelled":
        state.status = "incomplete" if state.reason == "length" else "completed"


async def _finish(kept: Kept) -> None:
    _end(kept, (await kept.answer.all()).decode())


async def _stream(replica: Replica, exchange: Exchange, kept: Kept) -> None:
    answer = kept.answer
    events = Events(kept.state)
    said: list[bytes] = []
    async with cancelled_with_client(exchange, [answer]):
        await exchange.start_stream()
        await exchange.chunk(events.opening())
        last = False
        while not last:
            piece = await answer.next()
            opening = b"" if said else events.item_opening()
            said.append(piece.text)
            await exchange.chunk(opening + events.delta(piece.text))
            last = piece.last
            if not last:
                cut_after(replica, piece.end)
        _end(kept, b"".join(said).decode())
        await exchange.chunk(events.closing())
    await exchange.chunk(b"", more=False)


async def _in_background(exchange: Exchange, kept: Kept, streamed: bool) -> None:
    run = _collect(kept) if streamed else _complete(kept)
    kept.task = asyncio.get_running_loop().create_task(run)
    if streamed:
        await _follow(exchange, kept, 0)
    else:
        await exchange.reply(kept.state.shown())


async def _complete(kept: Kept) -> None:
    try:
        await _finish(kept)
    except Aborted:
        _failed(kept)


def _failed(kept: Kept) -> None:
    if kept.state.status != "cancelled":
        kept.state.status = "failed"


async def _collect(kept: Kept) -> None:
    events = Events(kept.state)
    said: list[bytes] = []
    kept.add(events.opening())
    try:
        last = False
        while not last:
            piece = await kept.answer.next()
            kept.add((b"" if said else events.item_opening()) + events.delta(piece.text))
            said.append(piece.text)
            last = piece.last
        _end(kept, b"".join(said).decode())
        kept.add(events.closing())
    except Aborted:
        _failed(kept)
    finally:
        kept.complete = True
        kept.add(b"")


async def _follow(exchange: Exchange, kept: Kept, start: int) -> None:
    """Stream the events of a background response from event number ``start`` on, up to its end."""
    await exchange.start_stream()
    at = 0
    skip = start
    while True:
        changed = kept.changed
        while at < len(kept.events):
            data = kept.events[at]
            at += 1
            count = data.count(b"\n\n")
            if skip >= count:
                skip -= count
                continue
            if skip:
                data = data.split(b"\n\n", skip)[skip]
                skip = 0
            if data:
                await exchange.chunk(data)
        if kept.complete:
            break
        await changed.wait()
    await exchange.chunk(b"", more=False)


async def get_response(replica: Replica, exchange: Exchange) -> None:
    """Show a response, or with ``?stream=true`` its events after ``starting_after``."""
    response_id = exchange.path.removeprefix(PREFIX)
    kept = replica.responses.get(response_id)
    if kept is None:
        raise response_not_found(response_id)
    query = parse_qs(exchange.scope.get("query_string", b"").decode("latin-1"))
    if query.get("stream", ["false"])[0].lower() in ("true", "1"):
        if not kept.events:
            raise parameter_error(f"Unknown response_id: {response_id}", "response_id", response_id)
        after = query.get("starting_after", ["-1"])[0]
        await _follow(exchange, kept, int(after) + 1 if after.lstrip("-").isdigit() else 0)
    else:
        await exchange.reply(kept.state.shown())


async def cancel_response(replica: Replica, exchange: Exchange) -> None:
    """Cancel a background response that has not ended."""
    response_id = exchange.path.removeprefix(PREFIX).removesuffix(CANCEL)
    kept = replica.responses.get(response_id)
    if kept is None:
        raise response_not_found(response_id)
    if kept.state.status not in ("queued", "in_progress"):
        message = "Cannot cancel a synchronous response."
        raise ApiError(400, message, "invalid_request_error", "response_id")
    kept.state.status = "cancelled"
    kept.answer.cancel()
    await exchange.reply(kept.state.shown())


def is_response(path: str) -> bool:
    """Return whether ``path`` is /v1/responses/{id}."""
    return path.startswith(PREFIX) and bool(path[len(PREFIX) :]) and "/" not in path[len(PREFIX) :]


def is_cancel(path: str) -> bool:
    """Return whether ``path`` is /v1/responses/{id}/cancel."""
    return path.endswith(CANCEL) and is_response(path.removesuffix(CANCEL))
