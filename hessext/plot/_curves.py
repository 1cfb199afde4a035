"""Curves of a sweep: means over draws against the swept size, with the theory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ._matplotlib import check_matplotlib
from ._page import page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hessext.sweeps.report import PointEstimate, Sweep

SYMBOLS = {"classes": "$C$", "samples": "$N$", "features": "$d$", "hidden": "$m$", "gamma": r"$\gamma = d / N$"}
TICK_SHARE = 0.12  # of an axis: two sizes that lie closer together share one label


def ratios(result: Sweep) -> Figure:
    """Plot the means of a sweep against the swept size on logarithmic axes, with z = (mean - theory) / error below.

    Error bars are standard errors. Solid lines are the theory, and their shading is its standard error. Dashed lines
    are the limit C -> inf of the paper, constant * C^rate. A sweep over a single size has squares and crosses in place
    of lines. Quantities that are 0 are left out.

    Raises:
        TypeError: result is not a Sweep. ValueError: every quantity is 0. ImportError: matplotlib is missing.
    """
    check_matplotlib()
    from hessext.sweeps.report import Sweep

    if not isinstance(result, Sweep):
        raise TypeError(f"result: expected what hessext.sweep returns; got {type(result).__name__}")
    parts = [part for part in result.parts() if all(e.mean > 0 and e.theory > 0 for e in part[2])]
    if not parts:
        raise ValueError("result: expected a quantity that is not 0; got none")
    layers, quantities = (list(dict.fromkeys(names)) for names in zip(*(part[:2] for part in parts), strict=True))
    heights = [3, 1] * len(layers)
    figure, grid = page(2 * len(layers), len(quantities), 1.9, sharex=True, height_ratios=heights)
    figure.suptitle(result.title)
    for ax in grid.flat:
        ax.set_visible(False)
    z = np.array([e.z for *_, estimates in parts for e in estimates])
    reach = max(4.0, 1.2 * np.abs(z[np.isfinite(z)]).max(initial=0))
    for layer, quantity, estimates in parts:
        row = 2 * layers.index(layer)
        above, below = grid[row : row + 2, quantities.index(quantity)]
        _draw_means(result, layer, quantity, estimates, above, below)
        below.set_ylim(-reach, reach)
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _draw_means(
    result: Sweep, layer: str, quantity: str, estimates: Sequence[PointEstimate], ax: Axes, below: Axes
) -> None:
    from hessext.sweeps.report import PAPER_RATES, QUANTITIES, describe, limit

    sizes = np.array([result.size(e.point) for e in estimates])
    mean, error, theory, own, z = (
        np.array([getattr(e, name) for e in estimates]) for name in ("mean", "error", "theory", "theory_error", "z")
    )
    solid, dashed = ("s", "x") if len(sizes) == 1 else ("-", "--")  # a line through one point would be invisible
    ax.loglog(sizes, theory, solid, color="C0", markersize=9, fillstyle="none", label="theory")
    ax.fill_between(sizes, theory - own, theory + own, color="C0", alpha=0.3, linewidth=0)
    if result.swept == "classes":
        q = QUANTITIES.index(quantity)
        rate, constant = PAPER_RATES[result.case, layer][q], limit(result.case, layer, estimates[-1].point)[q]
        if np.isfinite(constant):
            label = f"$C \\to \\infty$: {constant:.4g} $C^{{{rate}}}$"
            ax.plot(sizes, constant * sizes ** float(rate), dashed, color="0.5", label=label)
    ax.errorbar(sizes, mean, error, fmt="o", color="C1", markersize=4, capsize=2, label="mean of draws")
    fits = (e for e in result.exponents if (e.layer, e.quantity) == (layer, quantity))
    slope = "".join(f"\nexponent {fit.value:.3f} ± {fit.error:.3f}, theory {fit.theory:.3f}" for fit in fits)
    ax.set_title(f"{layer}: {describe(result.case, layer, quantity, tex=True)}{slope}", fontsize="small")
    ax.legend(fontsize="small")
    below.axhspan(-3, 3, color="0.9", label="$|z| < 3$")
    below.axhline(0, color="C0", linewidth=1)
    below.plot(sizes, z, "o", color="C1", markersize=4, label="$z$ = (mean of draws - theory) / its standard error")
    below.set(xlabel=SYMBOLS[result.swept], ylabel="$z$")
    room = (sizes[-1] / sizes[0]) ** TICK_SHARE if len(sizes) > 1 else 2.0
    for one in (ax, below):
        one.set_visible(True)
        one.set_xlim(sizes[0] / room, sizes[-1] * room)
    below.tick_params(labelbottom=True)  # sharex removes labels above another panel, even above a hidden one
    label_sizes(below, sizes, room)
    _label_values(ax)


def label_sizes(ax: Axes, sizes: np.ndarray, room: float) -> None:
    """Put a tick at every size, and a number where no other is within `room` times: powers of ten come first."""
    from matplotlib.ticker import NullLocator

    shown: list[float] = []
    for size in sorted(sizes, key=lambda size: (not float(np.log10(size)).is_integer(), size)):
        if all(max(size / other, other / size) >= room for other in shown):
            shown.append(size)
    labels = [f"{size:g}" if size in shown else "" for size in sizes]
    ax.set_xticks(sizes, labels, fontsize="small")
    ax.xaxis.set_minor_locator(NullLocator())


def _label_values(ax: Axes) -> None:
    """Put at least two numbers on the logarithmic y axis, at powers of ten if two of them are in range."""
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter

    low, high = ax.get_ylim()
    for locator in (LogLocator(), LogLocator(subs=(1, 2, 5)), MaxNLocator(4)):
        ticks = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
        if len(ticks) > 1:
            break
    ax.set_yticks(ticks)
    ax.yaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
    ax.yaxis.set_minor_formatter(NullFormatter())
