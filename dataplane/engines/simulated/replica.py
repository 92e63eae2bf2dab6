"""What every endpoint shares: names, engine, faults, and how a request becomes answers."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from array import array
from collections.abc import Iterable
from dataclasses import replace

from dataplane.engines.simulated.answer import Answer, outline
from dataplane.engines.simulated.errors import ApiError, model_not_found, parameter_error
from dataplane.engines.simulated.faults import Faults
from dataplane.engines.simulated.http import Exchange
from dataplane.engines.simulated.kv_transfer import Connector
from dataplane.engines.simulated.pacer import Pacer, Ticket
from dataplane.engines.simulated.response_store import ResponseStore
from dataplane.engines.simulated.sampling import Sampling
from dataplane.engines.simulated.sequence import Prompt
from dataplane.engines.simulated.settings import Settings

#: The vLLM that this stands in for, and what it calls this configuration.
VERSION = "0.32.0"
FINGERPRINT = "vllm-0.32.0-simulated"
#: A client's request id is part of ours; longer ones are cut.
MAX_REQUEST_ID_CHARS = 256


class Replica:
    """State of one simulated engine's server."""

    def __init__(self, settings: Settings, pacer: Pacer) -> None:
        self.settings = settings
        self.pacer = pacer
        self.connector = Connector(settings.host, settings.kv_block_tokens)
        self.responses = ResponseStore()
        self.faults = Faults()
        self.ready = settings.startup_s <= 0
        self.requests = 0  # in flight, as /load tells
        self.started_s = int(time.time())

    def model(self, name: str | None) -> tuple[str, str]:
        """Return the name that the answer carries and the adapter ('' for the base). Raises ApiError 404."""
        if not name or name == self.settings.model:
            return self.settings.model, ""
        if name in self.settings.adapters:
            return name, name
        raise model_not_found(name, self.settings.model)

    def request_id(self, exchange: Exchange, prefix: str) -> str:
        """Return the answer's id: of the client's X-Request-Id when there is one, as vLLM does."""
        given = exchange.header(b"x-request-id")
        return f"{prefix}-{given[:MAX_REQUEST_ID_CHARS] if given else secrets.token_hex(8)}"

    def check_prompt(self, prompt: array[int]) -> None:
        """Raise ApiError 400 when a prompt leaves no room for one token; a longer answer than fits is cut short."""
        limit = self.settings.context_tokens
        if len(prompt) >= limit:
            message = (
                f"This model's maximum context length is {limit} tokens. However, your prompt contains at least "
                f"{limit + 1} input tokens, which exceeds this limit even without any output tokens. "
                "Please reduce the length of the input prompt."
            )
            raise parameter_error(message, "input_tokens", limit + 1)

    async def admit(self) -> None:
        """Apply the faults that strike before the engine."""
        faults = self.faults
        if faults.fail_next:
            self.faults = replace(faults, fail_next=faults.fail_next - 1)
            raise ApiError(faults.fail_status, "simulated fault", "InternalServerError")
        if faults.ttft_delay_s:
            await asyncio.sleep(faults.ttft_delay_s)

    def answers(self, prompts: Iterable[array[int]], adapter: str, sampling: Sampling) -> list[Answer]:
        """Queue every choice of every prompt, in order."""
        found: list[Answer] = []
        remote = self.connector.is_remote_prefill(sampling.kv_transfer)
        for tokens in prompts:
            for choice in range(sampling.choices):
                plan = outline(tokens, adapter, choice, sampling, self.settings.context_tokens)
                prompt = Prompt(tokens, plan.tokens, adapter, sampling.salt, choice, remote, plan.reason)
                found.append(Answer(self.pacer, prompt, plan, len(found)))
        return found

    def prefill_only(self, tokens: array[int], adapter: str, salt: str = "") -> Ticket:
        """Queue a prompt whose answer is not text: embeddings, scores, classes."""
        return self.pacer.submit(Prompt(tokens, 0, adapter, salt, ends="stop"))


def crash() -> None:
    """End the process as the kernel's SIGKILL does: nothing is flushed, nothing is said."""
    os.kill(os.getpid(), 9)
