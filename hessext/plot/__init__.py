"""Pictures: |H| as a heat map with block borders, the map of block norms, and sweeps. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessext import _checks

from ._pool import Cells, layout, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hessext.matrix.block_matrix import BlockMatrix
    from hessext.matrix.hessian import Hessian
    from hessext.sweeps.report import PointEstimate, Sweep

DECADES = 4  # of the colour scale at most, where no limits are given
SCALES = 1e-280, 1e280  # where colour scales of DECADES may end, and below
LIMITS = 1e-100, 1e100  # those that are given: matplotlib's bars compute with numbers well beyond their ends
ZERO_COLOR = "0.8"  # of entries that are exactly zero
BORDERS = 127  # between blocks along a side at most: closer lines make patterns of their own
NAMED_SHARE = 0.08  # of a side: a narrower layer has no room for its name
SYMBOLS = {"classes": "$C$", "samples": "$N$", "features": "$d$", "hidden": "$m$", "gamma": r"$\gamma = d / N$"}
TICK_SHARE = 0.08  # of an axis: sizes that lie closer together have no room for both their numbers
POOLED = {"max": "largest", "mean": "mean"}  # entry of a cell
COLOR_MAP = "viridis"  # lightness rises all the way: read alike with and without colour-blindness, and in print


def _draw(
    cells: Cells,
    image: np.ndarray,
    what: str,
    limits: tuple[float, float] | None,
    title: str | None,
    ax: Axes | None,
    pooling: str = "max",
) -> Figure:
    """Show the image with a colour bar, borders of blocks and layers, and the layers' names."""
    check_matplotlib()
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"ax: expected matplotlib's Axes; got {type(ax).__name__}")
    down, across = cells.down, cells.across
    if limits is not None:
        limits = _limits(limits)
    else:
        seen = image[np.isfinite(image) & (image > 0)]
        low, high = np.clip([seen.min(), seen.max()], *SCALES).tolist() if seen.size else (1.0, 1.0)
        floor = high * 10.0**-DECADES
        limits = (max(low, floor) if low < high else floor, high)

    if ax is None:
        ax = Figure(figsize=(7.5, 6), layout="constrained").subplots()
    shown = ax.imshow(
        np.ma.masked_where(image == 0, np.clip(image, *limits)),
        norm=LogNorm(*limits),
        cmap=colormaps[COLOR_MAP].with_extremes(bad=ZERO_COLOR),
        interpolation="antialiased",  # on fewer dots colours are blended, none is left out
        interpolation_stage="rgba",
        extent=(0, across.ends[-1], down.ends[-1], 0),
    )
    for side, line, axis in ((down, ax.axhline, ax.yaxis), (across, ax.axvline, ax.xaxis)):
        width = min(0.4, 16 / max(1, len(side.borders)))  # many borders must not hide what is between them
        for position in side.borders if len(side.borders) <= BORDERS else ():
            line(position, color="white", linewidth=width, alpha=0.7)
        for position in side.ends[1:-1]:
            line(position, color="white", linewidth=1.5)
        spans = list(zip(side.ends, side.ends[1:], side.layers, strict=False))
        named = [(a, b, layer.name) for a, b, layer in spans if b - a >= NAMED_SHARE * side.ends[-1]]
        turned = {"rotation": 90, "va": "center"} if axis is ax.yaxis else {}
        axis.set_ticks([(a + b) / 2 for a, b, _ in named], [name for *_, name in named], **turned)
        axis.set_tick_params(length=0)
    if title:
        ax.set_title(title)
    under, over = ((image > 0) & (image < limits[0])).any(), (image > limits[1]).any()
    extend = ("neither", "min", "max", "both")[under + 2 * over]
    bar = ax.figure.colorbar(shown, ax=ax, extend=extend, fraction=0.046, pad=0.02)
    heading = f"{what}, {POOLED[pooling]} of {cells.pool} x {cells.pool}" if cells.pool > 1 else what
    note = f"colours from {limits[0]:.1e} to {limits[1]:.1e}" + "; grey: exactly 0" * bool((image == 0).any())
    bar.set_label(f"{heading}\n{note}", fontsize="small")
    return ax.figure


