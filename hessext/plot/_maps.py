"""Maps of a matrix: |H| with block borders, and the norms of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessext import _checks
from hessext._progress import as_call

from ._matplotlib import check_matplotlib
from ._pool import Cells, Side, layout, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from hessext.matrix.block_matrix import BlockMatrix
    from hessext.matrix.hessian import Hessian

DECADES = 1, 4  # fewest and most decades of a colour scale without given limits
SCALES = 1e-280, 1e280  # range of the ends of a colour scale without given limits
LIMITS = 1e-100, 1e100  # range of given limits: matplotlib's colour bar computes with numbers well beyond its ends
ZERO_COLOR = "0.8"  # of entries that are exactly zero
LINED_SHARE = 1 / 32  # of a side: blocks smaller than this have no lines between them, which would hide them
NAMED_SHARE = 0.1  # of a side: of two layers whose middles are closer than this, only the larger is named
POOLED = {"max": "largest", "mean": "mean"}  # pooling as a word of the caption
COLOR_MAP = "viridis"  # its lightness increases monotonically: readable in print and with colour-blindness


@as_call
def pool(H: Hessian | BlockMatrix | torch.Tensor, *, max_pixels: int = 1000, pooling: str = "max") -> np.ndarray:
    """Return the image that heat_map shows: the largest |entry| of each cell ("max"), or the mean of |entry| ("mean").

    The image has H's dtype and about max_pixels pixels on its longer side. No cell crosses the border of a layer, nor
    that of a block that is at least one cell wide. Of a pair of layers that takes more than 512 MiB, rows of blocks of
    this size are formed at a time.

    Raises:
        TypeError, ValueError: a bad argument. MemoryError: as H.blocks().
    """
    rows, cols, part, symmetric = layout(H)
    dtype = {torch.float32: np.float32}.get(H.dtype, np.float64)
    return Cells(rows, cols, max_pixels).image(part, symmetric, pooling).astype(dtype)


@as_call
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
    """Draw |H| on a logarithmic colour scale, with lines between layers and thin lines between large enough blocks.

    A matrix with more than max_pixels rows or columns is pooled: a pixel shows the *largest* |entry| that it covers, or
    the mean with pooling="mean". Exact zeros are grey. Values beyond the limits have the colour of the nearer end, and
    the colour bar has an arrow there. On a picture with fewer dots than pixels, colours of neighbours are blended.
    share_scale gives several maps one scale.

    Args:
        H: a Hessian (all pairs of layers, each neuron by neuron), a BlockMatrix, or a matrix (R, S).
        pooled: pool(H, ...) with the same max_pixels and pooling, if it is known already. H then gives only the borders
            and the names.
        pooling: "max" or "mean", as in pool.
        limits: ends of the colour scale. None: the smallest and the largest pixel, one to four decades apart.
        max_pixels: about the most pixels of a side.
        title: of the map.
        ax: axes to draw on; the image's label says what a pixel is. None: a new figure, which says it below the map.

    Raises:
        TypeError, ValueError, MemoryError: as pool. ImportError: matplotlib is missing.
    """
    rows, cols, part, symmetric = layout(H)
    cells = Cells(rows, cols, max_pixels)
    if pooled is None:
        pooled = cells.image(part, symmetric, pooling)
    else:
        pooled = numbers("pooled", pooled).double().cpu().numpy()
        if pooled.shape != cells.shape:
            raise ValueError(f"pooled: expected shape {cells.shape}; got {pooled.shape}")
    return _draw(cells, pooled, "|H|", "$|H|$", limits, title, ax, pooling)


@as_call
def block_norm_map(
    H: Hessian | BlockMatrix,
    *,
    norms: torch.Tensor | None = None,
    limits: tuple[float, float] | None = None,
    max_pixels: int = 1000,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the Frobenius norm of every block, one pixel for each; the rest is as in heat_map. No block is formed.

    norms: H.norms(), if they are known already.
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
    return _draw(cells, image, "Frobenius norm of a block", r"$\|H_{ij}\|_F$", limits, title, ax)


def share_scale(axes: Axes | Iterable[Axes], *, limits: tuple[float, float] | None = None) -> None:
    """Give the maps on these axes of one figure a common colour scale, with a colour bar right of each row of subplots.

    limits: as in heat_map; None stands for the pixels of all the maps together.

    Raises:
        TypeError: not matplotlib's Axes, or limits are no two numbers. ValueError: no map is on them; bad limits.
    """
    images = [image for ax in np.ravel(axes) for image in _axes("axes", ax).images if image.colorbar]
    if not images:
        raise ValueError("axes: expected some on which heat_map or block_norm_map has drawn; got none")
    _scale(images, limits, images[0].colorbar.ax.get_title())


def _draw(
    cells: Cells,
    image: np.ndarray,
    what: str,
    heading: str,
    limits: tuple[float, float] | None,
    title: str | None,
    ax: Axes | None,
    pooling: str = "max",
) -> Figure:
    """Show the image with a colour bar, borders of blocks and layers, and the layers' names."""
    check_matplotlib()
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    if ax is not None:
        _axes("ax", ax)
    note = f"{what}; a pixel is the {POOLED[pooling]} of {cells.pool} x {cells.pool}" if cells.pool > 1 else what
    note += "; grey: exactly 0" * bool((image == 0).any())
    if ax is None:
        ax = Figure(figsize=(7.5, 6), layout="constrained").subplots()
        ax.set_xlabel(note, fontsize="small")
    shown = ax.imshow(
        np.ma.masked_equal(image, 0),
        cmap=colormaps[COLOR_MAP].with_extremes(bad=ZERO_COLOR),
        interpolation="antialiased",  # on fewer dots than pixels colours are blended, and no pixel is dropped
        interpolation_stage="rgba",
        extent=(0, cells.across.ends[-1], cells.down.ends[-1], 0),
        label=note,
    )
    _outline(cells.down, ax.axhline, ax.yaxis, rotation=90, va="center")
    _outline(cells.across, ax.axvline, ax.xaxis)
    if title:
        ax.set_title(title, fontsize="medium")
    _scale([shown], limits, heading)
    return ax.figure


