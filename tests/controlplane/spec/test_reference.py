"""docs/spec.md names every key with its default, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from controlplane.spec.engines import Part
from controlplane.spec.report import _PARTS

REFERENCE = (Path(__file__).parents[3] / "docs" / "spec.md").read_text()
ROW = re.compile(r"\| `(?P<key>[a-z0-9_]+)` \| (?P<type>.+?) \| (?P<default>.*?) \| .* ?\|")


def _rows(part: type[Part]) -> dict[str, str]:
    section = re.search(rf"^#+ `{part.__name__}`.*?(?=^#|\Z)", REFERENCE, re.M | re.S)
    assert section is not None, f"{part.__name__} has no section"
    return {row["key"]: row["default"].strip("`") for row in ROW.finditer(section[0])}


@pytest.mark.parametrize("part", list(_PARTS.values()), ids=lambda part: part.__name__)
def test_keys_and_defaults(part: type[Part]) -> None:
    rows = _rows(part)
    assert list(rows) == list(part.model_fields)
    for key, field in part.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if key == "kind" or field.is_required():
            assert rows[key] == "required"
        elif isinstance(default, bool):
            assert rows[key] == str(default).lower()
        elif isinstance(default, int | float):
            assert float(rows[key]) == default
        elif isinstance(default, str) and key != "name":
            assert rows[key].strip('"') == default


def test_every_part_is_known_to_the_error_report() -> None:
    assert set(_PARTS.values()) == set(_subclasses(Part))


def _subclasses(part: type[Part]) -> list[type[Part]]:
    return [found for direct in part.__subclasses__() for found in (direct, *_subclasses(direct))]
