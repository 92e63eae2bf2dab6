"""The one text of a cluster, for stores, the wire and diffs, and the JSON Schema of its YAML."""

from __future__ import annotations

import json
from typing import Any

import yaml

from controlplane.spec.document import plain_scalar
from controlplane.spec.expansion import escaped
from controlplane.spec.model import Cluster, Part


def to_json(cluster: Cluster) -> str:
    """Return the one JSON text of this cluster: every key, sorted, no white space."""
    return json.dumps(cluster.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_yaml(part: Part) -> str:
    """Return a cluster, or a part of one, as YAML with every key, in the order of the reference: for diffs."""
    return yaml.dump(
        part.model_dump(mode="json"),
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=1 << 16,
    )


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a spec's YAML."""
    schema = Cluster.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Slipstream spec"}


class _Dumper(yaml.SafeDumper):
    """Quotes what a spec's reader would take for a number, and keeps ``${`` from being expanded."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(plain_scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", escaped(text), style=style)


_Dumper.add_representer(str, _represent_text)