def _outline(side: Side, line: Callable, axis: Axis, **turned: object) -> None:
    """Draw lines between layers and large enough blocks, and name the layers: weights first, the largest first."""
    whole, named = side.ends[-1], {}
    shares = np.diff(side.ends) / whole
    for layer, share, borders in zip(side.layers, shares, side.borders, strict=True):
        for position in borders if share >= LINED_SHARE * layer.count else ():
            line(position, color="white", linewidth=0.4, alpha=0.7)
    for position, *beside in zip(side.ends[1:-1], shares, shares[1:], strict=False):
        line(position, color="white", linewidth=1.2 if min(beside) >= NAMED_SHARE else 0.5)
    biases = [layer.name.endswith("bias") for layer in side.layers]
    for k in np.lexsort((-shares, biases)):
        middle = (side.ends[k] + side.ends[k + 1]) / 2
        if all(abs(middle - other) >= NAMED_SHARE * whole for other in named):
            named[middle] = side.layers[k].name
    axis.set_ticks(sorted(named), [named[middle] for middle in sorted(named)], **turned)
    axis.set_tick_params(length=0)


def _scale(images: Sequence[AxesImage], limits: tuple[float, float] | None, heading: str) -> None:
    """Give the images one scale, and each row a bar. Default limits: the extreme pixels, kept DECADES apart."""
    from matplotlib.colors import LogNorm

    seen = np.concatenate([image.get_array().compressed() for image in images])
    seen = seen[np.isfinite(seen)]
    if limits is None:
        low, high = np.clip([seen.min(), seen.max()], *SCALES).tolist() if seen.size else (1.0, 1.0)
        nearest, farthest = (high * 10.0**-decades for decades in DECADES)
        limits = min(max(low, farthest), nearest), high
    else:
        limits = _limits(limits)
    under, over = (seen < limits[0]).any(), (seen > limits[1]).any()
    extend = ("neither", "min", "max", "both")[under + 2 * over]
    for bar in {image.colorbar for image in images} - {None}:
        bar.remove()
    norm, rows = LogNorm(*limits), {}
    for image in images:
        image.set_norm(norm)
        place = image.axes.get_subplotspec()
        rows.setdefault(place and place.rowspan.start, []).append(image)
    for row in rows.values():
        axes, n = [image.axes for image in row], len(row)
        bar = row[0].figure.colorbar(row[0], ax=axes, extend=extend, fraction=0.05 / n, pad=0.02 / n)
        bar.ax.set_title(heading, fontsize="medium", pad=18 if over else 6)
        for image in row:
            image.colorbar = bar


def _axes(name: str, ax: object) -> Axes:
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise TypeError(f"{name}: expected matplotlib's Axes; got {type(ax).__name__}")
    return ax


def _limits(limits: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (_checks.number("limits", end) for end in limits)
    except (TypeError, ValueError):
        raise TypeError(f"limits: expected two numbers, 0 < low < high; got {limits!r}") from None
    if not LIMITS[0] <= low < high <= LIMITS[1]:
        raise ValueError(f"limits: expected {LIMITS[0]:g} <= low < high <= {LIMITS[1]:g}; got {limits!r}")
    return low, high
