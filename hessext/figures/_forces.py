"""The two forces as numbers along training: off-diagonal blocks of each layer, and blocks between layers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hessext import BlockMatrix, Hessian

from ._frame import COLORS, LOSSES, Drawing, Figure, Run
from ._training import PAPER, QUICK, READING, Task, Trained, trained


class Forces(NamedTuple):
    """How far a network's Hessian is from block-diagonal. H_ww is of the hidden layer, H_vv of the output layer.

    Static force: `hidden` and `output` are mean ||H_ij||_F^2, i != j, over mean ||H_ii||_F^2, of H_ww and of H_vv.
    Dynamic force: `cross` = 2 ||H_wv||_F^2 / ||H||_F^2. `residual` and `gauss_newton` are the same of the first and
    the second term of (11) or (18). They need not add up to `cross`, as the terms are not orthogonal.
    Periodic stripes: `columns` is the share of ||H_wv||_F^2 in column i of the blocks (i, j), where (12) and (21)
    predict them. Without stripes it is about 1 / m.
    """

    hidden: float
    output: float
    cross: float
    residual: float
    gauss_newton: float
    columns: float

    def text(self) -> str:
        """The numbers in a sentence."""
        return (
            f"off/diag {self.hidden:.2g} in H_ww and {self.output:.2g} in H_vv; H_wv and H_vw hold {self.cross:.2g} of "
            f"||H||_F^2 (residual term {self.residual:.2g}, Gauss-Newton term {self.gauss_newton:.2g}), "
            f"{self.columns:.3f} of it in the predicted columns."
        )


def forces(H: Hessian) -> Forces:
    """Measure the Hessian of a network without biases, layers "hidden" and "output". Forms one dense H_wv at a time."""
    total = 0.0
    ratios = {}
    for layer in ("hidden", "output"):
        K = H[layer].grid[0]
        diagonal, off_diagonal, ratios[layer] = H[layer].ratio()
        total += K * diagonal + K * (K - 1) * off_diagonal
    full, residual, gauss_newton = (column_energy(T["hidden", "output"]) for T in (H, H.residual(), H.gauss_newton()))
    total += 2 * full.sum()
    shares = (2 * float(part.sum() / total) for part in (full, residual, gauss_newton))
    return Forces(ratios["hidden"], ratios["output"], *shares, float(full.trace() / full.sum()))


def column_energy(H_wv: BlockMatrix) -> Tensor:
    """Entry (i, k) is the sum over classes j of ||column k of block (i, j)||^2; (m, m) float64."""
    (m, C), (d, width) = H_wv.grid, H_wv.block_shape
    strips = H_wv.dense().view(m, d, C, width)
    return torch.stack([strip.square_().sum((0, 1), dtype=torch.float64) for strip in strips])


# ------------------------------------------------------------------------------------------------------- the figure


def at_initialization(task: Task) -> Forces:
    """The theory before training. `cross` and `columns` are not predicted and are nan.

    The ratios are those of expectations at the network's own weights. The terms of (11) or (18) are expectations over
    random weights, as N, d -> inf.
    """
    from hessext import theory  # scipy takes a second to load

    N, d, m, C = task.samples, task.features, task.hidden, task.classes
    hidden, output = theory.given_weights(*task.weights(), N, loss=task.loss)
    cross = (theory.cross_mse if task.loss == "mse" else theory.cross_ce)(d / N, m, C)
    total = d * (m * hidden.diagonal + m * (m - 1) * hidden.off_diagonal)
    total += C * output.diagonal + C * (C - 1) * output.off_diagonal + 2 * m * C * sum(cross)
    residual, gauss_newton = (2 * m * C * term / total for term in cross)
    return Forces(hidden.ratio, output.ratio, np.nan, residual, gauss_newton, np.nan)


def measured(run: Run, network: Trained) -> dict[int, Forces]:
    """The forces before every step whose weights are kept."""
    found = {}
    for step in run.timed(sorted(network.weights), f"Hessians, {LOSSES[network.task.loss]}"):
        numbers = run.cached(
            f"{network.task.loss}-step{step}",
            lambda step=step: {"forces": np.array(forces(network.hessian(step)))},
            loss=network.task.loss,
        )
        found[step] = Forces(*numbers["forces"].tolist())
    return found


# Quantities of one panel: name, label, colour, line.
_STATIC = (("hidden", "$H_{ww}$", COLORS[0], "-"), ("output", "$H_{vv}$", COLORS[1], "--"))
_DYNAMIC = (
    ("cross", "$H_{wv}$ and its transpose", "#000000", "-"),
    ("residual", "their residual term", COLORS[1], "--"),
    ("gauss_newton", "their Gauss-Newton term", COLORS[0], ":"),
)
_STRIPES = (("columns", "in predicted columns", COLORS[2], "-"),)
_LABELS = (
    "static force:\nmean $||H_{ij}||_F^2$ / mean $||H_{ii}||_F^2$",
    "dynamic force:\nshare of $||H||_F^2$",
    "periodic stripes:\nshare of $||H_{wv}||_F^2$",
)


def _draw(run: Run) -> Drawing:
    import matplotlib.figure

    p = run.parameters
    picture = matplotlib.figure.Figure(figsize=(11, 10), layout="constrained")
    picture.suptitle(f"Gaussian data: $N = {p.samples}$, $d = {p.features}$, $C = {p.classes}$, $m = {p.hidden}$")
    rows, arrays, seen = [], {}, []
    axes = picture.subplots(4, 2, sharex=True, height_ratios=[2, 3, 3, 2])
    for row in axes[1:]:
        row[1].sharey(row[0])
    for loss, column in zip(("mse", "cross_entropy"), axes.T, strict=True):
        network = trained(run, Task.of(run, loss))
        found, expected = measured(run, network), at_initialization(network.task)
        steps = np.array(list(found))
        top, static, dynamic, stripes = column
        top.plot(network.losses.numpy(), color="#000000")
        top.set(title=LOSSES[loss], ylabel="loss", yscale="log" if loss == "mse" else "linear")
        for ax, quantities in ((static, _STATIC), (dynamic, _DYNAMIC), (stripes, _STRIPES)):
            for name, label, color, line in quantities:
                values = np.array([getattr(one, name) for one in found.values()])
                zero = not values.any()  # H_vv is exactly block-diagonal under MSE
                ax.plot(*((), ()) if zero else (steps, values), line, color=color, label=label + ": exactly 0" * zero)
                if not zero:
                    ax.plot(0, getattr(expected, name), "D", color=color, fillstyle="none", clip_on=False)
        for ax in (static, dynamic):
            ax.plot((), (), "D", color="0.4", fillstyle="none", label="theory at initialization")
            ax.set_yscale("log")
        stripes.axhline(1 / p.hidden, color="0.5", linestyle=":", label="$1 / m$: no stripes")
        stripes.set(ylim=(0, 1.03), xlabel="step")
        stripes.set_xscale("symlog", linthresh=1)
        stripes.set_xlim(0, p.steps)
        for ax in column:
            ax.grid(alpha=0.3)
            if ax is not top:
                ax.legend(fontsize="small")
        losses, arrays[f"{loss}_theory"] = network.losses, np.array(expected)
        rows += [{"training": loss, "step": k, "loss": float(losses[k]), **one._asdict()} for k, one in found.items()]
        seen += [f"{LOSSES[loss]}, {text}" for text in _seen(list(found.values()), expected)]
    for ax, label in zip(axes[1:, 0], _LABELS, strict=True):
        ax.set_ylabel(label)
    note = (
        "Diamonds: theory at initialization, of H_ww and H_vv at the same weights, of the terms of (11) and (18) to "
        "leading order in C as N, d grow. Labels are random: what the network cannot fit stays in the residual."
    )
    return Drawing({"": picture}, seen, rows, arrays, [note])


def _seen(found: list[Forces], expected: Forces) -> list[str]:
    first, last = found[0], found[-1]
    ratios = ([one.hidden for one in found], [one.output for one in found])
    ranges = (f"{min(r):.2g} to {max(r):.2g}" if any(r) else "exactly 0" for r in ratios)
    text = " and ".join(f"{r} in {name}" for r, name in zip(ranges, ("H_ww", "H_vv"), strict=True))
    return [
        f"static force: off/diag is {text} all along (theory at initialization {expected.hidden:.2g} and "
        f"{expected.output:.2g}).",
        f"at initialization: {first.text()} Theory: residual {expected.residual:.2g}, "
        f"Gauss-Newton {expected.gauss_newton:.2g}.",
        f"after training: {last.text()}",
    ]


FIGURES = [
    Figure(
        name="forces",
        title="Static and dynamic force along training",
        paper="Architecture makes H_ww and H_vv block-diagonal from initialization on (static force); training makes "
        "the blocks between layers vanish (dynamic force). It has snapshots only, no curves.",
        draw=_draw,
        defaults=PAPER,
        quick=QUICK,
        reading=READING,
    )
]
