"""Admission in a spec: defaults, the wire, and what `plan` refuses with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.errors import InvalidSpec
from controlplane.router.convert import InvalidTopology
from controlplane.router.convert import topology as without_protobuf
from controlplane.routing.admission.settings import Settings
from controlplane.spec import convert
from controlplane.spec.loading import load
from dataplane.pb import topology_pb2

SPEC = """cluster: c
api_keys:
  keys: [{{name: k, tenant: t, sha256: '{digest}', priority: {priority}}}]
models:
  - name: m
    routing:
      admission: {admission}
    pools: [{{engine: {{kind: simulated}}}}]
"""


def _write(folder: Path, admission: str = "{}", priority: str = "high") -> Path:
    path = folder / "spec.yaml"
    path.write_text(SPEC.format(digest="0" * 64, priority=priority, admission=admission))
    return path


def _settings(path: Path) -> Settings | None:
    message = topology_pb2.Topology(models=convert.models(load(str(path))))
    return without_protobuf(message).models[0].admission


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    assert _settings(_write(tmp_path, "null")) is None
    assert _settings(_write(tmp_path)) == Settings()


def test_every_value_reaches_the_router(tmp_path: Path) -> None:
    text = (
        "{ttft_target_s: 0.5, max_requests: 7, max_tokens: 5000, tenant_requests: 3, tenant_tokens: 2000, "
        "timeouts_s: {high: 5, low: 60}, guaranteed_share: 0.1, weights: {acme: 2.5}}"
    )
    assert _settings(_write(tmp_path, text)) == Settings(0.5, 7, 5000, 3, 2000, (5.0, 30.0, 60.0), 0.1, {b"acme": 2.5})
    assert convert.api_keys(load(str(_write(tmp_path))))[0].priority == "high"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{ttft_target_s: 0}", "spec.yaml:7"),
        ("{max_requests: 2001}", "spec.yaml:7"),
        ("{tenant_tokens: 5}", "spec.yaml:7"),
        ("{guaranteed_share: 0.5}", "spec.yaml:7"),
        ("{timeouts_s: {high: 301}}", "spec.yaml:7"),
        ("{timeouts_s: {urgent: 1}}", "spec.yaml:7"),
        ("{weights: {acme: 0}}", "spec.yaml:7"),
        ("{weights: {'a b': 1}}", "spec.yaml:7"),
        ("{ttft_target: 1}", "did you mean 'ttft_target_s'"),
    ],
)
def test_what_is_out_of_range_is_refused_with_its_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(InvalidSpec, match=line):
        load(str(_write(tmp_path, text)))


def test_a_key_has_a_priority_that_is_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"spec.yaml:3.*priority"):
        load(str(_write(tmp_path, priority="urgent")))


def test_a_controller_that_went_wrong_is_not_believed() -> None:
    model = topology_pb2.Model(name="m", routing=topology_pb2.Routing(admission=topology_pb2.Admission()))
    with pytest.raises(InvalidTopology):
        without_protobuf(topology_pb2.Topology(models=[model]))
