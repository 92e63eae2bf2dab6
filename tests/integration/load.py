"""A small streaming load whose every stream is judged: clean, truncated, failed or wrong."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx2


@dataclass(slots=True)
class Stream:
    """What became of one request."""

    model: str
    verdict: str = "failed"  # clean | truncated | failed | wrong
    replica: str = ""
    request_id: str = ""
    status: int = 0
    detail: str = ""
    tokens: list[str] = field(default_factory=list)
    began_s: float = 0.0


@dataclass(slots=True)
class Load:
    """Closed-loop load of streaming chats over ``models``, until ``stop`` is called."""

    url: str
    models: tuple[str, ...]
    concurrency: int = 8
    max_tokens: int = 16
    new_connections: bool = False
    streams: list[Stream] = field(default_factory=list)
    _running: bool = True

    def stop(self) -> None:
        self._running = False

    async def run(self) -> None:
        limits = httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        async with httpx2.AsyncClient(limits=limits, timeout=30, trust_env=False) as client:
            await asyncio.gather(*(self._worker(client, n) for n in range(self.concurrency)))

    async def _worker(self, client: httpx2.AsyncClient, number: int) -> None:
        count = 0
        while self._running:
            model = self.models[(number + count) % len(self.models)]
            self.streams.append(await chat(client, self.url, model, f"{number} {count}", self.max_tokens))
            count += 1

    def verdicts(self, keep: Callable[[Stream], bool] = lambda _: True) -> Counter[str]:
        return Counter(s.verdict for s in self.streams if keep(s))

    def replicas(self, model: str) -> Counter[str]:
        return Counter(s.replica for s in self.streams if s.model == model and s.replica)


async def chat(client: httpx2.AsyncClient, url: str, model: str, prompt: str, max_tokens: int) -> Stream:
    """Send one streaming chat and judge how it ended."""
    stream = Stream(model, began_s=asyncio.get_running_loop().time())
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "model": model,
        "stream": True,
        "max_tokens": max_tokens,
        "ignore_eos": True,
    }
    done = finished = False
    try:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            stream.status = response.status_code
            stream.replica = response.headers.get("x-slipstream-replica", "")
            stream.request_id = response.headers.get("x-slipstream-request-id", "")
            if response.status_code != 200:
                stream.detail = (await response.aread()).decode(errors="replace")[:300]
                return stream
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    for choice in event.get("choices", []):
                        finished |= choice.get("finish_reason") is not None
                        stream.tokens.append(choice.get("delta", {}).get("content") or "")
    except httpx2.HTTPError as error:
        stream.detail = repr(error)
        if stream.status == 200:
            stream.verdict = "truncated" if not done else "wrong"
        return stream
    stream.verdict = "clean" if done and finished else "wrong"
    return stream
