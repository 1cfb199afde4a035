"""The figure `spectra`: eigenvalues of the blocks H_11 and H_12 beside their limiting densities, (37)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hessext import datasets, linear, one_hidden
from hessext._random import lecun
from hessext.plot._page import page

from ._frame import COLORS, LOSSES, Drawing, Figure, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hessext.theory import MarchenkoPastur, Spectrum

BLOCKS = {"H_11": "diagonal", "H_12": "off_diagonal"}
SHOWN = 0.97  # quantile of the nonzero eigenvalues at which the picture ends; the rest is a long tail
BINS, FINER = 50, 4  # bins of the histogram, and bins of the law in each of them
ZERO = 1e-10  # eigenvalues below this, relative to the largest, are 0 up to rounding


class Column(NamedTuple):
    """A model, its loss and its number of classes. A column of the picture shows two blocks of its Hessian."""

    network: bool
    loss: str
    classes: int

    @property
    def step(self) -> str:
        """Its name in files."""
        return f"{'network' if self.network else 'linear'}-{self.loss}-C{self.classes}"

    @property
    def title(self) -> str:
        """Its name in the picture."""
        model = "hidden" if self.network else "linear"
        return f"{model}, {LOSSES[self.loss]}" + f", $C = {self.classes}$" * (self.network or self.loss != "mse")


def _divisor(column: Column, j: int, weights: list[Tensor]) -> float:
    """The number by which eigenvalues of H_1j are divided to be of order 1."""
    if column.network:
        V = weights[1].double()
        return float(V[:, 0] @ V[:, j]) if column.loss == "mse" else 1.0
    if column.loss == "mse":
        return 1.0
    return 1 / column.classes if j == 0 else -1 / column.classes**2


def _quotient(column: Column, j: int) -> str:
    """H_1j over its divisor, in TeX."""
    if column.loss == "mse":
        return f"$H_{{1{j + 1}}}" + (r" / \Sigma_c\, v_{c1}" + ("^2", "v_{c2}")[j]) * column.network + "$"
    if column.network:
        return f"$H_{{1{j + 1}}}$"
    return "$C H_{11}$" if j == 0 else "$-C^2 H_{12}$"


def _law(run: Run, column: Column, j: int, weights: list[Tensor], x: Tensor) -> Spectrum | MarchenkoPastur:
    """The limiting law of the eigenvalues of H_1j; of a linear model under cross-entropy that of -H_12."""
    from hessext import theory  # scipy takes a second to load

    gamma, block = run.parameters.features / run.parameters.samples, list(BLOCKS.values())[j]
    if column.network and column.loss == "mse":  # Prop. 6, for the share of samples for which both are active
        active = float((x @ weights[0][[0, j]].mT > 0).all(1).double().mean())
        return theory.marchenko_pastur(gamma / active, 2 * active)
    if column.network:
        return theory.hidden_spectrum(gamma, weights[1], 0, j, W=weights[0])
    if column.loss == "mse":
        return theory.marchenko_pastur(gamma, 2.0)
    return theory.linear_spectrum(gamma, column.classes, block)


def _numbers(run: Run, column: Column) -> dict[str, Any]:
    """Eigenvalues of both blocks over their divisors, and the distribution, density, moments and atom of their law."""
    p, options = run.parameters, {"seed": run.parameters.seed, "dtype": run.dtype}
    x, y = datasets.gaussian(p.samples, p.features, column.classes, **options)
    if column.network:
        weights = lecun((p.hidden, p.features), (column.classes, p.hidden), **options)
        B = one_hidden(*weights, x, y, loss=column.loss)["hidden"]
    else:
        weights = lecun((column.classes, p.features), **options)
        B = linear(*weights, x, y, loss=column.loss)["output"]
    found: dict[str, Any] = {}
    for j, name in enumerate(BLOCKS):
        divisor = _divisor(column, j, weights)
        values = np.sort(torch.linalg.eigvalsh(B.block(0, j)).numpy() / divisor)
        found[name] = values = np.where(np.abs(values) < ZERO * np.abs(values).max(), 0.0, values)
        if not values.any():
            continue
        law = _law(run, column, j, weights, x)
        scale = 1.0 if column.network else 1 / abs(divisor)  # factor from the law's eigenvalues to the shown ones
        edges = _edges(values)
        below = law.cdf(edges / scale) - law.atom * (edges >= 0)
        found |= {
            f"{name}_cdf": law.cdf(values / scale),
            f"{name}_edges": edges,
            f"{name}_density": np.maximum(np.diff(below) / np.diff(edges), 0.0),
            f"{name}_moments": [scale**k * law.moment(k) for k in (1, 2)],
            f"{name}_atom": law.atom,
        }
    return found


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of the bins over which the law is averaged; FINER of them make a bin of the histogram."""
    rest, tail = values[values != 0], 1 - SHOWN
    low, high = np.quantile(rest, [tail if (rest < 0).any() else 0.0, SHOWN if (rest > 0).any() else 1.0])
    return np.linspace(min(low, 0.0), max(high, 0.0), BINS * FINER + 1)


