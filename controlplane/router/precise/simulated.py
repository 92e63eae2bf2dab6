"""The simulated engine's tokenizer: for trying precise routing without weights."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

from controlplane.router.precise.conversation import Unsupported
from controlplane.router.precise.tokenizer import CHAT, COMPLETIONS, only_prompt, token_ids
from dataplane.engines.simulated import prompts, tokenizer
from dataplane.engines.simulated.errors import ApiError


class SimulatedTokenizer:
    """Tokens of the simulated engine, which has no vocabulary and no template."""

    def tokens(self, kind: int, asked: Mapping[str, Any]) -> array[int]:
        """Return the prompt's token ids. Raises Unsupported."""
        if kind == COMPLETIONS:
            prompt = only_prompt(asked)
            return token_ids(prompt) if isinstance(prompt, list) else tokenizer.encode(prompt)
        if kind != CHAT or not isinstance(messages := asked.get("messages"), list):
            raise Unsupported("kind" if kind != CHAT else "malformed")
        try:
            return prompts.render(messages)
        except ApiError:
            raise Unsupported("malformed") from None
