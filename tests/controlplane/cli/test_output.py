from __future__ import annotations

import json

import pytest

from controlplane.cli import output
from controlplane.cli.change import is_ready, print_changes, target_of
from controlplane.cli.client import CommandFailed
from controlplane.cli.explain import print_receipt
from controlplane.cli.listing import COLUMNS, Kind
from dataplane.pb import admin_pb2, gateway_pb2, node_pb2, routing_pb2, topology_pb2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "-"), (0, "0.0s"), (9.94, "9.9s"), (12.4, "12s"), (119, "119s"), (180, "3m"), (7200, "2h"), (172_800, "2d")],
)
def test_ages_read_as_people_say_them(seconds: float, text: str) -> None:
    assert output.age(seconds) == text


def test_json_has_every_field_and_numbers_for_64_bit_integers(capsys: pytest.CaptureFixture[str]) -> None:
    view = admin_pb2.ReplicaView(replica=topology_pb2.Replica(name="a-0", generation=2**53))
    output.print_json({"views": [view], "ports": (1, 2)})
    printed = json.loads(capsys.readouterr().out)
    assert printed["views"][0]["replica"]["generation"] == 2**53
    assert printed["views"][0]["streams"] == 0
    assert printed["ports"] == [1, 2]


def test_tables_are_never_cut_and_markup_is_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    long = "replica-" + "x" * 300
    output.table("t", ("Name", "State"), [(long, "ready"), ("[bold]not bold[/]", "failed")])
    printed = capsys.readouterr().out
    assert long in printed
    assert "[bold]not bold[/]" in printed


@pytest.mark.parametrize(
    ("text", "kind"),
    [("a-0", admin_pb2.KIND_REPLICA), ("pool/a", admin_pb2.KIND_POOL), ("node/n", admin_pb2.KIND_NODE)],
)
def test_targets(text: str, kind: admin_pb2.Kind.ValueType) -> None:
    assert target_of(text) == admin_pb2.Target(kind=kind, name=text.rpartition("/")[2])


@pytest.mark.parametrize("text", ["model/a", "pool/", "/a"])
def test_wrong_targets_are_usage_errors(text: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        target_of(text)
    assert caught.value.exit_code == 2


def _answer(state: topology_pb2.ReplicaState.ValueType, applied: int) -> admin_pb2.GetResponse:
    ready = state == topology_pb2.REPLICA_STATE_READY
    return admin_pb2.GetResponse(
        pools=[admin_pb2.PoolView(name="a", replicas_wanted=1, replicas_ready=int(ready))],
        replicas=[admin_pb2.ReplicaView(replica=topology_pb2.Replica(name="a-0", state=state))],
        gateways=[
            admin_pb2.GatewayView(
                gateway=gateway_pb2.Gateway(name="gateway"),
                report=node_pb2.GatewayReport(ready=True, topology_number=applied),
            )
        ],
        topology_number=7,
    )


def test_ready_means_every_replica_and_the_gateway() -> None:
    assert is_ready(_answer(topology_pb2.REPLICA_STATE_READY, 7))
    assert not is_ready(_answer(topology_pb2.REPLICA_STATE_READY, 6))
    assert not is_ready(_answer(topology_pb2.REPLICA_STATE_STARTING, 7))
    assert not is_ready(admin_pb2.GetResponse())


@pytest.mark.parametrize("kind", list(Kind))
def test_every_listing_has_a_cell_for_each_column(kind: Kind) -> None:
    answer = _answer(topology_pb2.REPLICA_STATE_READY, 7)
    answer.models.add(name="m")
    answer.nodes.add(name="n")
    columns, rows = COLUMNS[kind]
    made = rows(answer)
    assert made
    assert all(len(row) == len(columns) for row in made)


def test_a_receipt_prints_candidates_with_signals_and_their_ages(capsys: pytest.CaptureFixture[str]) -> None:
    receipt = routing_pb2.Receipt(
        request_id="r1",
        outcome="go",
        server="a-0.g1",
        policy="prefix",
        rejected={"draining": 2},
        candidates=[
            routing_pb2.Candidate(
                server="a-0.g1", score=0.5, signals=[routing_pb2.Signal(name="in_flight", value=3, age_ms=1500)]
            ),
            routing_pb2.Candidate(server="a-1.g1", score=1.5),
        ],
        runner_up="a-1.g1",
        margin=1.0,
        completion=routing_pb2.Completion(server="a-1.g1", status=200, first_byte_ms=12, total_ms=40),
    )
    print_receipt(receipt)
    printed = capsys.readouterr().out
    for part in ("3 @ 1.5s", "a-1.g1, behind by 1", "2 draining", "200 by a-1.g1", "→"):
        assert part in printed


def test_one_change_is_not_many(capsys: pytest.CaptureFixture[str]) -> None:
    print_changes([])
    print_changes([admin_pb2.Change(action="start", subject="replica/a-0")])
    printed = capsys.readouterr().out
    assert "nothing to change" in printed
    assert "1 change " in printed
    assert "1 changes" not in printed
