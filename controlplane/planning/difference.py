"""The difference between two specs, for people: named changes and a unified diff."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

#: Lines of a diff that are shown around a change.
CONTEXT_LINES = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """One change of the spec: add_model, change_pool, remove_node, change_gateway, ..."""

    action: str
    subject: str
    detail: str


def spec_changes(old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]]) -> list[Difference]:
    """Return the changes between two outlines.

    An outline maps a subject (``model/tiny``, ``pool/tiny-mixed``, ``gateway``) to its settings as text.
    """
    found = [
        Difference(f"remove_{_kind(subject)}", subject, "no longer in the spec")
        for subject in old
        if subject not in new
    ]
    for subject, settings in new.items():
        if subject not in old:
            shown = ", ".join(f"{key} {value}" for key, value in settings.items() if value)
            found.append(Difference(f"add_{_kind(subject)}", subject, shown))
            continue
        before = old[subject]
        changed = [
            key for key in [*before, *(k for k in settings if k not in before)] if before.get(key) != settings.get(key)
        ]
        if changed:
            shown = ", ".join(
                f"{key}: {before.get(key, '') or 'none'} -> {settings.get(key, '') or 'none'}" for key in changed
            )
            found.append(Difference(f"change_{_kind(subject)}", subject, shown))
    return found


def unified(old: str, new: str) -> str:
    """Return the unified diff of two YAML texts, empty when they are equal."""
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), "applied", "proposed", n=CONTEXT_LINES, lineterm=""
    )
    return "".join(line + "\n" for line in lines)


def _kind(subject: str) -> str:
    return subject.partition("/")[0]
