"""Scenarios of orders against what is there, as text: ``scenarios/*.txt``.

A scenario is a title line ``# ...``, lines ``want NAME GENERATION [external] [grace=S]`` and ``have NAME GENERATION
LIFE``, the line ``->`` and the actions, ``nothing`` when there are none. SLIPSTREAM_REWRITE=1 writes what is decided.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.node.decide import Action, Forget, Held, Life, Probe, Start, Stop, Wanted, decide

FOLDER = Path(__file__).parent / "scenarios"
REWRITE = os.environ.get("SLIPSTREAM_REWRITE") == "1"


def shown(action: Action) -> str:
    word = type(action).__name__.lower()
    grace = f" grace={action.grace_s:g}" if isinstance(action, Stop) else ""
    return f"{word} {action.replica} {action.generation}{grace}"


def run(text: str) -> str:
    """Return the scenario with the actions that are decided."""
    given_lines = text.split("\n->", maxsplit=1)[0].splitlines()
    wanted, held = [], {}
    for line in given_lines:
        match line.split():
            case ["want", name, generation, *rest]:
                grace = next((float(word[6:]) for word in rest if word.startswith("grace=")), 5.0)
                wanted.append(Wanted(name, int(generation), "external" in rest, grace))
            case ["have", name, generation, life]:
                held[name] = Held(name, int(generation), Life(life), 10.0)
            case ["#", *_]:
                pass
            case _:
                raise ValueError(line)
    actions = [shown(action) for action in decide(wanted, held)] or ["nothing"]
    return "\n".join([*given_lines, "->", *actions]) + "\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_scenarios(path: Path) -> None:
    text = path.read_text()
    decided = "\n".join(run(scenario) for scenario in text.split("\n\n"))
    if REWRITE:
        path.write_text(decided)
    assert decided == text if not REWRITE else True


NAMES = st.sampled_from(["a-0", "a-1", "a-2"])
WANTED = st.builds(Wanted, NAMES, st.integers(1, 3), st.booleans(), st.just(5.0))
HELD = st.builds(Held, NAMES, st.integers(1, 3), st.sampled_from(Life), st.just(10.0))


def after(action: Action, held: dict[str, Held]) -> None:
    """Carry out an action as a perfect node would."""
    name = action.replica
    match action:
        case Start():
            assert name not in held
            held[name] = Held(name, action.generation, Life.RUNNING, 5.0)
        case Probe():
            assert name not in held
            held[name] = Held(name, action.generation, Life.PROBED, 5.0)
        case Stop():
            assert held[name].life is Life.RUNNING
            held[name] = Held(name, action.generation, Life.ENDED, 5.0)
        case Forget():
            assert held[name].life in {Life.ENDED, Life.PROBED}
            del held[name]


@given(st.lists(WANTED, unique_by=lambda w: w.replica), st.lists(HELD, unique_by=lambda h: h.replica))
@settings(max_examples=150, derandomize=True)
def test_it_converges_and_never_starts_a_generation_that_ended(wanted: list[Wanted], held_list: list[Held]) -> None:
    settled = {Life.STARTING: Life.RUNNING, Life.STOPPING: Life.ENDED}
    held = {h.replica: Held(h.replica, h.generation, settled.get(h.life, h.life), 10.0) for h in held_list}
    ended = {(h.replica, h.generation) for h in held.values() if h.life is Life.ENDED}
    for _ in range(3):
        for action in decide(wanted, held):
            if isinstance(action, Start):
                started = next(w for w in wanted if w.replica == action.replica)
                assert not started.external
                if (action.replica, action.generation) in ended:
                    raise AssertionError(f"{action} ended before")
            after(action, held)
    assert decide(wanted, held) == []
    assert held.keys() == {w.replica for w in wanted}


@given(st.lists(WANTED, unique_by=lambda w: w.replica), st.lists(HELD, unique_by=lambda h: h.replica))
@settings(max_examples=100, derandomize=True)
def test_what_fits_is_never_touched(wanted: list[Wanted], held_list: list[Held]) -> None:
    held = {h.replica: h for h in held_list}
    touched = {action.replica for action in decide(wanted, held)}
    for want in wanted:
        there = held.get(want.replica)
        if there and there.generation == want.generation and (there.life is Life.PROBED) == want.external:
            assert want.replica not in touched
