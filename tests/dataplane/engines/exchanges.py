"""Requests that were put to vLLM 0.32.0 (``record.py``), and are put to the simulated engine by the tests."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from tests.dataplane.engines.shapes import answer_shape

MODEL = "tiny"
ADAPTER = "tiny-lora"

_HELLO = [{"role": "user", "content": "hello there"}]
_CHAT = {"model": MODEL, "messages": _HELLO, "max_tokens": 4, "temperature": 0}
_TEXT = {"model": MODEL, "prompt": "hello there", "max_tokens": 4, "temperature": 0}
_RESPONSE = {"model": MODEL, "input": "hello there", "max_output_tokens": 4, "temperature": 0}
_MESSAGE = {"model": MODEL, "messages": _HELLO, "max_tokens": 4}
_LONG = [{"role": "user", "content": "hello " * 3000}]
_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
_CONTINUOUS = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}

#: name -> method, path, body; a body that is text is sent as it stands.
EXCHANGES: dict[str, tuple[str, str, Any]] = {
    "models": ("GET", "/v1/models", None),
    "version": ("GET", "/version", None),
    "health": ("GET", "/health", None),
    "ping": ("GET", "/ping", None),
    "load": ("GET", "/load", None),
    "chat": ("POST", "/v1/chat/completions", _CHAT),
    "chat-adapter": ("POST", "/v1/chat/completions", {**_CHAT, "model": ADAPTER}),
    "chat-parts": (
        "POST",
        "/v1/chat/completions",
        {**_CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    ),
    "chat-logprobs": ("POST", "/v1/chat/completions", {**_CHAT, "logprobs": True, "top_logprobs": 1}),
    "chat-token-ids": ("POST", "/v1/chat/completions", {**_CHAT, "return_token_ids": True}),
    "chat-cached": ("POST", "/v1/chat/completions", {**_CHAT, "messages": [{"role": "user", "content": "cat " * 200}]}),
    "chat-stream": ("POST", "/v1/chat/completions", {**_CHAT, "stream": True}),
    "chat-stream-usage": ("POST", "/v1/chat/completions", {**_CHAT, **_USAGE}),
    "chat-stream-continuous": ("POST", "/v1/chat/completions", {**_CHAT, **_CONTINUOUS}),
    "chat-stream-token-ids": ("POST", "/v1/chat/completions", {**_CHAT, "stream": True, "return_token_ids": True}),
    "chat-stream-cached": (
        "POST",
        "/v1/chat/completions",
        {**_CHAT, **_USAGE, "messages": [{"role": "user", "content": "cat " * 200}]},
    ),
    "chat-stream-choices": ("POST", "/v1/chat/completions", {**_CHAT, "temperature": 1, "n": 2, "stream": True}),
    "completion": ("POST", "/v1/completions", _TEXT),
    "completion-two-echo": ("POST", "/v1/completions", {**_TEXT, "prompt": ["a", "b"], "echo": True}),
    "completion-token-ids": ("POST", "/v1/completions", {**_TEXT, "prompt": [5, 6, 7], "return_token_ids": True}),
    "completion-logprobs": ("POST", "/v1/completions", {**_TEXT, "logprobs": 1}),
    "completion-stream": ("POST", "/v1/completions", {**_TEXT, "stream": True}),
    "completion-stream-usage": ("POST", "/v1/completions", {**_TEXT, **_USAGE}),
    "completion-stream-continuous": ("POST", "/v1/completions", {**_TEXT, **_CONTINUOUS}),
    "response": ("POST", "/v1/responses", _RESPONSE),
    "response-instructions": ("POST", "/v1/responses", {**_RESPONSE, "instructions": "be brief"}),
    "response-stream": ("POST", "/v1/responses", {**_RESPONSE, "stream": True}),
    "response-background": ("POST", "/v1/responses", {**_RESPONSE, "background": True}),
    "response-background-stream": ("POST", "/v1/responses", {**_RESPONSE, "background": True, "stream": True}),
    "response-background-no-store": ("POST", "/v1/responses", {**_RESPONSE, "background": True, "store": False}),
    "response-unknown": ("GET", "/v1/responses/resp_unknown", None),
    "response-cancel-unknown": ("POST", "/v1/responses/resp_unknown/cancel", None),
    "response-unknown-previous": ("POST", "/v1/responses", {**_RESPONSE, "previous_response_id": "resp_unknown"}),
    "response-no-input": ("POST", "/v1/responses", {"model": MODEL}),
    "response-unknown-model": ("POST", "/v1/responses", {**_RESPONSE, "model": "nope"}),
    "message": ("POST", "/v1/messages", _MESSAGE),
    "message-stream": ("POST", "/v1/messages", {**_MESSAGE, "stream": True}),
    "message-system": ("POST", "/v1/messages", {**_MESSAGE, "system": "be brief"}),
    "message-count": ("POST", "/v1/messages/count_tokens", {"model": MODEL, "messages": _HELLO}),
    "message-unknown-model": ("POST", "/v1/messages", {**_MESSAGE, "model": "nope"}),
    "message-no-max-tokens": ("POST", "/v1/messages", {"model": MODEL, "messages": _HELLO}),
    "tokenize": ("POST", "/tokenize", {"model": MODEL, "prompt": "hello there"}),
    "tokenize-strings": ("POST", "/tokenize", {"model": MODEL, "prompt": "hello there", "return_token_strs": True}),
    "tokenize-chat": ("POST", "/tokenize", {"model": MODEL, "messages": _HELLO}),
    "tokenize-nothing": ("POST", "/tokenize", {"model": MODEL}),
    "tokenize-unknown-model": ("POST", "/tokenize", {"model": "nope", "prompt": "x"}),
    "detokenize": ("POST", "/detokenize", {"model": MODEL, "tokens": [72, 300, 301]}),
    "detokenize-nothing": ("POST", "/detokenize", {"model": MODEL}),
    "unknown-model": ("POST", "/v1/chat/completions", {**_CHAT, "model": "nope"}),
    "no-model": ("POST", "/v1/chat/completions", {"messages": _HELLO, "max_tokens": 2, "temperature": 0}),
    "model-not-text": ("POST", "/v1/chat/completions", {**_CHAT, "model": 3}),
    "json-cut": ("POST", "/v1/chat/completions", '{"model":"tiny","messages":'),
    "json-empty": ("POST", "/v1/chat/completions", ""),
    "json-list": ("POST", "/v1/chat/completions", "[]"),
    "json-text": ("POST", "/v1/chat/completions", '"x"'),
    "json-trailing": ("POST", "/v1/chat/completions", "{} x"),
    "no-messages": ("POST", "/v1/chat/completions", {"model": MODEL}),
    "messages-not-list": ("POST", "/v1/chat/completions", {**_CHAT, "messages": "x"}),
    "messages-empty": ("POST", "/v1/chat/completions", {**_CHAT, "messages": []}),
    "max-tokens-text": ("POST", "/v1/chat/completions", {**_CHAT, "max_tokens": "x"}),
    "max-tokens-zero": ("POST", "/v1/chat/completions", {**_CHAT, "max_tokens": 0}),
    "max-tokens-negative": ("POST", "/v1/chat/completions", {**_CHAT, "max_tokens": -1}),
    "max-tokens-over-context": ("POST", "/v1/chat/completions", {**_CHAT, "max_tokens": 5000}),
    "prompt-over-context": ("POST", "/v1/chat/completions", {**_CHAT, "messages": _LONG}),
    "completion-over-context": ("POST", "/v1/completions", {**_TEXT, "prompt": _LONG[0]["content"]}),
    "temperature-negative": ("POST", "/v1/chat/completions", {**_CHAT, "temperature": -1}),
    "top-p-too-large": ("POST", "/v1/chat/completions", {**_CHAT, "top_p": 2}),
    "choices-zero": ("POST", "/v1/chat/completions", {**_CHAT, "n": 0}),
    "choices-greedy": ("POST", "/v1/chat/completions", {**_CHAT, "n": 2}),
    "stop-not-text": ("POST", "/v1/chat/completions", {**_CHAT, "stop": 5}),
    "stream-options-alone": ("POST", "/v1/chat/completions", {**_CHAT, "stream_options": {"include_usage": True}}),
    "several-wrong": ("POST", "/v1/completions", {**_TEXT, "stream": "x"}),
    "completion-no-prompt": ("POST", "/v1/completions", {"model": MODEL}),
    "completion-empty-prompt": ("POST", "/v1/completions", {**_TEXT, "prompt": ""}),
    "completion-no-prompts": ("POST", "/v1/completions", {**_TEXT, "prompt": []}),
    "unknown-path": ("GET", "/v1/nope", None),
    "wrong-method": ("GET", "/v1/chat/completions", None),
    "models-wrong-method": ("POST", "/v1/models", {}),
    "reset-prefix-cache": ("POST", "/reset_prefix_cache", None),
}

#: They need a prompt in the prefix cache.
_TWICE = frozenset({"chat-cached", "chat-stream-cached"})


def ask(client: httpx2.Client, name: str) -> dict[str, Any]:
    """Put one request to a server; return the shape of its answer."""
    method, path, body = EXCHANGES[name]
    content = body if isinstance(body, str) else None if body is None else json.dumps(body)
    headers = {} if body is None else {"content-type": "application/json"}
    for _ in range(2 if name in _TWICE else 1):
        answer = client.request(method, path, content=content, headers=headers)
    return answer_shape(answer.status_code, answer.headers.get("content-type", ""), answer.content)
