"""Pictures of the figure `fanout`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from hessext.plot._curves import TICK_SHARE, label_sizes
from hessext.plot._page import page

from ._fanout_statistics import Comparison, Rows
from ._frame import COLORS, LOSSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {
    "own": "own width $K_l$",
    "next": "next width $K_{l+1}$",
    "classes": "$C$",
    "layers": "depth $L$",
    "rank": "$r(S_{l+1})$",
    "pair_rank": "$r(S_{l+1})$ over pairs",
}
_RATIO = r"mean $\|H_{ij}\|_F^2$ / mean $\|H_{ii}\|_F^2$"
_MARKERS = "os^Dv<>"


def scatter(moments: Sequence[Sequence[Comparison]]) -> Figure:
    """Draw each layer's ratio over each explanation: a row of panels for each moment, a colour for each loss."""
    names = [name for name in _LABELS if name != "layers"]
    picture, grid = page(len(moments), len(names), 2.6)
    for axes, comparisons in zip(grid, moments, strict=True):
        for ax, name in zip(axes, names, strict=True):
            for comparison, color in zip(comparisons, COLORS, strict=False):
                label = f"{LOSSES[comparison.loss]}: correlation {comparison.found[name].value:.2f}"
                x, y, error = ([row.get(key, 0) for row in comparison.rows] for key in (name, "ratio", "ratio_error"))
                ax.errorbar(x, y, error, fmt="o", color=color, markersize=3, alpha=0.6, linewidth=0.8, label=label)
            ax.set(xscale="log", yscale="log", xlabel=_LABELS[name])
            ax.sharey(axes[0])
            if "rank" not in name:
                sizes = np.unique(x)
                label_sizes(ax, sizes, (sizes[-1] / sizes[0]) ** TICK_SHARE)
            if name == "pair_rank":
                r = np.geomspace(*ax.get_xlim(), 100)
                ax.fill_between(r, 0.25 / (r + 2), 0.5 / (r + 2), color="#000000", alpha=0.12, label="theory")
            ax.grid(alpha=0.3)
            ax.legend(fontsize="x-small")
            if ax.get_subplotspec().is_first_col():
                ax.set_ylabel(f"{comparisons[0].when.split(', ')[1]}\n{_RATIO}")
            else:
                ax.tick_params(labelleft=False)
    return picture


def by_shape(rows: Rows) -> Figure:
    """Draw ratios under MSE at initialization: uniform networks, bottlenecks, and all networks over the theory."""
    picture, ((left, middle, right),) = page(1, 3, 3.4)
    middle.sharey(left)
    middle.tick_params(labelleft=False)
    left.set_ylabel(_RATIO)
    _lines(left, [row for row in rows if row["kind"] == "uniform"], "layers of the same width")
    _lines(middle, [row for row in rows if row["kind"] == "bottleneck"], "one narrow layer")
    known = [row for row in rows if row["ratio"] > 0]
    expected, ratio, error = (np.array([row[key] for row in known]) for key in ("theory", "ratio", "ratio_error"))
    right.errorbar(expected, ratio / expected, error / expected, fmt="o", color=COLORS[0], markersize=3, alpha=0.7)
    right.axhline(1, color="#000000", linewidth=0.8)
    right.set(xscale="log", xlabel="ratio of the theory", ylabel="measured / theory")
    right.set_title("all networks", fontsize="medium")
    right.grid(alpha=0.3)
    return picture


def _lines(ax: Axes, rows: Rows, title: str) -> None:
    """Draw the ratio over the layer, a line for each network and a dashed one for the theory."""
    for number, (widths, layers) in enumerate(groupby(rows, key=lambda row: row["widths"])):
        layers, color = list(layers), COLORS[number % len(COLORS)]
        columns = ("layer", "ratio", "ratio_error", "theory")
        layer, ratio, error, expected = ([row[key] for row in layers] for key in columns)
        ax.errorbar(layer, ratio, error, fmt=_MARKERS[number % len(_MARKERS)], color=color, label=widths)
        ax.plot(layer, expected, "x--", color=color, linewidth=1)
    ax.set(yscale="log", xlabel="layer $l$")
    ax.set_title(f"{title};\ndashed: theory", fontsize="medium")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
    ax.legend(fontsize="x-small")


def along_training(comparisons: Sequence[Sequence[Comparison]]) -> Figure:
    """Draw for each loss the correlation with each explanation over the steps of training."""
    picture, axes = page(1, len(comparisons), 3.6, sharey=True)
    for ax, moments in zip(axes[0], comparisons, strict=True):
        steps = [comparison.step for comparison in moments]
        for number, (name, label) in enumerate(_LABELS.items()):
            found = np.array([comparison.found[name] for comparison in moments])
            style = "-" if "rank" in name else ":"
            color = COLORS[number % len(COLORS)]
            ax.errorbar(steps, *found.T, fmt=_MARKERS[number] + style, color=color, markersize=4, label=label)
        ax.set_xscale("symlog", linthresh=max(1, steps[-1] // 100))
        ax.set(title=LOSSES[moments[0].loss], xlabel="step", ylim=(-1.05, 1.05))
        ax.grid(alpha=0.3)
    picture.axes[0].set_ylabel("correlation of log(off/diag) with the log of")
    lines = picture.axes[-1].get_legend_handles_labels()
    picture.legend(*lines, loc="outside lower center", ncols=len(_LABELS), fontsize="small")
    return picture