def _limits(limits: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (_checks.number("limits", end) for end in limits)
    except (TypeError, ValueError):
        raise TypeError(f"limits: expected two numbers, 0 < low < high; got {limits!r}") from None
    if not LIMITS[0] <= low < high <= LIMITS[1]:
        raise ValueError(f"limits: expected {LIMITS[0]:g} <= low < high <= {LIMITS[1]:g}; got {limits!r}")
    return low, high


def check_matplotlib() -> None:
    """Raise an ImportError that says what to install."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("hessext.plot needs matplotlib: pip install matplotlib") from error


def pool(H: Hessian | BlockMatrix | torch.Tensor, *, max_pixels: int = 1000, pooling: str = "max") -> np.ndarray:
    """The image that heat_map shows: of every cell the largest |entry| ("max") or the mean of |entry| ("mean").

    Of H's dtype, about max_pixels on the longer side; no cell is in two layers, nor in two blocks with room for cells.
    Of a pair of layers above 512 MiB a few blocks are formed at a time, unless they are smaller than cells. Raises
    ValueError or TypeError for bad arguments, MemoryError as H.dense() does.
    """
    rows, cols, part, symmetric = layout(H)
    dtype = {torch.float32: np.float32}.get(H.dtype, np.float64)
    return Cells(rows, cols, max_pixels).image(part, symmetric, pooling).astype(dtype)


def heat_map(
    H: Hessian | BlockMatrix | torch.Tensor,
    *,
    pooled: np.ndarray | None = None,
    pooling: str = "max",
    limits: tuple[float, float] | None = None,
    max_pixels: int = 1000,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """|H| on a logarithmic colour scale, thin lines between up to 128 blocks, thick ones between layers.

    H: a Hessian (all pairs of layers, each neuron by neuron), a BlockMatrix, or a matrix (R, S). Where it has more
    than max_pixels rows or columns, a pixel is the *largest* of the entries that it covers, or with pooling="mean"
    their mean. pooled: pool(H, ...) with the same max_pixels, where it is there already; H then gives the borders and
    names only. limits: ends of the scale (default: the largest and the smallest pixel, at most four decades below);
    what lies beyond has the end's colour and an arrow at the scale, exact zeros are grey. A picture of fewer dots than
    max_pixels blends colours of neighbours and leaves none out. ax: where to draw; default a new figure.
    Raises ImportError without matplotlib, and what pool raises.
    """
    rows, cols, part, symmetric = layout(H)
    cells = Cells(rows, cols, max_pixels)
    if pooled is None:
        pooled = cells.image(part, symmetric, pooling)
    else:
        pooled = numbers("pooled", pooled).double().cpu().numpy()
        if pooled.shape != cells.shape:
            raise ValueError(f"pooled: expected shape {cells.shape}; got {pooled.shape}")
    return _draw(cells, pooled, "|H|", limits, title, ax, pooling)


def block_norm_map(
    H: Hessian | BlockMatrix,
    *,
    norms: torch.Tensor | None = None,
    limits: tuple[float, float] | None = None,
    max_pixels: int = 1000,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Frobenius norm of every block, one pixel a block; otherwise as heat_map. Forms no block.

    norms: H.norms(), where they are there already.
    """
    if isinstance(H, torch.Tensor):
        raise TypeError("H: expected a hessext.Hessian or a BlockMatrix; got Tensor")
    rows, cols = ([layer._replace(size=1) for layer in side] for side in layout(H)[:2])
    norms = H.norms() if norms is None else numbers("norms", norms)
    down, across = ([layer.count for layer in side] for side in (rows, cols))
    if norms.shape != (sum(down), sum(across)):
        raise ValueError(f"norms: expected shape ({sum(down)}, {sum(across)}); got {tuple(norms.shape)}")
    parts = [strip.split(across, 1) for strip in norms.split(down)]
    cells = Cells(rows, cols, max_pixels)
    image = cells.image(lambda i, j: parts[i][j], False, "max")
    return _draw(cells, image, "Frobenius norm of a block", limits, title, ax)


def ratios(result: Sweep) -> Figure:
    """Means of a sweep against the swept size, both logarithmic, with z = (mean - theory) / error below.

    Bars are standard errors, lines the theory (shaded: its own error), dashed ones the paper's constant * C^rate of
    the limit C -> inf; over one size, squares and crosses. Quantities that are 0 are left out. Raises ImportError
    without matplotlib, ValueError where all are 0.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    from hessext.sweeps.report import Sweep

    if not isinstance(result, Sweep):
        raise TypeError(f"result: expected what hessext.sweep returns; got {type(result).__name__}")
    parts = [part for part in result.parts() if all(e.mean > 0 and e.theory > 0 for e in part[2])]
    if not parts:
        raise ValueError("result: expected a quantity that is not 0; got none")
    layers, quantities = (list(dict.fromkeys(names)) for names in zip(*(part[:2] for part in parts), strict=True))
    figure = Figure(figsize=(4.2 * max(2, len(quantities)), 4.2 * len(layers)), layout="constrained")
    figure.suptitle(result.title)
    heights = [3, 1] * len(layers)
    grid = figure.subplots(2 * len(layers), len(quantities), squeeze=False, sharex=True, height_ratios=heights)
    for ax in grid.flat:
        ax.set_visible(False)
    for layer, quantity, estimates in parts:
        row = 2 * layers.index(layer)
        _draw_means(result, layer, quantity, estimates, *grid[row : row + 2, quantities.index(quantity)])
    return figure


def _draw_means(
    result: Sweep, layer: str, quantity: str, estimates: Sequence[PointEstimate], ax: Axes, below: Axes
) -> None:
    from hessext.sweeps.report import PAPER_RATES, QUANTITIES, describe, limit

    sizes = np.array([result.size(e.point) for e in estimates])
    mean, error, theory, own, z = (
        np.array([getattr(e, name) for e in estimates]) for name in ("mean", "error", "theory", "theory_error", "z")
    )
    solid, dashed = ("s", "x") if len(sizes) == 1 else ("-", "--")  # one point is no line
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
    ax.set_title(f"{layer}: {describe(result.case, layer, quantity, tex=True)}{slope}", fontsize="medium")
    ax.legend(fontsize="small")
    below.axhspan(-3, 3, color="0.9")
    below.axhline(0, color="C0", linewidth=1)
    below.plot(sizes, z, "o", color="C1", markersize=4)
    reach = max(4.0, 1.2 * np.abs(z[np.isfinite(z)]).max(initial=0))
    below.set(xlabel=SYMBOLS[result.swept], ylabel="$z$", ylim=(-reach, reach))
    room = (sizes[-1] / sizes[0]) ** TICK_SHARE if len(sizes) > 1 else 2.0
    for one in (ax, below):
        one.set_visible(True)
        one.set_xlim(sizes[0] / room, sizes[-1] * room)
    below.tick_params(labelbottom=True)  # what is below it may be empty
    _label_sizes(below, sizes, room)
    _label_values(ax)


def _label_sizes(ax: Axes, sizes: np.ndarray, room: float) -> None:
    """A tick at every size, and a number where it is at least `room` times the last that has one."""
    from matplotlib.ticker import NullLocator

    labels, last = [], 0.0
    for size in sizes:
        labels.append(f"{size:g}" if size >= room * last else "")
        last = size if labels[-1] else last
    ax.set_xticks(sizes, labels, fontsize="small")
    ax.xaxis.set_minor_locator(NullLocator())


def _label_values(ax: Axes) -> None:
    """At least two numbers on a logarithmic axis, at powers of ten if there are as many."""
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter

    low, high = ax.get_ylim()
    for locator in (LogLocator(), LogLocator(subs=(1, 2, 5)), MaxNLocator(4)):
        ticks = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
        if len(ticks) > 1:
            break
    ax.set_yticks(ticks)
    ax.yaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
    ax.yaxis.set_minor_formatter(NullFormatter())
