"""Maps of a matrix: |H| with block borders, and the norms of its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from hessext import _checks

from ._matplotlib import check_matplotlib
from ._pool import Cells, layout, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hessext.matrix.block_matrix import BlockMatrix
    from hessext.matrix.hessian import Hessian

DECADES = 4  # of the colour scale at most, where no limits are given
SCALES = 1e-280, 1e280  # where colour scales of DECADES may end, and below
LIMITS = 1e-100, 1e100  # those that are given: matplotlib's bars compute with numbers well beyond their ends
ZERO_COLOR = "0.8"  # of entries that are exactly zero
BORDERS = 127  # between blocks along a side at most: closer lines make patterns of their own
NAMED_SHARE = 0.08  # of a side: a narrower layer has no room for its name
POOLED = {"max": "largest", "mean": "mean"}  # entry of a cell
COLOR_MAP = "viridis"  # lightness rises all the way: read alike with and without colour-blindness, and in print


def pool(H: Hessian | BlockMatrix | torch.Tensor, *, max_pixels: int = 1000, pooling: str = "max") -> np.ndarray:
    """The image that heat_map shows: of every cell the largest |entry| ("max") or the mean of |entry| ("mean").

    Of H's dtype, about max_pixels on the longer side; no cell is in two layers, nor in two blocks with room for cells.
    Of a pair of layers above 512 MiB so much is formed at a time, in rows of blocks. Raises ValueError or TypeError for
    bad arguments, MemoryError as H.blocks() does.
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
