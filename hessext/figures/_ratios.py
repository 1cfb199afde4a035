"""Figures 8 and 9: ratios over C at initialization, means over many draws, beside the theory."""

from __future__ import annotations

import math
from functools import partial

from hessext import plot, sweep
from hessext.sweeps.report import Sweep, describe

from ._frame import Drawing, Figure, Run

CLASSES = [2, 5, 10, 20, 50, 100, 200, 500, 1000]
CASES = {"8": 2, "9": 4}  # of hessext.sweep


def _seen(result: Sweep) -> list[str]:
    seen = []
    for e in result.exponents:
        paper = "" if e.paper is None else f", paper as C -> inf {e.paper}"
        text = (
            f"{e.layer}, {describe(result.case, e.layer, e.quantity)}: C^{e.value:.3f} (± {e.error:.1g}) over the last"
        )
        seen.append(f"{text} {e.points} sizes, theory at these {e.theory:.3f}{paper}.")
    worst = result.worst
    quantity = describe(result.case, worst.layer, worst.quantity)
    where = f"{worst.layer}, {quantity} at {result.swept} {result.size(worst.point)}"
    chance = "" if math.isnan(worst.z) else f"; by chance alone a larger one in about {result.chance:.0%} of runs"
    return [*seen, f"Largest |z| = |mean - theory| / error: {abs(worst.z):.1f} ({where}){chance}."]


def _draw(case: int, run: Run) -> Drawing:
    p = run.parameters
    sizes = {name: value for name, value in vars(p).items() if name not in ("dtype", "workers")}
    rows = run.path("draws", ".csv", classes=None, draws=None, workers=None)  # more classes or draws extend the file
    result = sweep(case, **sizes, dtype=run.dtype, workers=p.workers, path=rows, progress=run.shown)
    table = [
        {"layer": e.layer, "quantity": e.quantity, **e.point._asdict()}
        | {name: getattr(e, name) for name in ("draws", "mean", "error", "theory", "theory_error", "z")}
        for e in result.estimates
    ]
    return Drawing({"": plot.ratios(result)}, _seen(result), table)


def _figure(name: str, title: str, paper: str, hidden: dict[str, int], quick_draws: int) -> Figure:
    defaults = {"classes": CLASSES, "samples": 1000, "features": 500, **hidden, "draws": 1000, "workers": None}
    return Figure(
        name=name,
        title=title,
        paper=paper,
        draw=partial(_draw, CASES[name]),
        defaults=defaults,
        quick={"draws": quick_draws},
        reading="x ~ N(0, I), weights N(0, 1/fan-in); norms of d x d blocks times 1/d; squared norms, and the ratio of "
        "their means. The sizes N = 1000, d = 500 are our reading. Bars: standard errors; dashed: the limits "
        "C -> inf.",
    )


FIGURES = [
    _figure(
        "8",
        "Block norms of a linear model over C, cross-entropy (Case 2)",
        "Theorem 1: (1/d) ||H_ii||_F^2 falls as C^-2 and (1/d) ||H_ij||_F^2 as C^-4, their ratio as C^-2, (22)-(26).",
        {},
        100,
    ),
    _figure(
        "9",
        "Block norms of one hidden ReLU layer over C, cross-entropy (Case 4)",
        "Theorem 2: hidden layer, ||H_ii||_F^2 tends to a constant and ||H_ij||_F^2 falls as C^-1; output layer, as "
        "C^-2 and C^-4, (91), (92), (103), (104).",
        {"hidden": 8},
        20,
    ),
]
