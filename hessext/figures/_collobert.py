"""Figure 10: Collobert's setting of two classes and one output, before, along and after training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hessext import plot
from hessext.model.loss_arguments import resolve
from hessext.plot._page import page

from ._frame import COLORS, LOSSES, Drawing, Figure, Run
from ._training import Task, Trained, trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PIXELS = 400


def curvature(network: Trained, step: int) -> float:
    """Mean over samples of d2 l_n / df2: p (1 - p) under cross-entropy, 2 under MSE."""
    W, V = network.weights[step]
    f = torch.relu(network.x @ W.T) @ V.T
    return float(resolve(network.task.loss).output(lambda: f, None, f).scale.sum(dtype=torch.float64))


def right(network: Trained, step: int) -> Tensor:
    """Whether each sample is classified correctly."""
    W, V = network.weights[step]
    middle = 0.0 if network.task.loss == "mse" else 0.5
    return ((torch.relu(network.x @ W.T) @ V.T) > 0) == (network.y > middle)


def _row(network: Trained, step: int) -> dict[str, Any]:
    """The hidden layer's block means before a step; its off-diagonal blocks are those of (1)."""
    ratio = network.hessian(step)["hidden"].ratio()
    accuracy = right(network, step).double().mean().item()
    row = {"loss": network.task.loss, "step": step, "value": float(network.losses[step]), "accuracy": accuracy}
    return row | {"curvature": curvature(network, step), **ratio._asdict()}


def _draw(run: Run) -> Drawing:
    p = run.parameters
    picture, grid = page(2, 4, 2.9)
    picture.suptitle(f"two classes, one output: $N = {p.samples}$, $d = {p.features}$, $m = {p.hidden}$")
    rows, arrays, seen = [], {}, []
    for loss, axes in zip(("binary_cross_entropy", "mse"), grid, strict=True):
        name, network = LOSSES[loss], trained(run, Task.of(run, loss, classes=1))
        found = [_row(network, step) for step in run.progress(sorted(network.weights), f"Hessians, {name}")]
        for ax, step, when in ((axes[0], 0, "before"), (axes[1], p.steps, "after")):
            B = network.hessian(step)["hidden"]
            image = arrays[f"{loss}_{when}"] = plot.pool(B, max_pixels=PIXELS)
            plot.heat_map(B, pooled=image, max_pixels=PIXELS, ax=ax, title=f"{name},\n{when} training")
        plot.share_scale(axes[:2])
        _curves(name, found, *axes[2:])
        rows += found
        seen += [f"{name}, {text}" for text in _seen(found)]
    for ax in grid[-1, 2:]:
        ax.set_xlabel("step")
    lines = grid[0, 2].get_legend_handles_labels()
    picture.legend(*lines, loc="outside lower center", ncols=3, fontsize="small")
    return Drawing({"": picture}, seen, rows, arrays)


def _curves(name: str, rows: list[dict[str, Any]], sizes: Axes, ratio: Axes) -> None:
    """Draw the mean squared norms of blocks with the output's curvature, and on other axes the ratio of the norms."""
    steps = [row["step"] for row in rows]
    for quantity, label, line in (
        ("diagonal", r"mean $\|H_{ii}\|_F^2$", "-"),
        ("off_diagonal", r"mean $\|H_{ij}\|_F^2$, $i \neq j$", "--"),
        ("curvature", r"mean $\partial^2 \ell / \partial f^2$", ":"),
    ):
        sizes.plot(steps, [row[quantity] for row in rows], line, label=label, color=COLORS[len(sizes.lines)])
    sizes.set_title(f"{name},\nblocks and output", fontsize="medium")
    sizes.set_yscale("log")
    ratio.plot(steps, [row["ratio"] for row in rows], color=COLORS[0])
    ratio.set_title(f"{name},\nratio of the means", fontsize="medium")
    ratio.set_ylim(0, 1)
    for ax in (sizes, ratio):
        ax.set_box_aspect(1)
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, steps[-1])
        ax.grid(alpha=0.3)


def _seen(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"{when} training (loss {row['value']:.3g}, accuracy {row['accuracy']:.1%}): mean output curvature "
        f"{row['curvature']:.3g}, mean ||H_ij||_F^2 {row['off_diagonal']:.3g}, mean ||H_ii||_F^2 "
        f"{row['diagonal']:.3g}, ratio {row['ratio']:.3g}."
        for when, row in (("before", rows[0]), ("after", rows[-1]))
    ]


FIGURES = [
    Figure(
        name="10",
        title="Binary classification with one output, as in Collobert's thesis",
        paper="Collobert put the block-diagonal form down to cross-entropy: p (1 - p) in the off-diagonal blocks, (1), "
        "goes to 0 in training. The diagonal blocks have the same factor, with v_i^2 in place of v_i v_j: (1) cannot "
        "tell them apart.",
        draw=_draw,
        defaults={"samples": 1000, "features": 100, "hidden": 8, "steps": 5000, "learning_rate": 5e-3},
        quick={"steps": 2000},
        reading="Maps: |H_ww| of the hidden layer. Curves: mean ||H_ii||_F^2, mean ||H_ij||_F^2 and their ratio; "
        "the curvature d2 l / df2 at the output is p (1 - p) under cross-entropy and 2 under MSE. x ~ "
        "N(0, I), labels at random; ReLU without biases, W ~ N(0, 1/d), V ~ N(0, 1/m). Targets 0 and 1, "
        "under MSE -1 and 1. Adam on all samples at once, the learning rate on half a cosine. The sizes are ours.",
    )
]