def _distance(values: np.ndarray, cdf: np.ndarray, atom: float) -> float:
    """Kolmogorov-Smirnov distance between the eigenvalues and the law."""
    points, first, counts = np.unique(values, return_index=True, return_counts=True)
    above = np.cumsum(counts) / len(values)
    law, below = cdf[first], above - counts / len(values)
    return float(max(np.abs(law - above).max(), np.abs(law - atom * (points == 0) - below).max()))


def _show(ax: Axes, values: np.ndarray, edges: np.ndarray, density: np.ndarray, atom: float) -> None:
    """Draw the histogram of the nonzero eigenvalues, and the density. Both have the mass outside 0, not 1."""
    from matplotlib.ticker import MaxNLocator

    bins = edges[::FINER]
    heights = np.histogram(values[values != 0], bins)[0] / len(values) / np.diff(bins)
    ax.stairs(heights, bins, fill=True, color=COLORS[0], alpha=0.45, label="eigenvalues")
    ax.plot((edges[1:] + edges[:-1]) / 2, density, color=COLORS[1], label="limiting law")
    ax.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.15 * max(heights.max(), np.quantile(density, 0.99))))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    if atom:
        x, side = (0.96, "right") if edges[-1] > -edges[0] else (0.04, "left")
        text = f"share of zeros: {(values == 0).mean():.1%}\ntheory: {atom:.1%}"
        ax.text(x, 0.95, text, transform=ax.transAxes, ha=side, va="top", fontsize="small")


def _row(column: Column, name: str, found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    model, values, atom = "hidden" if column.network else "linear", found[name], float(found[f"{name}_atom"])
    row: dict[str, Any] = {"model": model, "loss": column.loss, "classes": column.classes, "block": name}
    for k, moment in enumerate(("mean", "mean_square"), 1):
        row |= {moment: float((values**k).mean()), f"{moment}_theory": float(found[f"{name}_moments"][k - 1])}
    row |= {"share_at_0": float((values == 0).mean()), "share_at_0_theory": atom}
    return row | {"distance": _distance(values, found[f"{name}_cdf"], atom)}


def _seen(row: Mapping[str, Any]) -> str:
    return (
        f"{row['model']}, {row['loss']}, C = {row['classes']}, {row['block']}: Kolmogorov-Smirnov distance from the "
        f"limit {row['distance']:.4f}; mean square {row['mean_square']:.4g}, theory {row['mean_square_theory']:.4g}."
    )


def _columns(run: Run) -> Iterator[Column]:
    classes = run.parameters.classes
    yield Column(False, "mse", classes[-1])
    yield from (Column(False, "cross_entropy", C) for C in classes)
    yield Column(True, "mse", classes[-1])
    yield Column(True, "cross_entropy", classes[-1])


def _draw(run: Run) -> Drawing:
    p = run.parameters
    columns = list(_columns(run))
    picture, panels = page(2, len(columns), 2.4)
    picture.suptitle(f"Eigenvalues of Hessian blocks at initialization, $d = {p.features}$, $N = {p.samples}$")
    rows, arrays, seen = [], {}, []
    for column, axes in zip(run.progress(columns), panels.T, strict=True):
        found = run.cached(column.step, lambda c=column: _numbers(run, c), classes=column.classes)
        axes[0].set_title(column.title)
        for j, (ax, name) in enumerate(zip(axes, BLOCKS, strict=True)):
            values = arrays[f"{column.step}-{name}"] = found[name]
            if not values.any():
                ax.text(0.5, 0.5, "$H_{12} = 0$", transform=ax.transAxes, ha="center")
                ax.set(xticks=[], yticks=[])
                seen.append(f"{column.step}, {name}: every eigenvalue is exactly 0.")
                continue
            _show(ax, values, found[f"{name}_edges"], found[f"{name}_density"], float(found[f"{name}_atom"]))
            ax.set_xlabel(f"eigenvalue of {_quotient(column, j)}")
            rows.append(_row(column, name, found))
            seen.append(_seen(rows[-1]))
    picture.axes[0].legend(fontsize="small")
    for ax in picture.axes:
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("density")
    notes = [
        f"Beyond the {SHOWN:.0%} quantiles eigenvalues are outside of the picture, not of the numbers.",
        "Under cross-entropy with many classes a few samples carry the mean square (log-normal tails): of one draw, it "
        "may be far off.",
    ]
    return Drawing({"": picture}, seen, rows, arrays, notes)


FIGURES = [
    Figure(
        name="spectra",
        title="Spectra of H_11 and H_12 with their limiting densities",
        paper="The eigenvalues of the blocks follow generalized Marchenko-Pastur laws as N, d -> inf, d / N -> gamma: "
        "(37) with the laws of p_1 (1 - p_1) and p_1 p_2 for linear models (55), (56), of lam_ij for hidden layers "
        "under cross-entropy (81), (82), and Marchenko-Pastur laws under MSE (97).",
        draw=_draw,
        defaults={"classes": [2, 10, 100], "features": 1000, "samples": 2000, "hidden": 8, "dtype": "float64"},
        quick={"features": 500, "samples": 1000},
        reading="One draw of data and weights. Hidden layer under cross-entropy: the law at the drawn weights; under "
        "MSE: at the share of samples that are active, to which it tends. The sizes are ours.",
    )
]
