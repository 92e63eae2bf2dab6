"""Another policy's figures, from a journal of one, against a run in which that other policy really routed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.router.journal import JournalledCore
from controlplane.router.journal_run import open_run
from controlplane.router.journal_settings import JournalInfo
from controlplane.routing.record import Request
from controlplane.simulation.engine import Engine
from controlplane.simulation.outcome import Outcome
from controlplane.simulation.profile import G8B
from controlplane.simulation.replay_counterfactual import Figures, other_policy, run
from controlplane.simulation.replay_prompts import Prompts
from controlplane.simulation.routed import EPOCH_S, Delays, Routed, Routing
from controlplane.simulation.run import Simulation
from controlplane.simulation.synthetic import SharedPrefix

#: The router believes 20,000 prompt tokens a second at first; these engines are slower.
PROFILE = replace(G8B, prefill_s=80e-6)


def simulated(policy: str, folder: Path | None = None) -> Outcome:
    routed = Routed(Routing(policy), Delays(report_s=0.0005))
    writer = None
    if folder is not None:
        routed.core = core = JournalledCore(receipt_capacity=1_000)
        writer = open_run(folder, core, EPOCH_S, JournalInfo())
    engines = [Engine(index, PROFILE) for index in range(4)]
    outcome = Simulation(SharedPrefix(2.5, 120.0, 1, groups=30), routed, engines, warm_up=0.0).run()
    assert writer is None or writer.close()
    return outcome


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("simulated")
    return folder, simulated("cost", folder)


def figures(folder: Path, policy: str) -> Figures:
    result, found = run(folder, other_policy(policy, {}, ""), lambda name: lambda done, total: None)
    assert result.identical
    return found["simulated"]


def test_what_was_measured_is_what_happened(journal: tuple[Path, Outcome]) -> None:
    folder, truth = journal
    measured = figures(folder, "round_robin").measured
    assert measured is not None
    assert measured.ttft_mean_s == pytest.approx(truth.ttft_mean_s, rel=0.1)
    assert measured.tpot_mean_s == pytest.approx(truth.tpot_mean_s, rel=0.1)
    assert measured.hit_rate == pytest.approx(truth.hit_rate, rel=0.05)
    assert measured.imbalance == pytest.approx(truth.imbalance, rel=0.1)


def test_modelled_engines_are_as_fast_as_the_real_ones(journal: tuple[Path, Outcome]) -> None:
    told = figures(journal[0], "round_robin")
    assert told.measured is not None
    assert told.recorded.outcome.ttft_mean_s == pytest.approx(told.measured.ttft_mean_s, rel=0.1)
    assert told.recorded.outcome.tpot_mean_s == pytest.approx(told.measured.tpot_mean_s, rel=0.1)


@pytest.mark.parametrize("policy", ["round_robin", "least_loaded"])
def test_another_policy_comes_out_about_as_it_would_have(journal: tuple[Path, Outcome], policy: str) -> None:
    folder, recorded_truth = journal
    truth = simulated(policy)
    told = figures(folder, policy)
    assert told.other.outcome.ttft_mean_s == pytest.approx(truth.ttft_mean_s, rel=0.35)
    assert told.other.outcome.hit_rate == pytest.approx(truth.hit_rate, abs=0.12)
    # The order is what people ask for.
    assert truth.ttft_mean_s > recorded_truth.ttft_mean_s
    assert told.other.outcome.ttft_mean_s > told.recorded.outcome.ttft_mean_s
    assert told.other.regret_s > told.recorded.regret_s


def test_equal_beginnings_become_equal_blocks() -> None:
    prompts = Prompts(1_024)

    def blocks(hashes: bytes, tokens: int = 10_000, tenant: bytes = b"", model: bytes = b"m") -> list[int]:
        size = len(hashes) // 8 * 4_096
        request = Request(True, 1, 1, model, b"", b"", hashes, size, size, 0, tenant, "", "")
        return prompts.blocks(request, tokens, tenant)

    first = blocks(b"a" * 8 + b"b" * 8)
    assert len(first) == 4
    assert blocks(b"a" * 8 + b"c" * 8)[:2] == first[:2]
    assert not set(blocks(b"b" * 8)) & set(first), "the same block after another beginning is another content"
    assert not set(blocks(b"a" * 8, tenant=b"other")) & set(first)
    assert not set(blocks(b"a" * 8, model=b"adapter")) & set(first)
    assert blocks(b"a" * 8 + b"b" * 8, tokens=1_500) == first[:2], "no more than the prompt has"
