"""A spec's YAML as plain data, with the line of each key.

Only what a spec needs of YAML is taken: mappings with text keys, lists, text, numbers, true/false and null as YAML 1.2
writes them. Aliases, tags, repeated keys and several documents are errors: each hides something from the reader.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from controlplane.spec.expansion import expanded
from controlplane.spec.outline import Place

#: Characters of a spec. Thousands of pools and keys fit; the JSON made from it stays below gRPC's 4 MiB message.
MAX_SPEC_BYTES = 1 << 20
#: Nested mappings and lists; a spec needs 9.
MAX_DEPTH = 24

_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``line`` counts from 1; 0: the source has no lines."""

    line: int
    place: Place
    message: str


class Unreadable(Exception):
    """The text is not YAML that can be read on; ``problem`` says where."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(slots=True)
class Document:
    """Plain data, the line of each key and list entry, and what was wrong on the way."""

    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, place: Place) -> int:
        """Return the line of ``place``, or of the nearest thing around it."""
        for length in range(len(place), -1, -1):
            if (line := self.lines.get(place[:length])) is not None:
                return line
        return 1


def plain_scalar(text: str) -> bool | int | float | str | None:
    """Return what an unquoted scalar means."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def read_yaml(text: str, environment: Mapping[str, str]) -> Document:
    """Return the document; raises Unreadable when there is no reading on."""
    try:
        return _Reader(text, environment).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"is not YAML: {error.problem or error.context or 'cannot be read'}"
        raise Unreadable(Problem(mark.line + 1 if mark else 1, (), message)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Unreadable(Problem(line, (), "is not YAML: a character is not allowed")) from None


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


class _Reader:
    """Builds the data from YAML's events; every value is visited once, since there are no aliases."""

    def __init__(self, text: str, environment: Mapping[str, str]) -> None:
        self._events = iter(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        self._environment = environment
        self._result = Document()

    def document(self) -> Document:
        result = self._result
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if result.lines:
                    raise Unreadable(Problem(_line(event), (), "holds a second document"))
                first = next(self._events)
                result.lines[()] = _line(first)
                result.data = self._value(first, (), 0)
        return result

    def _problem(self, event: yaml.Event, place: Place, message: str) -> None:
        self._result.problems.append(Problem(_line(event), place, message))

    def _value(self, event: yaml.Event, place: Place, depth: int) -> Any:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            raise Unreadable(Problem(line, place, "YAML aliases are not allowed: write the value out"))
        if depth > MAX_DEPTH:
            raise Unreadable(Problem(line, place[:MAX_DEPTH], f"is nested deeper than {MAX_DEPTH}"))
        if getattr(event, "tag", None) not in {None, "!"}:
            self._problem(event, place, "YAML tags are not allowed")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(place, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(place, depth)
        assert isinstance(event, yaml.ScalarEvent)
        return self._scalar(event, place)

    def _mapping(self, place: Place, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise Unreadable(Problem(_line(event), place, "a key must be text"))
            key = event.value
            inner = (*place, key)
            if key in made:
                self._problem(event, inner, f"repeated key, first on line {self._result.lines[inner]}")
            else:
                self._result.lines[inner] = _line(event)
            value = self._value(next(self._events), inner, depth + 1)
            made.setdefault(key, value)
        return made

    def _sequence(self, place: Place, depth: int) -> list[Any]:
        made: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            inner = (*place, len(made))
            self._result.lines[inner] = _line(event)
            made.append(self._value(event, inner, depth + 1))
        return made

    def _scalar(self, event: yaml.ScalarEvent, place: Place) -> Any:
        value = plain_scalar(event.value) if event.style in {None, ""} else event.value
        if not isinstance(value, str):
            return value
        try:
            return expanded(value, self._environment)
        except ValueError as error:
            self._problem(event, place, str(error))
            return value
