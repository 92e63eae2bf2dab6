"""Results as JSON for programs and Markdown for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Idle, Run
from benchmarks.summary import BASELINE, OURS, Metric, Spread, metrics, verdicts
from benchmarks.systems.base import Facts

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that one benchmark gave."""

    machine: Mapping[str, Any]
    options: Mapping[str, Any]
    systems: Mapping[str, Facts]
    missing: Mapping[str, str]  # system -> why it was not measured
    runs: Sequence[Run]
    idle: Sequence[Idle]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---:") -> str:
    """Return a Markdown table, first column to the left, the others as ``align`` says: to the right."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["---"] + [align] * (len(head) - 1)) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def number(value: float) -> str:
    """Return three significant digits, whole numbers from 100 on."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _cell(found: Spread | None) -> str:
    if found is None:
        return "-"
    return f"**{number(found.median)}** [{number(found.low)}-{number(found.high)}]"


def _figures(found: Sequence[Metric], systems: Sequence[str]) -> str:
    shown = ((f"{m.name}, {m.unit}", *(_cell(m.of(s)) for s in systems)) for m in found)
    return table(("metric", *systems), shown)


def _ratios(found: Sequence[Metric], peers: Sequence[str]) -> str:
    compared = (m for m in found if OURS in m.values and not m.name.startswith("added"))
    return table(("Slipstream / peer", *peers), ((m.name, *(_cell(m.ratio(p)) for p in peers)) for m in compared))


def _goals(found: Sequence[Metric]) -> str:
    rows = []
    for verdict in verdicts(found):
        goal = verdict.goal
        against = f"{goal.limit:g}x {goal.peer}" if goal.peer else f"{goal.limit:g} ms"
        met = "-" if verdict.measured is None else "yes" if verdict.met else "**no**"
        rows.append((goal.metric, against, _cell(verdict.measured), met))
    return table(("goal", "at most", "measured", "met"), rows)


def _split(runs: Sequence[Run]) -> str:
    """CPU per request of each of our ingress processes."""
    sums: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        if run.system == OURS and not run.refused:
            for label, seconds in run.ingress_cpu_s.items():
                sums.setdefault((run.cell, label), []).append(1e6 * seconds / max(1, run.counted.completed))
    labels = sorted({label for _, label in sums})
    cells = dict.fromkeys(cell for cell, _ in sums)
    rows = ((c, *(number(sorted(sums[c, la])[len(sums[c, la]) // 2]) for la in labels)) for c in cells)
    return table(("us per request", *labels), rows)


def _failures(runs: Sequence[Run]) -> str:
    sent: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    for run in runs:
        sent[run.system] += run.report.sent
        failed[run.system] += run.report.failed
        kinds.setdefault(run.system, Counter()).update(run.report.failures)
    rows = (
        (s, f"{sent[s]:,}", f"{failed[s]:,}", ", ".join(f"{k}: {n}" for k, n in kinds[s].items()) or "-") for s in sent
    )
    return table(("system", "requests", "failed", "how"), rows)


def _refused(runs: Sequence[Run]) -> str:
    refused = [r for r in runs if r.refused]
    if not refused:
        return "No run was refused."
    lines = [f"{len(refused)} of {len(runs)} runs were refused and are in no figure:", ""]
    told = Counter((r.system, r.cell, r.refused.split(" (")[0]) for r in refused)
    lines += [f"- {system}, {cell}: {why} ({n} times)" for (system, cell, why), n in told.items()]
    return "\n".join(lines)


def _idle(idle: Sequence[Idle]) -> str:
    rows = [
        (i.label, f"{100 * i.cpu_share:.2f}", number(i.memory.rss_bytes / MIB), number(i.memory.pss_bytes / MIB))
        for i in idle
    ]
    total = [
        sum(values)
        for values in zip(*((i.cpu_share, i.memory.rss_bytes, i.memory.pss_bytes) for i in idle), strict=True)
    ]
    if total:
        rows.append(("all", f"{100 * total[0]:.2f}", number(total[1] / MIB), number(total[2] / MIB)))
    return table(("process", "% of a core", "RSS MiB", "PSS MiB"), rows)


def markdown(results: Results) -> str:
    """Return the whole report."""
    found = metrics(results.runs)
    systems = list(results.systems)
    peers = [s for s in systems if s not in {OURS, BASELINE}]
    foreign = sorted(r.foreign_cpu_s / r.window_s for r in results.runs)
    parts = [
        "# Benchmark results",
        "How to read them: docs/benchmarks.md. Figures are **median** [least-greatest] over rounds.",
    ]
    parts += [table(("machine", ""), ((k, str(v)) for k, v in results.machine.items()), "---")]
    parts += [
        table(
            ("system", "version", "configuration"),
            ((n, f.version, f.configuration) for n, f in results.systems.items()),
            "---",
        )
    ]
    parts += [f"Not measured: {name}: {why}" for name, why in results.missing.items()]
    parts += ["## Goals", _goals(found), "## Ratios", _ratios(found, peers), "## Figures", _figures(found, systems)]
    parts += ["## Slipstream's CPU, by process", _split(results.runs)]
    if results.idle:
        parts += ["## Slipstream idle", _idle(results.idle)]
    parts += ["## Failures", _failures(results.runs), "## Refused runs", _refused(results.runs)]
    if foreign:
        busy = f"median {foreign[len(foreign) // 2]:.2f}, greatest {foreign[-1]:.2f}"
        parts.append(f"Cores kept busy by what is not part of the benchmark: {busy}.")
    parts.append(f"Options: `{json.dumps(dict(results.options))}`")
    return "\n\n".join(parts) + "\n"


def _rounded(value: Any) -> Any:
    """Return ``value`` with six decimals at most, all the way down: a microsecond of seconds is enough."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def as_json(results: Results) -> str:
    """Return the summary, then all runs, one in a line."""
    found = metrics(results.runs)
    peers = [s for s in results.systems if s not in {OURS, BASELINE}]
    summary = [
        {
            "metric": m.name,
            "unit": m.unit,
            "lower_is_better": m.lower_is_better,
            "systems": {s: asdict(v) for s in m.values if (v := m.of(s))},
            "ratios": {p: asdict(v) for p in peers if (v := m.ratio(p))},
        }
        for m in found
    ]
    goals = [
        {**asdict(v.goal), "measured": asdict(v.measured) if v.measured else None, "met": v.met}
        for v in verdicts(found)
    ]
    whole = {
        "machine": dict(results.machine),
        "options": dict(results.options),
        "systems": {name: asdict(facts) for name, facts in results.systems.items()},
        "missing": dict(results.missing),
        "goals": goals,
        "summary": summary,
        "idle": [asdict(i) for i in results.idle],
    }
    runs = ",\n".join(json.dumps(_rounded(asdict(r)), separators=(",", ":")) for r in results.runs)
    return json.dumps(_rounded(whole), indent=1)[:-2] + f',\n "runs": [\n{runs}\n ]\n}}\n'


def write(results: Results, folder: Path, name: str) -> tuple[Path, Path]:
    """Write ``name``.json and ``name``.md below ``folder``; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{name}.json", folder / f"{name}.md"
    made[0].write_text(as_json(results))
    made[1].write_text(markdown(results))
    return made
