"""``slipstream replay``: a router's journal again, with the same policies or with another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from controlplane import __version__
from controlplane.cli import output
from controlplane.cli.client import CommandFailed
from controlplane.cli.options import JsonOption

if TYPE_CHECKING:
    from controlplane.simulation.replay import Replay
    from controlplane.simulation.replay_counterfactual import Figures

METHOD = (
    "measured: as recorded. modelled: the recorded requests on modelled engines, made as fast as the recorded policy "
    "was; then the other policy on the same engines. Compare these two, and the first of them with what was measured "
    "to see how far the model is off. docs/replay.md says how it is made."
)
COLUMNS = ("Policy", "TTFT mean", "TTFT p99", "TPOT mean", "Hit rate", "Answered", "Imbalance", "Regret")

JournalArgument = Annotated[
    Path, typer.Argument(help="A folder of journals (its newest run), or a file, with those that follow it.")
]
PolicyOption = Annotated[str | None, typer.Option("--policy", help="What would this policy have done?")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V", help="A parameter of --policy; repeatable.")
]
ModelOption = Annotated[str, typer.Option("--model", help="The model that --policy is for. Default: all.")]


def replay(
    journal: JournalArgument,
    policy: PolicyOption = None,
    settings: SetOption = None,
    model: ModelOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a journal's decisions again and compare each; exits 1 when one that must be the same is not."""
    from controlplane.simulation.replay_counterfactual import other_policy, run

    if policy is None and (settings or model):
        raise CommandFailed("--set and --model say more of --policy, which is not there", 2)
    other = None if policy is None else other_policy(policy, _parameters(settings or ()), model)
    try:
        with _bar(shown=not as_json) as bar:
            result, figures = run(journal, other, lambda name: _task(bar, name))
    except OSError as error:  # also a file that the router's rotation deleted meanwhile
        raise CommandFailed(f"the journal cannot be read: {error}") from error
    if as_json:
        output.print_json(_plain(result, figures))
    else:
        _print(result, figures)
    if result.recorded.exact and not result.identical:
        raise typer.Exit(1)


def _parameters(settings: Sequence[str]) -> dict[str, float]:
    parameters: dict[str, float] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            parameters[name] = float(value)
        except ValueError:
            raise CommandFailed(f"--set {setting[:60]!r}: write NAME=NUMBER", 2) from None
    return parameters


@contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    visible = shown and output.errors.is_terminal
    with Progress(*columns, console=output.errors, transient=True, disable=not visible) as bar:
        yield bar


def _task(bar: Progress, name: str) -> Callable[[int, int], None]:
    task = bar.add_task(name, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def _plain(result: Replay, figures: Mapping[str, Figures]) -> dict[str, object]:
    recorded, first = result.recorded, result.first
    return {
        "journal": {
            "files": [str(path) for path in recorded.paths],
            "cluster": recorded.cluster,
            "run": recorded.start.run,
            "from_start": recorded.start.from_start and recorded.start.file == 1,
            "lines_missing": recorded.gaps,
            "last_line_cut": recorded.cut,
            "seconds": recorded.ended_s - recorded.began_s,
        },
        "replay": {
            "exact_expected": recorded.exact,
            "identical": result.identical,
            "decisions": result.decisions,
            "different": result.different,
            "different_choices": result.different_choices,
            "digest": result.digest,
            "first_difference": None
            if first is None
            else {
                "line": first.place,
                "request_id": first.request_id.decode(errors="replace"),
                "parts": {name: {"recorded": str(was), "now": str(now)} for name, (was, now) in first.parts.items()},
            },
        },
        "models": {model: told.summary() for model, told in figures.items()},
        "method": METHOD if figures else "",
    }


def _print(result: Replay, figures: Mapping[str, Figures]) -> None:
    recorded = result.recorded
    length = output.age(recorded.ended_s - recorded.began_s)
    _say(f"{recorded.cluster}, run {recorded.start.run}: {result.decisions} decisions in {length}")
    if not recorded.exact:
        why = f"{recorded.gaps} lines are missing" if recorded.gaps else "it does not begin at the router's start"
        _say(f"this journal cannot be replayed to the bit: {why}; the state was cold or is not whole")
    if recorded.start.program != __version__:
        _say(f"written by version {recorded.start.program}, replayed by {__version__}: policies may have changed")
    if recorded.cut:
        _say("the last line was cut off, and is left out")
    if result.identical:
        _say(f"all {result.decisions} decisions are the same again, servers and scores, to the bit")
    else:
        share = 1 - result.different_choices / result.decisions
        _say(f"{result.different} decisions differ, {result.different_choices} in what was chosen ({share:.2%} agree)")
    if result.first is not None:
        _say(f"first at {result.first.place}, request {result.first.request_id.decode(errors='replace')}:")
        for name, (was, now) in result.first.parts.items():
            _say(f"  {name}: recorded {was}, now {now}")
    for model, told in figures.items():
        output.table(model, COLUMNS, told.rows(), right=COLUMNS[1:])
    if figures:
        _say(METHOD)


def _say(text: str) -> None:
    output.console.print(text, markup=False)
