"""From a YAML file, a Python builder or canonical JSON to a Cluster."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from controlplane.errors import InvalidSpec
from controlplane.spec.document import MAX_SPEC_BYTES, Problem, Unreadable, read_yaml
from controlplane.spec.model import Cluster
from controlplane.spec.outline import Place
from controlplane.spec.report import invalid, problems_of

#: Canonical JSON names every default, so it is longer than its YAML; below gRPC's 4 MiB message.
MAX_JSON_BYTES = 3 << 20

_BUILDER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")


def load(source: str, environment: Mapping[str, str] | None = None) -> Cluster:
    """Return the cluster of a YAML file, or of ``module:attribute``.

    The attribute is a Cluster, or something that is called without arguments and returns one; the module is looked for
    in the working directory too. ``environment`` fills the YAML's variables; None: the process's own. Raises
    InvalidSpec, whose message has one line for each thing that is wrong.
    """
    if _BUILDER.fullmatch(source) and not Path(source).exists():
        return _from_builder(source)
    if source.endswith(".py"):
        raise InvalidSpec(f"{source}: a Python builder is named module:attribute, like package.module:cluster")
    return from_yaml(_text_of(source), source, os.environ if environment is None else environment)


def from_yaml(text: str, source: str = "spec", environment: Mapping[str, str] | None = None) -> Cluster:
    """Return the cluster that the YAML describes; ``source`` is its name in errors.

    Its variables are taken from ``environment`` alone. Raises InvalidSpec.
    """
    if len(text.encode(errors="replace")) > MAX_SPEC_BYTES:
        raise InvalidSpec(f"{source}: is larger than {MAX_SPEC_BYTES} bytes")
    try:
        document = read_yaml(text, environment or {})
    except Unreadable as error:
        raise invalid(source, [error.problem]) from None
    problems = document.problems
    cluster, found = _validated(document.data, document.line)
    taken = {problem.place for problem in problems}
    problems += [problem for problem in found if problem.place not in taken]
    if cluster is None or problems:
        raise invalid(source, problems)
    return cluster


def from_json(text: str) -> Cluster:
    """Return the cluster of ``to_json``'s text. Variables are not expanded. Raises InvalidSpec."""
    if len(text.encode(errors="replace")) > MAX_JSON_BYTES:
        raise InvalidSpec(f"spec: is larger than {MAX_JSON_BYTES} bytes of JSON")
    try:
        data = json.loads(text, object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError) as error:
        raise InvalidSpec(f"spec: is not JSON: {error}") from None
    cluster, problems = _validated(data, lambda _: 0)
    if cluster is None:
        raise invalid("spec", problems)
    return cluster


def _validated(data: Any, line: Callable[[Place], int]) -> tuple[Cluster | None, list[Problem]]:
    if not isinstance(data, dict):
        place: Place = ()
        return None, [Problem(line(place), place, "must be a mapping of keys, starting with 'cluster'")]
    try:
        return Cluster.model_validate(data), []
    except ValidationError as error:
        return None, problems_of(error, data, line)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is repeated")
    return made


def _text_of(source: str) -> str:
    try:
        with Path(source).open("rb") as file:
            data = file.read(MAX_SPEC_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise InvalidSpec(f"{source}: cannot be read: {reason} (a Python builder is named module:attribute)") from None
    if len(data) > MAX_SPEC_BYTES:
        raise InvalidSpec(f"{source}: is larger than {MAX_SPEC_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidSpec(f"{source}:{line}: is not UTF-8") from None


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _from_builder(source: str) -> Cluster:
    module_name, _, attribute = source.partition(":")
    try:
        with _working_directory_importable():
            made = getattr(importlib.import_module(module_name), attribute)
            if callable(made):
                made = made()
    except ValidationError as error:
        line = _line_of(error, source)
        raise invalid(line, problems_of(error, None, lambda _: 0)) from error
    except (Exception, SystemExit) as error:
        raise InvalidSpec(f"{_line_of(error, source)}: {type(error).__name__}: {error}") from error
    if not isinstance(made, Cluster):
        raise InvalidSpec(f"{source}: is a {type(made).__name__}, not a Cluster or a function that returns one")
    return made


def _line_of(error: BaseException, source: str) -> str:
    """Return file and line of the last frame that is the operator's own, else the source's name."""
    skipped = (str(Path(__file__).parent), "<frozen", str(Path(importlib.__file__ or "").parent))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(skipped) and "site-packages" not in frame.filename:
            return f"{frame.filename}:{frame.lineno}"
    return source
