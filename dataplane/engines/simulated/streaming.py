"""Send the pieces of one or more answers as an event stream, cheaply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dataplane.engines.simulated.answer import Aborted, Answer, Piece
from dataplane.engines.simulated.http import ClientGone, Exchange
from dataplane.engines.simulated.replica import Replica

DONE = b"data: [DONE]\n\n"


class Cut(Exception):
    """The fault switch cut the stream: the connection is to be closed without an end."""


@asynccontextmanager
async def cancelled_with_client(exchange: Exchange, answers: list[Answer]) -> AsyncIterator[None]:
    """Free the engine of the answers as soon as the client leaves, and in any case at the end."""

    def cancel() -> None:
        for answer in answers:
            answer.cancel()

    exchange.on_gone(cancel)
    try:
        yield
    except Aborted as error:
        raise ClientGone from error
    finally:
        exchange.unwatch()
        cancel()


async def stream(
    exchange: Exchange,
    replica: Replica,
    answers: list[Answer],
    render: Callable[[Answer, Piece], bytes],
    end: Callable[[], bytes],
) -> None:
    """Send ``render(answer, piece)`` for every piece, then ``end()``.

    Headers go out at once, before the first token, as vLLM's do. Raises ClientGone and Cut.
    """
    async with cancelled_with_client(exchange, answers):
        await exchange.start_stream()
        if len(answers) == 1:
            await _one(exchange, replica, answers[0], render, end)
        else:
            await _many(exchange, replica, answers, render, end)


async def _one(
    exchange: Exchange,
    replica: Replica,
    answer: Answer,
    render: Callable[[Answer, Piece], bytes],
    end: Callable[[], bytes],
) -> None:
    while True:
        piece = await answer.next()
        if piece.last:
            await exchange.chunk(render(answer, piece) + end())
            break
        await exchange.chunk(render(answer, piece))
        cut_after(replica, piece.end)
    await exchange.chunk(b"", more=False)


async def _many(
    exchange: Exchange,
    replica: Replica,
    answers: list[Answer],
    render: Callable[[Answer, Piece], bytes],
    end: Callable[[], bytes],
) -> None:
    pending = {asyncio.ensure_future(answer.next()): answer for answer in answers}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda t: pending[t].index):
                answer = pending.pop(task)
                piece = task.result()
                await exchange.chunk(render(answer, piece))
                cut_after(replica, piece.end)
                if not piece.last:
                    pending[asyncio.ensure_future(answer.next())] = answer
    finally:
        for task in pending:
            task.cancel()
    await exchange.chunk(end())
    await exchange.chunk(b"", more=False)


def cut_after(replica: Replica, tokens: int) -> None:
    """Raise Cut when the fault switch says that streams end after so many tokens."""
    limit = replica.faults.abort_after_tokens
    if limit and tokens >= limit:
        raise Cut
