"""Health, models, tokens, metrics and switches: what is not inference."""

from __future__ import annotations

import secrets
import time
from typing import Any

from dataplane.engines.simulated import faults, metrics
from dataplane.engines.simulated.errors import parameter_error, validation_error
from dataplane.engines.simulated.http import Exchange
from dataplane.engines.simulated.prompts import render
from dataplane.engines.simulated.replica import VERSION, Replica, crash
from dataplane.engines.simulated.tokenizer import VOCABULARY, decode, encode
from dataplane.engines.simulated.validation import Body

METRICS_MEDIA = b"text/plain; version=1.0.0; charset=utf-8"


async def health(replica: Replica, exchange: Exchange) -> None:
    """Answer 200 when the engine lives, 503 when it does not."""
    alive = replica.ready and not replica.faults.unhealthy
    await exchange.reply_bytes(b"", status=200 if alive else 503)


async def version(replica: Replica, exchange: Exchange) -> None:
    """Tell the version of vLLM that is stood in for."""
    del replica
    await exchange.reply({"version": VERSION})


async def load(replica: Replica, exchange: Exchange) -> None:
    """Tell the requests in flight."""
    await exchange.reply({"server_load": replica.requests})


async def show_metrics(replica: Replica, exchange: Exchange) -> None:
    """Show the engine as it is now."""
    await exchange.reply_bytes(metrics.render(replica), METRICS_MEDIA)


async def models(replica: Replica, exchange: Exchange) -> None:
    """List the model and its adapters."""
    settings = replica.settings
    base = _card(settings.model, settings.model, None, settings.context_tokens)
    adapters = [_card(name, name, settings.model, None) for name in settings.adapters]
    await exchange.reply({"object": "list", "data": [base, *adapters]})


def _card(name: str, root: str, parent: str | None, context: int | None) -> dict[str, Any]:
    now = int(time.time())
    permission = {
        "id": f"modelperm-{secrets.token_hex(8)}",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    card = {"id": name, "object": "model", "created": now, "owned_by": "vllm", "root": root, "parent": parent}
    return {**card, "max_model_len": context, "permission": [permission]}


async def tokenize(replica: Replica, exchange: Exchange) -> None:
    """Tokenize a text or a conversation."""
    body = Body(await exchange.json())
    model_name, prompt = body.text("model"), body.text("prompt")
    if prompt is None and "messages" not in body.value:
        body.require("prompt")
        body.require("messages")
    messages = body.items("messages")
    strings = body.flag("return_token_strs")
    generation = body.flag("add_generation_prompt", default=True)
    body.check()
    replica.model(model_name)
    tokens = encode(prompt) if prompt is not None else render(messages, generation)
    await exchange.reply(
        {
            "count": len(tokens),
            "max_model_len": replica.settings.context_tokens,
            "tokens": tokens.tolist(),
            "token_strs": [decode((token,)) for token in tokens] if strings else None,
        }
    )


async def detokenize(replica: Replica, exchange: Exchange) -> None:
    """Turn token ids back into text."""
    body = Body(await exchange.json())
    model_name = body.text("model")
    body.require("tokens")
    tokens = body.items("tokens")
    body.check()
    for i, token in enumerate(tokens):
        if not isinstance(token, int) or isinstance(token, bool):
            message = "Input should be a valid integer"
            raise validation_error([{"type": "int_type", "loc": f"body.tokens.{i}", "msg": message, "input": token}])
        if not 0 <= token < VOCABULARY:
            raise parameter_error(f"Token id {token} is out of vocabulary", "tokens")
    replica.model(model_name)
    await exchange.reply({"prompt": decode(tokens)})


async def reset_prefix_cache(replica: Replica, exchange: Exchange) -> None:
    """Drop the prefix cache; ``success`` is false while any block is in use."""
    await exchange.reply({"success": replica.pacer.reset_prefix_cache()})


async def show_faults(replica: Replica, exchange: Exchange) -> None:
    """Show the fault switches."""
    await exchange.reply(faults.shown(replica.faults))


async def set_faults(replica: Replica, exchange: Exchange) -> None:
    """Change fault switches; keys that are not named stay as they are."""
    replica.faults = faults.updated(replica.faults, await exchange.json())
    if replica.faults.crash:
        crash()
    replica.pacer.engine.extra_step_s = replica.faults.token_delay_s
    if replica.faults.hang != replica.pacer.hung:
        replica.pacer.hang(replica.faults.hang)
    await exchange.reply(faults.shown(replica.faults))
