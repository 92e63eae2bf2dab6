"""Pydantic's errors in an operator's words: one line each, with file, line and key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from controlplane.errors import InvalidSpec
from controlplane.spec import admission, edge, engines, model
from controlplane.spec.checks import violations
from controlplane.spec.document import Problem
from controlplane.spec.fields import nearest, shown
from controlplane.spec.outline import Place

#: Lines of one error: enough to mend a spec by, few enough to read.
MAX_PROBLEMS: Final = 100
#: Errors that are put in words; each may cost a search for what was meant.
MAX_DESCRIBED: Final = 1_000

_ENGINES: dict[str, type[engines.Part]] = {
    "simulated": engines.SimulatedEngineSpec,
    "vllm": engines.VllmEngineSpec,
    "external": engines.ExternalEngineSpec,
}
_ENGINE = ("models", "pools", "engine")
#: Path of keys, without indexes and with the engine's kind -> what stands there.
_PARTS: dict[tuple[str, ...], type[engines.Part]] = {
    (): model.Cluster,
    ("gateway",): edge.GatewaySpec,
    ("gateway", "listen"): edge.ListenSpec,
    ("limits",): edge.LimitsSpec,
    ("routing",): edge.RouterSpec,
    ("routing", "journal"): edge.JournalSpec,
    ("admin",): edge.AdminSpec,
    ("nodes",): model.NodeSpec,
    ("models",): model.ModelSpec,
    ("models", "adapters"): model.AdapterSpec,
    ("models", "routing"): model.RoutingSpec,
    ("models", "routing", "shadow"): model.ShadowSpec,
    ("models", "routing", "admission"): admission.AdmissionSpec,
    ("models", "routing", "admission", "timeouts_s"): admission.TimeoutsSpec,
    ("models", "pools"): model.PoolSpec,
    **{(*_ENGINE, kind): part for kind, part in _ENGINES.items()},
    ("api_keys",): edge.ApiKeysSpec,
    ("api_keys", "keys"): edge.ApiKeySpec,
}
_PATHS = {part.__name__: words for words, part in _PARTS.items()}
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_./-]{1,80}")
_MESSAGES = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "finite_number": "must be a finite number",
    "missing": "missing",
}


def path(place: Place) -> str:
    """Return the path as operators read it: ``models[0].pools[0].replicas``."""
    made = ""
    for step in place:
        if isinstance(step, int):
            made += f"[{step}]"
        else:
            key = step if _PLAIN_KEY.fullmatch(step) else shown(step)
            made += f".{key}" if made else key
    return made


def invalid(source: str, problems: Iterable[Problem]) -> InvalidSpec:
    """Return the error that names every problem, in the order of the lines."""
    ordered = sorted(set(problems), key=lambda p: (p.line, tuple(map(str, p.place)), p.message))
    lines = []
    for problem in ordered[:MAX_PROBLEMS]:
        where = f"{source}:{problem.line}" if problem.line else source
        key = f"{path(problem.place)}: " if problem.place else ""
        lines.append(f"{where}: {key}{problem.message}")
    if len(ordered) > MAX_PROBLEMS:
        lines.append(f"{source}: and {len(ordered) - MAX_PROBLEMS} more")
    return InvalidSpec("\n".join(lines))


def problems_of(error: ValidationError, data: Any, line: Callable[[Place], int]) -> list[Problem]:
    """Return what is wrong with ``data``: what pydantic found, and what the parts say about each other.

    ``line`` gives the line of a path of ``data``, or of one that is missing there.
    """
    root = _PATHS.get(error.title, ())
    found: dict[Place, Problem] = {}
    for detail in error.errors(include_url=False)[:MAX_DESCRIBED]:
        spot = _Spot(detail["loc"], ()) if detail["type"] == model.DISAGREEMENT else _spot(detail["loc"], root)
        place, message = _described(detail, spot)
        if message:
            found.setdefault(place, Problem(line(place), place, message))
    # Pydantic compares the parts only when each is right; here the operator is to see everything at once.
    for violation in violations(data) if isinstance(data, dict) else []:
        found.setdefault(violation.place, Problem(line(violation.place), violation.place, violation.message))
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where an error is: the path in the data, and the same in keys alone, with the engine's kind."""

    place: Place
    words: tuple[str, ...]


def _spot(location: tuple[int | str, ...], root: tuple[str, ...]) -> _Spot:
    place: list[int | str] = []
    words = list(root)
    for step in location:
        if isinstance(step, str) and tuple(words) == _ENGINE:
            words.append(step)  # pydantic's own step: the engine's kind
        elif step != "[key]":  # pydantic's mark of a mapping's key
            place.append(step)
            words += [step] if isinstance(step, str) else []
    return _Spot(tuple(place), tuple(words))


def _described(detail: ErrorDetails, spot: _Spot) -> tuple[Place, str]:
    """Return the path in the data and the message; an empty message when the error only follows from another."""
    place, kind, value = spot.place, detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        return place, f"unknown key{nearest(spot.words[-1], _PARTS[spot.words[:-1]].model_fields)}"
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        tag = value.get("kind") if isinstance(value, dict) else None
        guess = nearest(tag, _ENGINES) if isinstance(tag, str) else ""
        return (*place, "kind"), f"{'must be' if tag else 'missing:'} {_either(_ENGINES)}{guess}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return place, f"must be {_either(allowed)}{nearest(value, allowed) if isinstance(value, str) else ''}"
    if kind == "too_short":
        # Pydantic also counts the entries that are left after the wrong ones are gone: that is no error of its own.
        wrong = isinstance(value, list | tuple) and len(value) >= context["min_length"]
        return place, "" if wrong else f"must have at least {context['min_length']}"
    if kind == "too_long":
        return place, f"must have at most {context['max_length']}"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return place, "must be text: put it in quotes"
    message = _MESSAGES.get(kind) or detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return place, message


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
