"""Figures 2, 3 and 13: the whole Hessian along a training on Gaussian data, and the loss."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessext import Hessian, plot
from hessext.plot._page import maps, page

from ._forces import Forces, forces
from ._frame import COLORS, LOSSES, Drawing, Figure, Run
from ._training import PAPER, QUICK, READING, Task, snapshots, trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PIXELS = 500  # of the side of the picture of |H|, about
CLASSES = 16  # whose columns of H_wv are shown one by one, as pooling would remove the stripes
CELLS = 16  # into which the rows of one hidden unit are pooled there


def stripes(H: Hessian) -> torch.Tensor:
    """|H_wv| of the first CLASSES classes, (m CELLS, CLASSES m): rows are pooled (largest), columns are not."""
    B = H["hidden", "output"]
    m, C = B.grid
    J = min(C, CLASSES)
    blocks = B.blocks(torch.cartesian_prod(torch.arange(m), torch.arange(J))).abs()  # (m J, d, m)
    cells = torch.stack([rows.amax(1) for rows in blocks.tensor_split(min(CELLS, blocks.shape[1]), 1)], 1)
    return cells.view(m, J, -1, m).transpose(1, 2).reshape(-1, J * m)


def _numbers(H: Hessian) -> dict[str, Any]:
    pooled = plot.pool(H, max_pixels=PIXELS).astype(np.float32)
    return {"hessian": pooled, "stripes": stripes(H), "forces": np.array(forces(H))}


def _draw(loss: str, run: Run) -> Drawing:
    network = trained(run, Task.of(run, loss))
    p = network.task
    steps = snapshots(p.steps)
    found = {}
    for step in run.progress(steps, "Hessians"):
        found[step] = run.cached(f"step{step}", lambda step=step: _numbers(network.hessian(step)))
    picture, axes = maps(2, len(steps))
    picture.suptitle(
        f"{LOSSES[loss]}, Gaussian data: $N = {p.samples}$, $d = {p.features}$, $C = {p.classes}$, $m = {p.hidden}$"
    )
    rows, arrays, seen = [], {}, []
    for step, whole, part in zip(steps, *axes, strict=True):
        H, numbers, value = network.hessian(step), found[step], float(network.losses[step])
        when = "at initialization" if step == 0 else f"at {step / p.steps:.0%} of steps"
        title = f"$|H|$ {when},\nloss {value:.3g}"
        plot.heat_map(H, pooled=numbers["hessian"], max_pixels=PIXELS, ax=whole, title=title)
        image = torch.from_numpy(numbers["stripes"])
        plot.heat_map(image, ax=part, title=f"$|H_{{wv}}|$ {when}", max_pixels=max(image.shape))
        _label(part, p.hidden)
        measured = Forces(*numbers["forces"].tolist())
        rows.append({"step": step, "loss": value, **measured._asdict()})
        arrays |= {f"{name}_{step}": numbers[name] for name in ("hessian", "stripes")}
        seen.append(f"{when[3:].capitalize()} (step {step}, loss {value:.4g}): {measured.text()}")
    for row in axes:
        plot.share_scale(row)
    first, last = rows[0], rows[-1]
    seen.append(
        f"From the first to the last: H_wv and its transpose hold {first['cross']:.2g} to {last['cross']:.2g} of "
        f"||H||_F^2, the predicted columns {first['columns']:.3f} to {last['columns']:.3f} of H_wv (without stripes "
        f"about 1 / m = {1 / p.hidden:.3g}); off/diag is at most {max(row['hidden'] for row in rows):.2g} in H_ww and "
        f"{max(row['output'] for row in rows):.2g} in H_vv."
    )
    if loss == "mse" and last["columns"] > 0.5:  # a logarithmic scale shows stripes that the paper's does not
        seen.append(
            f"Unlike in the paper's picture, H_wv has stripes, {last['columns']:.0%} of it at the end; but it holds "
            f"{last['cross']:.1g} of ||H||_F^2."
        )
    note = (
        f"Above: one colour scale. Below, with another one: H_wv, its rows pooled (largest of about "
        f"{-(-p.features // CELLS)}), the columns of the first {min(CLASSES, p.classes)} classes one by one. "
        "Colours are logarithmic: they show stripes also where these carry next to nothing of ||H||_F^2."
    )
    return Drawing({"": picture}, seen, rows, arrays, [note])


def _label(ax: Axes, hidden: int) -> None:
    """Name the rows of hidden units and the columns of classes. Lines between classes would look like stripes."""
    _, right = ax.get_xlim()
    bottom, _ = ax.get_ylim()
    height = bottom / hidden
    for i in range(1, hidden):
        ax.axhline(i * height, color="white", linewidth=0.8)
    ax.set_yticks([(i + 0.5) * height for i in range(hidden)], [f"$w_{{{i + 1}}}$" for i in range(hidden)])
    classes = range(round(right) // hidden)
    ax.set_xticks([(j + 0.5) * hidden for j in classes], [f"$v_{{{j + 1}}}$" if j % 3 == 0 else "" for j in classes])
    ax.set_xticks([j * hidden for j in classes], minor=True)
    ax.tick_params("x", which="minor", length=4)


def _draw_losses(run: Run) -> Drawing:
    picture, axes = page(1, len(_SHOWN), 3.5)
    rows, arrays, seen = [], {}, []
    for (name, loss), ax in zip(_SHOWN.items(), axes[0], strict=True):
        network = trained(run, Task.of(run, loss))
        losses, steps = network.losses.numpy(), snapshots(network.task.steps)
        ax.plot(losses, color=COLORS[0])
        ax.plot(steps, losses[steps], "o", color=COLORS[1], label=f"Hessians of Figure {name}")
        ax.set(title=LOSSES[loss], xlabel="step", ylabel="loss", yscale="log" if loss == "mse" else "linear")
        ax.legend()
        ax.grid(alpha=0.3)
        rows += [{"training": loss, "step": step, "loss": losses[step]} for step in sorted(network.weights)]
        arrays[loss] = losses
        above = losses[steps[2]] / losses[-1] - 1
        seen.append(
            f"{LOSSES[loss]}: from {losses[0]:.4g} to {losses[-1]:.4g}; at half of the steps it is {above:.1%} above "
            "the last value."
        )
    return Drawing({"": picture}, seen, rows, arrays)


_SHOWN = {"2": "mse", "3": "cross_entropy"}  # figures and their losses
_FINDINGS = {
    "mse": "H_ww and H_vv are block-diagonal from initialization to the end (Finding 1); H_wv is negligible beside "
    "them and shows no block-circulant pattern (Finding 2).",
    "cross_entropy": "H_ww and H_vv are block-diagonal from initialization to the end (Finding 1); at initialization "
    "H_wv is block-circulant, with periodic stripes, which vanish along the training (Finding 2).",
}


def _figure(name: str, loss: str) -> Figure:
    return Figure(
        name=name,
        title=f"The Hessian along training, {LOSSES[loss]}, Gaussian data",
        paper=_FINDINGS[loss],
        draw=partial(_draw, loss),
        defaults=PAPER,
        quick=QUICK,
        reading=READING + " That Figure 2 is the one with MSE and 3 the one with cross-entropy is our reading.",
    )


FIGURES = [
    *(_figure(name, loss) for name, loss in _SHOWN.items()),
    Figure(
        name="13",
        title="Losses of the trainings of Figures 2 and 3",
        paper="Both trainings converge.",
        draw=_draw_losses,
        defaults=PAPER,
        quick=QUICK,
        reading=READING,
    ),
]
