"""JSON of the Responses API, as vLLM writes it (vllm/entrypoints/openai/responses)."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from dataplane.engines.simulated.http import encode


@dataclass(slots=True)
class ResponseState:
    """One response while it is made. ``text`` grows; counts are final when ``status`` is."""

    id: str
    request: dict[str, Any]
    model: str
    max_output_tokens: int
    status: str
    message_id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(8)}")
    created: int = field(default_factory=lambda: int(time.time()))
    text: str | None = None
    reason: str = ""  # finish reason, once there is one
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    kv_transfer_params: dict[str, Any] | None = None

    def shown(self) -> dict[str, Any]:
        """Return the response object as it is now."""
        request = self.request
        tools = request.get("tools") or []
        done = bool(self.reason)
        return {
            "id": self.id,
            "created_at": self.created,
            "incomplete_details": {"reason": "max_output_tokens"} if self.reason == "length" else None,
            "instructions": request.get("instructions"),
            "metadata": request.get("metadata"),
            "model": self.model,
            "object": "response",
            "output": [self.item("completed")] if done else [],
            "parallel_tool_calls": request.get("parallel_tool_calls", True),
            "temperature": _number(request.get("temperature"), 1.0),
            "tool_choice": request.get("tool_choice", "auto") if tools else "none",
            "tools": tools,
            "top_p": _number(request.get("top_p"), 1.0),
            "background": bool(request.get("background")),
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": request.get("max_tool_calls"),
            "previous_response_id": request.get("previous_response_id"),
            "prompt": None,
            "reasoning": request.get("reasoning"),
            "service_tier": request.get("service_tier") or "auto",
            "status": self.status,
            "text": request.get("text"),
            "top_logprobs": request.get("top_logprobs"),
            "truncation": request.get("truncation") or "disabled",
            "usage": self._usage() if done else None,
            "user": request.get("user"),
            "presence_penalty": _number(request.get("presence_penalty"), 0.0),
            "frequency_penalty": _number(request.get("frequency_penalty"), 0.0),
            "kv_transfer_params": self.kv_transfer_params,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }

    def item(self, status: str) -> dict[str, Any]:
        """Return the output message."""
        content = [] if self.text is None else [part(self.text, None)]
        message = {"id": self.message_id, "content": content, "role": "assistant", "status": status, "type": "message"}
        return {**message, "phase": None}

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {
                "cached_tokens": self.cached_tokens,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": self.output_tokens,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": self.input_tokens + self.output_tokens,
        }


def part(text: str, logprobs: list[Any] | None) -> dict[str, Any]:
    """Return one content part of an output message."""
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default


class Events:
    """The events of one streamed response, numbered."""

    def __init__(self, state: ResponseState) -> None:
        self._state = state
        self._number = 0
        place = f'"item_id":"{state.message_id}","logprobs":[],"output_index":0,"sequence_number":'
        self._before = b'event: response.output_text.delta\ndata: {"content_index":0,"delta":"'
        self._between = f'",{place}'.encode()
        self._after = b',"type":"response.output_text.delta"}\n\n'

    def opening(self) -> bytes:
        """Return what comes before the first token is there."""
        started = {"response": {**self._state.shown(), "status": "in_progress"}}
        return self._event("response.created", started) + self._event("response.in_progress", started)

    def item_opening(self) -> bytes:
        """Return what comes with the first token."""
        place = {"output_index": 0}
        added = self._event("response.output_item.added", {"item": self._state.item("in_progress"), **place})
        head = {"content_index": 0, "item_id": self._state.message_id, **place}
        return added + self._event("response.content_part.added", {**head, "part": part("", [])})

    def delta(self, text: bytes) -> bytes:
        """Return the event of new text, which needs no escapes."""
        number = self._next()
        return b"%s%s%s%d%s" % (self._before, text, self._between, number, self._after)

    def closing(self) -> bytes:
        """Return what ends the response; its state is final."""
        text = self._state.text or ""
        head: dict[str, Any] = {"content_index": 0, "item_id": self._state.message_id}
        done = self._event("response.output_text.done", {**head, "logprobs": [], "output_index": 0}, {"text": text})
        whole = self._event("response.content_part.done", {**head, "output_index": 0, "part": part(text, None)})
        item = self._event("response.output_item.done", {"item": self._state.item("completed"), "output_index": 0})
        return done + whole + item + self._event("response.completed", {"response": self._state.shown()})

    def _event(self, kind: str, content: dict[str, Any], last: dict[str, Any] | None = None) -> bytes:
        body = encode({**content, "sequence_number": self._next(), **(last or {}), "type": kind})
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), body)

    def _next(self) -> int:
        number = self._number
        self._number += 1
        return number
