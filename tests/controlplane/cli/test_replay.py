from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from controlplane.cli.client import CommandFailed
from controlplane.cli.main import app
from controlplane.cli.shadow import row
from controlplane.errors import NotFound
from controlplane.router.journal_files import journals
from controlplane.routing.errors import UnknownPolicy
from controlplane.simulation.replay_read import BrokenJournal
from dataplane.pb.routing_pb2 import ShadowStatus
from tests.controlplane.simulation.test_replay import write

FIGURES = {"ttft_mean_s", "ttft_p99_s", "tpot_mean_s", "hit_rate", "success_rate", "imbalance"}


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    write(folder, 800)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["replay", *map(str, arguments)])


def test_the_same_policies_are_compared_to_the_bit(journal: Path) -> None:
    told = run(journal)
    assert told.exit_code == 0
    assert "all 800 decisions are the same again, servers and scores, to the bit" in told.output


def test_json_for_the_same_policies(journal: Path) -> None:
    told = json.loads(run(journal, "--json").output)
    assert told["replay"]["identical"] is told["replay"]["exact_expected"] is True
    assert told["replay"]["decisions"] == 800
    assert told["models"] == {}


def test_a_policy_that_was_recorded_needs_no_model(journal: Path) -> None:
    assert json.loads(run(journal, "--policy", "cost", "--model", "chat", "--json").output)["models"] == {}


def test_another_policy_is_modelled_beside_the_recorded_one(journal: Path) -> None:
    told = json.loads(run(journal, "--policy", "round_robin", "--json").output)
    assert told["replay"]["identical"] is True
    assert set(told["models"]) == {"chat", "code", "mail", "dice"}
    chat = told["models"]["chat"]
    recorded, other = chat["modelled"]["recorded"], chat["modelled"]["other"]
    assert set(recorded) == set(other) == {"policy", "regret_s", *FIGURES}
    assert set(chat["measured"]) == FIGURES
    assert (recorded["policy"], other["policy"]) == ("cost", "round_robin")
    assert recorded["hit_rate"] > other["hit_rate"]
    assert recorded["regret_s"] < other["regret_s"]
    assert chat["predicted_ttft_gain_s"] == recorded["ttft_mean_s"] - other["ttft_mean_s"] < 0
    assert json.loads(run(journal, "--policy", "round_robin", "--json").output) == told


def test_a_parameter_is_set_for_one_model(journal: Path) -> None:
    told = json.loads(run(journal, "--policy", "cost", "--set", "interference=3", "--model", "chat", "--json").output)
    assert set(told["models"]) == {"chat"}


def test_the_table_says_how_it_was_made(journal: Path) -> None:
    told = run(journal, "--policy", "least_loaded", "--model", "chat")
    assert told.exit_code == 0
    for words in (
        "chat",
        "measured",
        "cost, modelled",
        "least_loaded, modelled instead",
        "Regret",
        "Compare these two",
    ):
        assert words in told.output


def test_a_difference_is_exit_code_1(journal: Path, tmp_path: Path) -> None:
    (original,) = journals(journal)
    changed = tmp_path / original.name
    changed.write_bytes(original.read_bytes().replace(b'"server":"chat-0.g1"', b'"server":"chat-1.g1"'))
    told = run(changed)
    assert told.exit_code == 1
    assert "differ" in told.output
    assert f"first at {changed.name}:" in told.output


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--set", "interference=1"), CommandFailed),
        (("--model", "chat"), CommandFailed),
        (("--policy", "cost", "--set", "interference"), CommandFailed),
        (("--policy", "astrology"), UnknownPolicy),
        (("--policy", "cost", "--set", "nonsense=1"), UnknownPolicy),
        (("--policy", "cost", "--set", "interference=-1"), UnknownPolicy),
        (("--policy", "cost", "--model", "none"), NotFound),
    ],
)
def test_what_cannot_be_asked_is_refused(journal: Path, arguments: tuple[str, ...], error: type[Exception]) -> None:
    assert isinstance(run(journal, *arguments).exception, error)


def test_a_broken_line_is_named(journal: Path, tmp_path: Path) -> None:
    (original,) = journals(journal)
    broken = tmp_path / original.name
    found = original.read_bytes().splitlines(keepends=True)
    found[500] = b"not a line\n"
    broken.write_bytes(b"".join(found))
    told = run(broken)
    assert isinstance(told.exception, BrokenJournal)
    assert "line 501: expected one JSON object" in str(told.exception)
    assert told.output == ""


def test_a_shadow_s_line() -> None:
    told = ShadowStatus(model="m", policy="cost", share=0.5, decisions=200, agreed=50, routed_s=20, shadow_s=10)
    told.routed_regret_s, told.shadow_regret_s = 12.0, 2.0
    assert row(told) == ("m", "cost (0.5 of all)", "200", "25.0%", "+50.00 ms", "60.00 ms", "10.00 ms", "running")
    assert row(ShadowStatus(model="m", policy="cost", share=1.0))[3] == "-"
    assert row(ShadowStatus(model="m", policy="cost", share=1.0, failures=8, off=True))[-1] == "off: it failed"
