"""A model's chat template, rendered as Hugging Face's tokenizers render it (transformers/utils/chat_template_utils.py).

The template comes with the model's weights: it runs in Jinja's immutable sandbox, and what it makes is bounded by the
caller's limit on prompts and its deadline.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, ext, meta, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Of all known models' templates the longest has some 20,000.
MAX_TEMPLATE_CHARS = 262_144


class _Generation(ext.Extension):
    """``{% generation %}`` marks what the assistant says, for training: here it only renders what is in it."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what is between the marks."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


class ChatTemplate:
    """One template. ``takes_parts``: it goes through the parts of a message's content itself; else it wants text.

    Raises jinja2.TemplateError for one that cannot be compiled, ValueError for one that is too long.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ValueError(f"a chat template has at most {MAX_TEMPLATE_CHARS} characters")
        environment = _environment()
        tree = environment.parse(source)
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)
        self._variables = meta.find_undeclared_variables(tree)
        self.takes_parts = next(_content_loops(tree), None) is not None
        self.knows_developers = "'developer'" in source or '"developer"' in source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        arguments: Mapping[str, Any],
    ) -> str:
        """Return the prompt's text. ``arguments`` that it does not name are left out. Raises jinja2.TemplateError."""
        known = {name: value for name, value in arguments.items() if name in self._variables}
        return self._template.render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **{**self._special_tokens, **known},
        )


def _content_loops(tree: nodes.Template) -> Iterator[nodes.For]:
    """Yield the loops over the parts of a message's content, by the rules with which vLLM looks for them.

    A loop over ``message.content``, where ``message`` runs over ``messages`` or a copy or slice of it; over a macro's
    parameter that is given such content; or over a variable ``content`` outside of macros.
    """
    lists = _copies(tree, "messages")
    items = [
        loop.target.name
        for loop in tree.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and any(_reads(loop.iter, name) for name in lists)
    ]
    in_macros: dict[int, set[str]] = {}
    for macro in tree.find_all(nodes.Macro):
        given = _given_content(tree, macro, items)
        for loop in macro.find_all(nodes.For):
            in_macros[id(loop)] = given
    for loop in tree.find_all(nodes.For):
        over = loop.iter.name if isinstance(loop.iter, nodes.Name) else ""
        if any(_reads(loop.iter, name, "content") for name in items) or (
            over in in_macros[id(loop)] if id(loop) in in_macros else over == "content"
        ):
            yield loop


def _copies(tree: nodes.Template, name: str) -> list[str]:
    """Return the names that a variable's value, or a part of it, is assigned to, itself first."""
    found = [name]
    for known in found:
        for assigned in tree.find_all(nodes.Assign):
            target = assigned.target
            if isinstance(target, nodes.Name) and target.name not in found and _reads(assigned.node, known):
                found.append(target.name)
    return found


def _given_content(tree: nodes.Template, macro: nodes.Macro, items: Sequence[str]) -> set[str]:
    """Return the parameters of a macro that are somewhere given a message's content."""
    parameters = [argument.name for argument in macro.args]
    given: set[str] = set()
    for call in tree.find_all(nodes.Call):
        if not isinstance(call.node, nodes.Name) or call.node.name != macro.name:
            continue
        pairs = [*zip(parameters, call.args, strict=False), *((word.key, word.value) for word in call.kwargs)]
        for parameter, value in pairs:
            if parameter in parameters and any(_reads(value, name, "content") for name in items):
                given.add(parameter)
    return given


def _reads(node: nodes.Node | None, variable: str, key: str = "") -> bool:
    """Return whether an expression is a variable (or its ``key``), perhaps filtered, tested or sliced."""
    if isinstance(node, nodes.Filter | nodes.Test):
        return node.node is not None and _reads(node.node, variable, key)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _reads(node.node, variable, key)
    if not key:
        return isinstance(node, nodes.Name) and node.name == variable
    if isinstance(node, nodes.Getitem):
        return _reads(node.node, variable) and isinstance(node.arg, nodes.Const) and node.arg.value == key
    return isinstance(node, nodes.Getattr) and node.attr == key and _reads(node.node, variable)
