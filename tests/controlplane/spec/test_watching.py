"""What only watches decisions: the journal and shadow policies, from a spec to the router."""

from __future__ import annotations

import pytest

from controlplane.errors import InvalidSpec
from controlplane.router import convert as router_convert
from controlplane.router.convert import InvalidTopology
from controlplane.router.journal_settings import JournalInfo, WatchedTopology
from controlplane.routing.shadow import ShadowInfo
from controlplane.spec import convert as spec_convert
from controlplane.spec import from_json, from_yaml, to_json, to_yaml
from dataplane.pb.topology_pb2 import Journal, Model, Routing, Shadow, Topology

SPEC = """\
cluster: c
{top}
models:
  - name: m
    routing: {{policy: cost{shadow}}}
    pools: [{{engine: {{kind: simulated}}}}]
"""


def topology(top: str = "", shadow: str = "") -> WatchedTopology:
    cluster = from_yaml(SPEC.format(top=top, shadow=shadow))
    assert from_yaml(to_yaml(cluster)) == cluster
    assert from_json(to_json(cluster)) == cluster
    message = Topology(
        number=1, cluster="c", models=spec_convert.models(cluster), journal=spec_convert.journal(cluster)
    )
    taken = router_convert.topology(Topology.FromString(message.SerializeToString()))
    assert isinstance(taken, WatchedTopology)
    return taken


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("routing: {journal: off}", None),
        ("routing: {journal: {mode: off}}", None),
        ("routing: {journal: full}", JournalInfo(1.0, 64 << 20, 16)),
        ("routing: {journal: {sampled: 0.05}}", JournalInfo(0.05, 64 << 20, 16)),
        ("routing: {journal: {mode: full, file_bytes: 8MiB, files: 3}}", JournalInfo(1.0, 8 << 20, 3)),
    ],
)
def test_a_journal_reaches_the_router(text: str, expected: JournalInfo | None) -> None:
    assert topology(text).journal == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        (", shadow: round_robin", {"m": ShadowInfo("round_robin")}),
        (
            ", shadow: {policy: cost, parameters: {interference: 1}, share: 0.1}",
            {"m": ShadowInfo("cost", {"interference": 1.0}, 0.1)},
        ),
    ],
)
def test_a_shadow_reaches_the_router(text: str, expected: dict[str, ShadowInfo]) -> None:
    assert topology(shadow=text).shadows == expected


@pytest.mark.parametrize(
    ("top", "shadow", "message"),
    [
        ("routing: {journal: loud}", "", "journal"),
        ("routing: {journal: {sampled: 0}}", "", "share"),
        ("routing: {journal: {sampled: 1}}", "", "share"),
        ("routing: {journal: {mode: full, files: 1}}", "", "files"),
        ("routing: {journal: {mode: full, file_bytes: 1KiB}}", "", "file_bytes"),
        ("routing: {journal: {mode: full, folder: /etc}}", "", "folder: unknown key"),
        ("", ", shadow: astrology", "shadow.*unknown policy 'astrology'"),
        ("", ", shadow: {policy: cost, parameters: {nonsense: 1}}", "shadow.*unknown parameter 'nonsense'"),
        ("", ", shadow: {policy: cost, parameters: {interference: -1}}", "shadow.*interference is -1"),
        ("", ", shadow: {policy: cost, share: 0}", "share"),
        ("", ", shadow: {share: 1}", "shadow.policy: missing"),
    ],
)
def test_what_may_not_be_is_named(top: str, shadow: str, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        from_yaml(SPEC.format(top=top, shadow=shadow))


@pytest.mark.parametrize(
    "message",
    [
        Topology(journal=Journal(share=2.0)),
        Topology(journal=Journal(share=1.0, files=1)),
        Topology(journal=Journal(share=1.0, file_bytes=1)),
        Topology(journal=Journal(share=float("nan"))),
        Topology(models=[Model(name="m", routing=Routing(shadow=Shadow(policy="cost", share=-1.0)))]),
    ],
)
def test_a_router_refuses_what_no_controller_should_say(message: Topology) -> None:
    with pytest.raises(InvalidTopology):
        router_convert.topology(message)
