"""``slipstream simulate``: routing policies against modelled engines, before any GPU is rented."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from controlplane.cli import output
from controlplane.cli.client import CommandFailed
from controlplane.cli.options import JsonOption

if TYPE_CHECKING:
    from controlplane.simulation.fleet import Fleet
    from controlplane.simulation.outcome import Outcome
    from controlplane.simulation.study import Study

COLUMNS = (
    "policy",
    "ttft mean",
    "ttft p50",
    "ttft p99",
    "tpot mean",
    "end to end",
    "hit rate",
    "answered",
    "imbalance",
    "req/s",
)

Spec = Annotated[
    str | None, typer.Argument(help="A spec whose replicas and routing are simulated. Default: --replicas of one kind.")
]
Trace = Annotated[
    Path | None,
    typer.Option("--trace", help="Requests from a file: Mooncake's JSON lines or Azure's .csv; .gz of either."),
]
Speedup = Annotated[float | None, typer.Option("--speedup", help="Times as fast as the trace. Default: 1.")]
Copies = Annotated[
    int | None, typer.Option("--copies", help="Copies of the trace, shifted in time, with content of their own.")
]
WorkloadName = Annotated[
    str | None, typer.Option("--workload", help="Requests made up: agentic, shared_prefix or conversation.")
]
Rate = Annotated[float | None, typer.Option("--rate", help="Requests a second: shared_prefix and conversation.")]
Users = Annotated[int | None, typer.Option("--users", help="Agents in a closed loop: agentic.")]
Duration = Annotated[float | None, typer.Option("--duration", help="Seconds of requests made up. Default: 300.")]
Replicas = Annotated[int | None, typer.Option("--replicas", help="Replicas that answer. Default: the spec's, else 8.")]
PrefillReplicas = Annotated[
    int | None, typer.Option("--prefill-replicas", help="Replicas that only prefill, for those. Default: the spec's.")
]
ModelName = Annotated[str, typer.Option("--model", help="Which of the spec's models.")]
PolicyName = Annotated[str | None, typer.Option("--policy", help="Default: the spec's, else the default policy.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="A parameter of --policy; repeatable.")]
Compare = Annotated[
    str | None,
    typer.Option("--compare", help="Policies to list beside it, with commas: all, names, oracle, shared."),
]
FindCapacity = Annotated[
    str | None,
    typer.Option("--find-capacity", metavar="FIGURE=TIME", help="How many replicas hold a limit: ttft_p99=1s."),
]
Precise = Annotated[
    bool,
    typer.Option("--precise", help="The router knows each engine's cache, as from KV events. Default: the spec's."),
]
ReportDelay = Annotated[
    float | None, typer.Option("--report-delay", help="Seconds until the router hears of a first byte. Default: 0.02.")
]
ScrapeInterval = Annotated[
    float | None, typer.Option("--scrape-interval", help="Seconds between reads of an engine's gauges; 0: never.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of requests made up, and of policies that draw lots.")]
Plots = Annotated[Path | None, typer.Option("--plots", help="Folder for plots as PNG and SVG; needs matplotlib.")]


def simulate(
    spec: Spec = None,
    trace: Trace = None,
    speedup: Speedup = None,
    copies: Copies = None,
    workload: WorkloadName = None,
    rate: Rate = None,
    users: Users = None,
    duration: Duration = None,
    replicas: Replicas = None,
    prefill_replicas: PrefillReplicas = None,
    model: ModelName = "",
    policy: PolicyName = None,
    settings: Set = None,
    compare: Compare = None,
    find_capacity: FindCapacity = None,
    precise: Precise = False,
    report_delay: ReportDelay = None,
    scrape_interval: ScrapeInterval = None,
    seed: Seed = 0,
    plots: Plots = None,
    as_json: JsonOption = False,
) -> None:
    """Try routing policies on simulated engines: TTFT, TPOT, hit rate and load, without a GPU."""
    from controlplane.simulation import capacity, plotting
    from controlplane.simulation.setting import Setting

    wanted = capacity.limit(find_capacity) if find_capacity is not None else None
    setting = Setting(
        trace=trace,
        speedup=speedup,
        copies=copies,
        workload=workload,
        rate=rate,
        users=users,
        duration_s=duration,
        replicas=replicas,
        prefill_replicas=prefill_replicas,
        policy=policy,
        parameters=_parameters(settings or []),
        compare=tuple(compare.split(",")) if compare is not None else (),
        seed=seed,
        precise=precise,
        report_delay_s=report_delay,
        scrape_interval_s=scrape_interval,
    )
    if plots is not None:
        plotting.check()
    study, names = setting.study(_fleet(spec, model))
    asked = study.workload().name
    outcomes: dict[str, Outcome] = {}
    needed: dict[str, int] = {}
    with _bar(shown=not as_json) as bar:
        for name in names:
            advance = _task(bar, name, study.workload().expected)
            if wanted is None:
                outcomes[name] = study.run(name, advance)
            else:
                found = capacity.find(study, name, wanted, advance)
                needed[name], outcomes[name] = found.replicas, found.outcome
    if as_json:
        _print_json(outcomes, needed, find_capacity)
    else:
        replicas_told = f"replicas for {find_capacity}" if wanted is not None else _size(study)
        _print_table(f"{asked}, {replicas_told}", outcomes, needed)
    if plots is not None:
        for path in plotting.write(plots, asked, list(outcomes.values())):
            output.errors.print(f"wrote {path}", markup=False)


def _size(study: Study) -> str:
    prefill = len(study.prefill_engines)
    return f"{len(study.engines)} replicas" + (f", {prefill} more prefill" if prefill else "")


def _parameters(settings: Sequence[str]) -> dict[str, float]:
    parameters: dict[str, float] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        try:
            parameters[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise CommandFailed(f"--set {setting[:60]!r}: write NAME=NUMBER", 2)
    return parameters


def _fleet(spec: str | None, model: str) -> Fleet | None:
    # The spec package costs 0.3 s to import; a simulation without a spec must not pay it.
    if spec is None:
        if model:
            raise CommandFailed("--model chooses one of a spec's models, and there is no spec", 2)
        return None
    from controlplane.simulation.fleet import fleet
    from controlplane.spec import load

    return fleet(load(spec), model)


@contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    visible = shown and output.errors.is_terminal
    with Progress(*columns, console=output.errors, transient=True, disable=not visible) as bar:
        yield bar


def _task(bar: Progress, name: str, expected: int) -> Callable[[int, float], None]:
    task = bar.add_task(name, total=expected or None)
    return lambda done, now_s: bar.update(task, completed=done)


def _print_json(outcomes: Mapping[str, Outcome], needed: Mapping[str, int], limit: str | None) -> None:
    told: dict[str, object] = {"policies": {name: outcome.summary() for name, outcome in outcomes.items()}}
    if limit is not None:
        told["capacity"] = {"limit": limit, "replicas": dict(needed)}
    output.print_json(told)


def _print_table(title: str, outcomes: Mapping[str, Outcome], needed: Mapping[str, int]) -> None:
    rows = []
    for name, outcome in outcomes.items():
        row = [
            name,
            f"{outcome.ttft_mean_s:.3f} s",
            f"{outcome.ttft_p50_s:.3f} s",
            f"{outcome.ttft_p99_s:.2f} s",
            f"{outcome.tpot_mean_s * 1e3:.1f} ms",
            f"{outcome.end_to_end_mean_s:.2f} s",
            f"{outcome.hit_rate:.1%}",
            f"{outcome.success_rate:.2%}",
            f"{outcome.imbalance:.2f}",
            f"{outcome.requests_per_s:.2f}",
        ]
        if needed:
            row.insert(1, str(needed[name] or "none"))
        rows.append(row)
    columns = [*COLUMNS]
    if needed:
        columns.insert(1, "replicas")
    output.table(title, columns, rows, right=columns[1:])
