"""Figures 11 and 12: k-clustered data on the unit sphere, few classes against many."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hessext import Hessian, datasets, one_hidden, plot
from hessext._random import lecun
from hessext.matrix.results import BlockRatio
from hessext.plot._page import maps, page
from hessext.sweeps.statistics import moments, standard_error

from ._frame import COLORS, LOSSES, Drawing, Figure, Run

if TYPE_CHECKING:
    import matplotlib.figure

PIXELS = 400
GAUSSIAN = 0  # stands for Gaussian data in place of a number of clusters


def _hessian(run: Run, loss: str, classes: int, clusters: int, draw: int) -> Hessian:
    """The Hessian at initialization, on clustered data or on Gaussian data of mean squared norm 1."""
    p, options = run.parameters, {"seed": (run.parameters.seed << 32) + draw, "dtype": run.dtype}
    if clusters == GAUSSIAN:
        x, y = datasets.gaussian(p.samples, p.features, classes, **options)
        x /= p.features**0.5
    else:
        x, y = datasets.clustered(p.samples, p.features, classes, clusters, **options)
    W, V = lecun((p.hidden, p.features), (classes, p.hidden), **options)
    return one_hidden(W, V, x, y, loss=loss)


def _numbers(run: Run, loss: str, layers: tuple[str, ...], classes: int, clusters: int) -> dict[str, Any]:
    """Block means (draws, 2) of each layer, and pooled |H| of the first draw."""
    found: dict[str, Any] = {f"{layer}_norms": [] for layer in layers}
    for draw in range(run.parameters.draws):
        H = _hessian(run, loss, classes, clusters, draw)
        for layer in layers:
            found[f"{layer}_norms"].append(H[layer].ratio()[:2])
            if draw == 0:
                found[layer] = plot.pool(H[layer], max_pixels=PIXELS)
    return found


def _row(layer: str, classes: int, clusters: int, norms: np.ndarray) -> dict[str, Any]:
    """Means over draws, their ratio and their standard errors, as a row of the table."""
    values, deviations = moments(*norms.T)
    row: dict[str, Any] = {"layer": layer, "clusters": clusters or "gaussian", "classes": classes}
    for name, value, error in zip(BlockRatio._fields, values, standard_error(deviations), strict=True):
        row |= {name: value, f"{name}_error": error}
    return row


def _draw(loss: str, layers: tuple[str, ...], run: Run) -> Drawing:
    """Draw the layers that are not exactly block-diagonal."""
    p = run.parameters
    points = [(classes, clusters) for clusters in [*p.clusters, GAUSSIAN] for classes in p.classes]
    found = {}
    for classes, clusters in run.timed(points, "points", sample=len(p.classes)):
        found[classes, clusters] = run.cached(
            f"C{classes}-k{clusters}",
            lambda point=(classes, clusters): _numbers(run, loss, layers, *point),
            classes=classes,
            clusters=clusters,
        )
    rows = [_row(layer, *point, found[point][f"{layer}_norms"]) for layer in layers for point in points]
    ends = (min(p.classes), max(p.classes))
    arrays = {f"{layer}_C{C}_k{k}": found[C, k][layer] for layer in layers for C in ends for k in p.clusters}
    pictures = {"": _maps(run, loss, layers, ends, arrays), "ratios": _curves(layers, rows)}
    return Drawing(pictures, list(_seen(layers, rows)), rows, arrays)


def _maps(
    run: Run, loss: str, layers: tuple[str, ...], ends: tuple[int, int], images: dict[str, np.ndarray]
) -> matplotlib.figure.Figure:
    """Draw heat maps: a column for each number of clusters, a row for the fewest and one for the most classes."""
    p = run.parameters
    picture, axes = maps(2 * len(layers), len(p.clusters))
    picture.suptitle(
        f"{LOSSES[loss]}, $k$ clusters: $N = {p.samples}$, $d = {p.features}$, $m = {p.hidden}$, at initialization"
    )
    for row, (layer, C) in zip(axes, [(layer, C) for layer in layers for C in ends], strict=True):
        for ax, k in zip(row, p.clusters, strict=True):
            B = _hessian(run, loss, C, k, 0)[layer]
            title = f"{layer} layer, $C = {C}$, $k = {k}$"
            plot.heat_map(B, pooled=images[f"{layer}_C{C}_k{k}"], max_pixels=PIXELS, ax=ax, title=title)
        plot.share_scale(row)
    return picture


def _lines(layer: str, rows: list[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    """Rows of a layer by number of clusters."""
    lines: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        if row["layer"] == layer:
            lines.setdefault(row["clusters"], []).append(row)
    return lines


def _curves(layers: tuple[str, ...], rows: list[dict[str, Any]]) -> matplotlib.figure.Figure:
    """Draw the ratio over C, a line for each number of clusters."""
    picture, axes = page(1, len(layers), 3.8, sharey=True)
    for layer, ax in zip(layers, axes[0], strict=True):
        for (clusters, points), marker in zip(_lines(layer, rows).items(), "os^Dv<>", strict=False):
            gaussian = clusters == "gaussian"
            line, color = ("--", "#000000") if gaussian else ("-", COLORS[len(ax.containers) % len(COLORS)])
            ax.errorbar(
                *([point[name] for point in points] for name in ("classes", "ratio", "ratio_error")),
                fmt=marker + line,
                color=color,
                label="Gaussian data" if gaussian else f"$k = {clusters}$",
            )
        ax.set(title=f"{layer} layer", xlabel="$C$", xscale="log", yscale="log")
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel(r"mean $\|H_{ij}\|_F^2$ / mean $\|H_{ii}\|_F^2$")
    axes[0, 0].legend()
    return picture


def _seen(layers: tuple[str, ...], rows: list[dict[str, Any]]) -> Iterator[str]:
    for layer in layers:
        for clusters, points in _lines(layer, rows).items():
            data = "Gaussian data" if clusters == "gaussian" else f"{clusters} clusters"
            ends = (pick(points, key=lambda point: point["classes"]) for pick in (min, max))
            texts = [f"{p['ratio']:.2g} ± {p['ratio_error']:.1g} at C = {p['classes']}" for p in ends]
            yield f"{layer} layer, {data}: off/diag {', '.join(texts)}."


def _figure(name: str, loss: str, layers: tuple[str, ...], more: str) -> Figure:
    return Figure(
        name=name,
        title=f"Clustered data on the unit sphere, few classes against many, {LOSSES[loss]}",
        paper="Also on k-clustered data, as in Li et al. (2019), the block-diagonal form comes with a large number of "
        "classes, not with that of clusters.",
        draw=partial(_draw, loss, layers),
        defaults={
            "classes": [2, 5, 20, 100, 500],
            "clusters": [500, 1000, 2500],
            "samples": 5000,
            "features": 500,
            "hidden": 8,
            "draws": 5,
        },
        quick={"classes": [2, 5, 20, 100], "clusters": [100, 200, 500], "samples": 1000, "features": 100},
        reading="Cluster l belongs to class l mod C, samples lie within 0.1 of their centre; ReLU without biases, "
        "W ~ N(0, 1/d), V ~ N(0, 1/m), at initialization. Maps: the first draw. Gaussian data: x ~ N(0, I/d), labels "
        f"at random. {more}That Figure 11 is the one with MSE and 12 the one with cross-entropy is our reading.",
    )


FIGURES = [
    _figure("11", "mse", ("hidden",), "The output layer is block-diagonal at any C, (9). "),
    _figure("12", "cross_entropy", ("hidden", "output"), ""),
]
