"""A model's own tokenizer: from a request's body to the token ids that its engines compute with.

Read from the folder of the model's weights: ``tokenizer.json``, and for chats ``chat_template.jinja`` or the
``chat_template`` of ``tokenizer_config.json``. Methods may be called from several threads.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
from jinja2 import TemplateError

from controlplane.router.precise import conversation
from controlplane.router.precise.beginnings import Beginnings
from controlplane.router.precise.conversation import Unsupported
from controlplane.router.precise.template import ChatTemplate
from controlplane.routing.block_events import as_tokens
from controlplane.routing.record import KIND_NUMBERS

CHAT = KIND_NUMBERS["chat"]
COMPLETIONS = KIND_NUMBERS["completions"]
KINDS = frozenset((CHAT, COMPLETIONS))

#: The largest known tokenizer.json (a vocabulary of 262,144) has 35 MB.
MAX_FILE_BYTES = 128 << 20
#: Longer than any body that reaches the router (1,000,000 bytes).
MAX_PROMPT_CHARS = 1_048_576
MAX_PROMPT_TOKENS = 1_048_576
#: Models whose prompts vLLM makes in code of its own, not from the template.
OTHER_RENDERERS = frozenset(("gpt_oss", "deepseek_v32", "deepseek_v4", "kimi_k3", "inkling", "cohere2"))

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_decode = msgspec.json.Decoder().decode


class UnusableTokenizer(Exception):
    """A folder has no tokenizer that can be used here; the message says why."""


class Tokenizer(Protocol):
    """From a request's kind and JSON body, as ``read`` returns it, to its prompt's tokens. Raises Unsupported."""

    def tokens(self, kind: int, asked: Mapping[str, Any]) -> array[int]:
        """Return the prompt's token ids."""


class ModelTokenizer:
    """The tokenizer in one folder. Raises UnusableTokenizer."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one prompt a thread; the pool has the threads
        try:
            import tokenizers
        except ImportError:
            raise UnusableTokenizer(
                "the package 'tokenizers' is not installed: pip install 'slipstream[precise]'"
            ) from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(_read(folder / "tokenizer.json"))
        except Exception as error:  # the library raises Exception itself
            raise UnusableTokenizer(f"{folder}/tokenizer.json: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._config = _json(folder / "tokenizer_config.json")
        kind = _json(folder / "config.json").get("model_type")
        self._templates: dict[str, ChatTemplate] = {} if kind in OTHER_RENDERERS else self._read_templates(folder)
        self.beginnings = Beginnings(self._encode, self._boundaries())

    def tokens(self, kind: int, asked: Mapping[str, Any]) -> array[int]:
        """Return the prompt's token ids."""
        if kind == COMPLETIONS:
            return self._completion(asked)
        if kind != CHAT:
            raise Unsupported("kind")
        text = self._chat(asked)
        if len(text) > MAX_PROMPT_CHARS:
            raise Unsupported("too_long")
        if asked.get("add_special_tokens"):
            return as_tokens(self._tokenizer.encode(text).ids)
        return self.beginnings.tokens(text)

    def _chat(self, asked: Mapping[str, Any]) -> str:
        tools = conversation.tools(asked)
        template = self._templates.get("tool_use" if tools and "tool_use" in self._templates else "default")
        if template is None:
            raise Unsupported("no_template")
        messages = conversation.messages(asked, template.takes_parts, template.knows_developers)
        add = conversation.adds_generation_prompt(asked)
        try:
            return template.render(messages, tools, add, conversation.arguments(asked))
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError):
            raise Unsupported("template_error") from None

    def _completion(self, asked: Mapping[str, Any]) -> array[int]:
        prompt = only_prompt(asked)
        if isinstance(prompt, list):
            return token_ids(prompt)
        if len(prompt) > MAX_PROMPT_CHARS:
            raise Unsupported("too_long")
        return as_tokens(self._tokenizer.encode(prompt, add_special_tokens=asked.get("add_special_tokens", True)).ids)

    def _encode(self, text: str) -> array[int]:
        return as_tokens(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def _boundaries(self) -> dict[str, int]:
        """Return the special tokens that a text is always divided at, whatever stands beside them, and their ids."""
        return {
            token.content: number
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        }

    def _read_templates(self, folder: Path) -> dict[str, ChatTemplate]:
        named: dict[str, str] = {}
        given = self._config.get("chat_template")
        if isinstance(given, str):
            named["default"] = given
        elif isinstance(given, list):
            named = {str(entry["name"]): str(entry["template"]) for entry in given}
        if (folder / "chat_template.jinja").is_file():
            named["default"] = _read(folder / "chat_template.jinja")
        special = self._special_tokens()
        try:
            return {name: ChatTemplate(source, special) for name, source in named.items()}
        except (TemplateError, ValueError) as error:
            raise UnusableTokenizer(f"{folder}: chat template: {error}") from error

    def _special_tokens(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in _SPECIAL:
            value = self._config.get(f"{name}_token")
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[f"{name}_token"] = text
        return found


def read(body: bytes | memoryview) -> dict[str, Any]:
    """Return a body's JSON object. Raises Unsupported."""
    try:
        asked = _decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Unsupported("malformed") from None
    if not isinstance(asked, dict):
        raise Unsupported("malformed")
    conversation.check(asked)
    return asked


def own_salt(asked: Mapping[str, Any]) -> str:
    """Return the cache salt that a client asks for; empty: none."""
    salt = asked.get("cache_salt")
    return salt if isinstance(salt, str) else ""


def only_prompt(asked: Mapping[str, Any]) -> str | list[Any]:
    """Return the one prompt of /v1/completions: text, or token ids. Raises Unsupported."""
    prompt = asked.get("prompt")
    if asked.get("prompt_embeds") or asked.get("suffix"):
        raise Unsupported("embeddings" if asked.get("prompt_embeds") else "suffix")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise Unsupported("several_prompts")
        prompt = prompt[0]
    if not isinstance(prompt, str | list) or not prompt:
        raise Unsupported("malformed")
    return prompt


def token_ids(given: list[Any]) -> array[int]:
    """Return token ids that a client gave. Raises Unsupported."""
    if len(given) > MAX_PROMPT_TOKENS:
        raise Unsupported("too_long")
    try:
        return as_tokens(given)
    except (OverflowError, TypeError):
        raise Unsupported("malformed") from None


def _read(path: Path) -> str:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UnusableTokenizer(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return path.read_text(encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(path)) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UnusableTokenizer(f"{path}: {error}") from error
    return found if isinstance(found, dict) else {}
