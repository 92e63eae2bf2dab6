"""What a request's JSON makes a chat template see, as vLLM 0.32 does (vllm/renderers/chat_utils.py and hf.py).

Whatever would make an engine see another prompt than is certain from the text alone is refused by name; such a request
is routed by its text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: A body with one of these set makes a prompt that depends on more than messages and tools.
_REFUSED = ("chat_template", "documents", "continue_final_message", "truncate_prompt_tokens", "kv_transfer_params")
#: What a body may not name among the arguments of its template.
_NOT_ARGUMENTS = ("chat_template", "tokenize", "documents", "continue_final_message", "messages", "tools")
_TEXT_PARTS = frozenset(("text", "input_text", "output_text", "refusal", "thinking"))
#: Keys of a text part that are its own; others are handed to templates that go through the parts.
_PART_KEYS = frozenset(("type", "text", "refusal", "thinking", "closed", "uuid"))
#: vLLM takes a line with this out of system messages: it changes with every request.
_BILLING = "x-anthropic-billing-header"


class Unsupported(Exception):
    """A request's prompt cannot be made here; ``reason`` is a stable word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check(body: Mapping[str, Any]) -> None:
    """Raise Unsupported when a body asks for what only the engine can do."""
    for name in _REFUSED:
        if body.get(name):
            raise Unsupported(name)


def messages(body: Mapping[str, Any], takes_parts: bool, knows_developers: bool) -> list[dict[str, Any]]:
    """Return the messages as templates see them. Raises Unsupported."""
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise Unsupported("malformed")
    return [_message(message, takes_parts, knows_developers) for message in given]


def tools(body: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the tools as templates see them: with the fields, and in the order, of vLLM's own type."""
    given = body.get("tools")
    if given is None:
        return None
    if not isinstance(given, list):
        raise Unsupported("malformed")
    return [_tool(tool) for tool in given]


def arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the further arguments of a template."""
    given = body.get("chat_template_kwargs") or {}
    if not isinstance(given, dict):
        raise Unsupported("malformed")
    if not given.keys().isdisjoint(_NOT_ARGUMENTS):
        raise Unsupported("chat_template_kwargs")
    made = {name: value for name, value in given.items() if name != "add_generation_prompt"}  # the body's own counts
    effort = body.get("reasoning_effort")
    if effort is None:
        return made
    return {"enable_thinking": effort != "none", **made, "reasoning_effort": effort}


def adds_generation_prompt(body: Mapping[str, Any]) -> bool:
    """Return whether the assistant's turn is begun; a body that sets it to null is refused by engines."""
    return body.get("add_generation_prompt", True) is not False


def _message(given: Any, takes_parts: bool, knows_developers: bool) -> dict[str, Any]:
    if not isinstance(given, dict) or not isinstance(role := given.get("role"), str):
        raise Unsupported("malformed")
    if role == "developer" and not knows_developers:
        raise Unsupported("developer")  # engines merge it into the system message
    content = given.get("content")
    parts = [content] if isinstance(content, str) else [] if content is None else content
    if not isinstance(parts, list):
        raise Unsupported("malformed")
    made = [part for part in (_part(part, takes_parts) for part in parts) if part is not None]
    if role == "system" and _BILLING in str(made[:1])[:80]:
        raise Unsupported("billing_header")
    message: dict[str, Any] = {"role": role}
    if takes_parts and role != "tool":
        message["content"] = made
    else:
        message["content"] = "\n".join(part["text"] if isinstance(part, dict) else part for part in made)
    if role == "assistant":
        _assistant(given, message)
    elif role == "tool" and "tool_call_id" in given:
        message["tool_call_id"] = given["tool_call_id"]
    elif role == "developer":
        message["tools"] = given.get("tools")
    for name in ("name", "task"):
        if isinstance(given.get(name), str):
            message[name] = given[name]
    return message


def _part(part: Any, takes_parts: bool) -> dict[str, Any] | str | None:
    """Return a part of a message, None for one that engines skip."""
    if isinstance(part, str):
        return {"type": "text", "text": part} if takes_parts else part
    if not isinstance(part, dict):
        raise Unsupported("malformed")
    kind = part.get("type")
    if kind not in _TEXT_PARTS or "uuid" in part:
        raise Unsupported("media")
    text = part.get(kind if kind in ("refusal", "thinking") else "text")
    if text is None and kind in ("text", "refusal"):
        return None
    if not isinstance(text, str):
        raise Unsupported("malformed")
    if not takes_parts:
        return text
    return {"type": "text", "text": text, **{key: value for key, value in part.items() if key not in _PART_KEYS}}


def _assistant(given: dict[str, Any], message: dict[str, Any]) -> None:
    """Add what only assistants have: calls of tools, with their arguments as objects, and reasoning."""
    calls = given.get("tool_calls")
    if isinstance(calls, list) and calls:
        message["tool_calls"] = [_call(call) for call in calls]
    elif calls:
        raise Unsupported("malformed")
    reasoning = given.get("reasoning")
    if reasoning is None:
        reasoning = given.get("reasoning_content")
    if reasoning is not None:
        message["reasoning"] = message["reasoning_content"] = reasoning


def _call(call: Any) -> dict[str, Any]:
    if not isinstance(call, dict) or not isinstance(function := call.get("function"), dict):
        raise Unsupported("malformed")
    found = function.get("arguments")
    if isinstance(found, str) and found:
        try:
            found = json.loads(found)
        except ValueError:
            found = {}
    return {**call, "function": {**function, "arguments": found if isinstance(found, dict) else {}}}


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict) or not isinstance(function := tool.get("function"), dict):
        raise Unsupported("malformed")
    if "defer_loading" in tool or "defer_loading" in function:
        raise Unsupported("defer_loading")
    shown = {name: function.get(name) for name in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        shown["strict"] = function["strict"]
    return {"type": tool.get("type", "function"), "function": shown}
