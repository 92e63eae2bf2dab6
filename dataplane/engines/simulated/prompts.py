"""Turn what clients send (messages, text, token ids) into tokens."""

from __future__ import annotations

import json
from array import array
from typing import Any

from dataplane.engines.simulated.errors import ApiError, shown_input, validation_error
from dataplane.engines.simulated.tokenizer import END, START, TYPECODE, VOCABULARY, encode

#: Tokens of one picture, sound or file in a message: its data is not looked at beyond its identity.
MEDIA_TOKENS = 64


def render(messages: list[Any], add_generation_prompt: bool = True) -> array[int]:
    """Return the tokens of a conversation: ``start, role, text, end`` per message, then the assistant's start."""
    tokens = array(TYPECODE)
    for i, message in enumerate(messages):
        role, text = _message(i, message)
        tokens.append(START)
        tokens += encode(role)
        tokens += encode(text)
        tokens.append(END)
    if add_generation_prompt:
        tokens.append(START)
        tokens += encode("assistant")
    return tokens


def _message(index: int, message: Any) -> tuple[str, str]:
    loc = f"body.messages.{index}"
    if not isinstance(message, dict):
        text = "Input should be a valid dictionary"
        raise validation_error([{"type": "dict_type", "loc": loc, "msg": text, "input": shown_input(message)}])
    role = message.get("role")
    if role is None:
        text = "Field required"
        raise validation_error([{"type": "missing", "loc": f"{loc}.role", "msg": text, "input": shown_input(message)}])
    if not isinstance(role, str):
        text = "Input should be a valid string"
        raise validation_error([{"type": "string_type", "loc": f"{loc}.role", "msg": text, "input": shown_input(role)}])
    return role, content_text(message.get("content"), f"{loc}.content") + _calls_text(message)


def content_text(content: Any, loc: str) -> str:
    """Return the text of a message's content: a string, or parts of which only the text is read."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        message = "Input should be a valid string"
        raise validation_error([{"type": "string_type", "loc": loc, "msg": message, "input": shown_input(content)}])
    return "".join(_part_text(part) for part in content)


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return str(part)
    text = part.get("text")
    if isinstance(text, str):
        return text
    # Equal media give equal tokens, so that they hit the prefix cache.
    shown = json.dumps(part, sort_keys=True, ensure_ascii=False)
    return (shown * (1 + 4 * MEDIA_TOKENS // len(shown)))[: 4 * MEDIA_TOKENS]


def _calls_text(message: dict[str, Any]) -> str:
    calls = message.get("tool_calls")
    return json.dumps(calls, ensure_ascii=False) if calls else ""


def completion_prompts(prompt: Any) -> list[array[int]]:
    """Return the prompts of /v1/completions: a text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return [encode(prompt)]
    if not isinstance(prompt, list):
        message = "Input should be a valid string"
        raise validation_error(
            [{"type": "string_type", "loc": "body.prompt", "msg": message, "input": shown_input(prompt)}]
        )
    if not prompt:
        raise ApiError(400, "You must pass at least one prompt")
    if all(isinstance(item, int) for item in prompt):
        return [token_ids(prompt, "prompt")]
    return [encode(item) if isinstance(item, str) else token_ids(item, f"prompt.{i}") for i, item in enumerate(prompt)]


def token_ids(value: Any, name: str) -> array[int]:
    """Return a list of token ids. Raises ApiError 400 for anything else."""
    if not isinstance(value, list):
        message = "Input should be a valid list"
        raise validation_error(
            [{"type": "list_type", "loc": f"body.{name}", "msg": message, "input": shown_input(value)}]
        )
    for i, item in enumerate(value):
        if not isinstance(item, int) or isinstance(item, bool):
            message = "Input should be a valid integer"
            raise validation_error(
                [{"type": "int_type", "loc": f"body.{name}.{i}", "msg": message, "input": shown_input(item)}]
            )
        if not 0 <= item < VOCABULARY:
            raise ApiError(400, f"Token id {item} is out of vocabulary")
    return array(TYPECODE, value)
