"""What stays of an answer when its ids, texts and numbers are taken out: two servers that agree in it look alike."""

from __future__ import annotations

import json
import re
from typing import Any

#: Their values are part of the protocol.
LITERAL = frozenset({"object", "type", "role", "finish_reason", "stop_reason", "status", "code", "param", "message"})
LITERAL_IF_TEXT = frozenset({"reason", "owned_by", "parent", "service_tier", "tool_choice", "truncation"})

_NUMBER = re.compile(r"\d+")
#: One named event, or a data line alone.
_EVENT = re.compile(r"(?:event: (?P<name>\S+)\n)?data: (?P<data>.*)")


def shape(value: Any, key: str = "") -> Any:
    """Return the shape of a JSON value: keys in order, types, and the values of the words that the protocol fixes."""
    if isinstance(value, dict):
        if key == "top_logprobs" and "token" not in value:
            return {"*": "float"}
        return {name: shape(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0], key)] if value else []
    if isinstance(value, str):
        if key == "message":
            return _NUMBER.sub("N", value)
        return value if key in LITERAL or key in LITERAL_IF_TEXT else "str"
    if value is None or isinstance(value, bool):
        return value
    if key == "code":
        return value
    return type(value).__name__


def stream_shape(text: str) -> list[Any]:
    """Return the events of a stream, each as [name, shape]; equal neighbours count once."""
    found: list[Any] = []
    for block in text.split("\n\n"):
        if not block:
            continue
        match = _EVENT.fullmatch(block)
        assert match is not None, block
        data = match["data"]
        event = [match["name"], "[DONE]" if data == "[DONE]" else shape(json.loads(data))]
        if not found or found[-1] != event:
            found.append(event)
    return found


def answer_shape(status: int, content_type: str, body: bytes) -> dict[str, Any]:
    """Return the shape of one HTTP answer."""
    content: Any = body.decode()
    if content_type.startswith("text/event-stream"):
        content = stream_shape(content)
    elif content_type.startswith("application/json"):
        content = shape(json.loads(content))
    return {"status": status, "content_type": content_type, "body": content}


def key_order(value: Any) -> Any:
    """Return ``value`` with objects as lists of pairs, so that a comparison sees the order of their keys."""
    if isinstance(value, dict):
        return [(name, key_order(item)) for name, item in value.items()]
    if isinstance(value, list):
        return [key_order(item) for item in value]
    return value
