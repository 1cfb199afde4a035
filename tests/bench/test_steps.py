"""The walk over what switches with size: its table, and that it finds a step. No assertion on real time."""

from __future__ import annotations

import re

import pytest

from bench import cases, steps, walks


def test_every_constant_is_crossed_or_has_a_reason():
    """A new constant needs a walk across it, or a place among those at which nothing switches."""
    excused = " ".join(walks.PIECES.values()).split()
    crossed = {name for name in walks.crossed() if ":" not in name}
    assert len(excused) == len(set(excused))
    assert crossed | set(excused) == walks.named()
    assert not crossed & set(excused)


def test_constants_of_the_core_are_found():
    found = {name: walks.constant(name) for name in walks.crossed() if ":" in name}
    assert found == {
        "plan.h:most_feature_pairs": 1 << 18,
        "plan.h:most_sliced_pairs": 1 << 12,
        "plan.h:slice": 240 * 192,
        "isa/kernels.h:span": 48 * 192,
    }


@pytest.mark.parametrize("name", cases.SWITCHES)
def test_bench_has_both_sides_of_each_switch(name):
    walk, (part, _, below, above) = walks.walks()[name], cases.SWITCHES[name]
    assert part == walk.part
    assert getattr(above, walk.varied) == getattr(below, walk.varied) + 1
    assert walk.decides(below) != walk.decides(above)


@pytest.mark.parametrize("name", ["class-tiles", "strip", "feature-pairs", "span"])
def test_walks_cross_what_they_are_about(name):
    ((below, above),) = walks.walks()[name].pairs()
    assert above == below + 1


def test_forms_change_along_their_walks():
    forms = [name for name in walks.walks() if "-form-" in name]
    changes = {name: len(list(walks.walks()[name].pairs())) for name in forms}
    assert forms and all(changes.values()), changes


def test_a_step_is_reported(monkeypatch, capsys):
    """Calls that take 1 and 2 seconds by a clock of our own."""
    walk = walks.Walk("x._Y", cases.Sizes(4, 3, 2), "N", (4, 9), lambda B: B, decides=lambda s: s.N > 6)
    monkeypatch.setattr(steps, "walks", lambda: {"ours": walk})
    monkeypatch.setattr(steps, "clock", lambda call, inner=1: 1.0 + (call.args[1].case.sizes.N > 6))
    assert steps.report([]) == ["ours: N 6 -> 7 at N=4 d=3 C=2: 2.00  (x._Y)"]
    assert re.match("STEP ours", capsys.readouterr().out)
    monkeypatch.setattr(steps, "clock", lambda call, inner=1: 1.0)
    assert steps.report(["ours"]) == []
