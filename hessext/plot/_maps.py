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

DECADES = 1, 4  # of a colour scale at least and at most, where no limits are given
SCALES = 1e-280, 1e280  # where such scales may end, and below
LIMITS = 1e-100, 1e100  # those that are given: matplotlib's bars compute with numbers well beyond their ends
ZERO_COLOR = "0.8"  # of entries that are exactly zero
LINED_SHARE = 1 / 32  # of a side: lines between smaller blocks would veil them
NAMED_SHARE = 0.1  # of a side: names of layers that lie closer together have no room
POOLED = {"max": "largest", "mean": "mean"}  # entry of a cell
COLOR_MAP = "viridis"  # lightness rises all the way: read alike with and without colour-blindness, and in print


@as_call
def pool(H: Hessian | BlockMatrix | torch.Tensor, *, max_pixels: int = 1000, pooling: str = "max") -> np.ndarray:
    """The image that heat_map shows: of every cell the largest |entry| ("max") or the mean of |entry| ("mean").

    Of H's dtype, about max_pixels on the longer side; no cell is in two layers, nor in two blocks with room for cells.
    Of a pair of layers above 512 MiB so much is formed at a time, in rows of blocks. Raises ValueError or TypeError for
    bad arguments, MemoryError as H.blocks() does.
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
    """|H| on a logarithmic colour scale, with lines between layers, and thin ones between blocks that have room.

    H: a Hessian (all pairs of layers, each neuron by neuron), a BlockMatrix, or a matrix (R, S). Where it has more
    than max_pixels rows or columns, a pixel is the *largest* of the entries that it covers, or with pooling="mean"
    their mean. pooled: pool(H, ...) with the same max_pixels, where it is there already; H then gives the borders and
    names only. limits: ends of the scale (default: the largest and the smallest pixel, one to four decades below);
    what lies beyond has the end's colour and an arrow at the scale, exact zeros are grey. A picture of fewer dots than
    max_pixels blends colours of neighbours and leaves none out. ax: where to draw, with what a pixel is as the image's
    label, for a caption; default a new figure, which says it below. share_scale gives several maps one scale.
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
    return _draw(cells, image, "Frobenius norm of a block", r"$\|H_{ij}\|_F$", limits, title, ax)


def share_scale(axes: Axes | Iterable[Axes], *, limits: tuple[float, float] | None = None) -> None:
    """Give the maps on these axes of a figure one colour scale, with one bar on the right of each row of subplots.

    limits: as in heat_map, of all the maps together. Raises ValueError where there is no map, TypeError.
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
    note = f"{what}, {POOLED[pooling]} of {cells.pool} x {cells.pool}" if cells.pool > 1 else what
    note += "; grey: exactly 0" * bool((image == 0).any())
    if ax is None:
        ax = Figure(figsize=(7.5, 6), layout="constrained").subplots()
        ax.set_xlabel(note, fontsize="small")
    shown = ax.imshow(
        np.ma.masked_equal(image, 0),
        cmap=colormaps[COLOR_MAP].with_extremes(bad=ZERO_COLOR),
        interpolation="antialiased",  # on fewer dots colours are blended, none is left out
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
    """Lines between layers, and between their blocks where these have room; names of layers, the largest first."""
    whole, named = side.ends[-1], {}
    shares = np.diff(side.ends) / whole
    for layer, share, borders in zip(side.layers, shares, side.borders, strict=True):
        for position in borders if share >= LINED_SHARE * layer.count else ():
            line(position, color="white", linewidth=0.4, alpha=0.7)
    for position, *beside in zip(side.ends[1:-1], shares, shares[1:], strict=False):
        line(position, color="white", linewidth=1.2 if min(beside) >= NAMED_SHARE else 0.5)
    for k in np.argsort(-shares, kind="stable"):
        middle = (side.ends[k] + side.ends[k + 1]) / 2
        if all(abs(middle - other) >= NAMED_SHARE * whole for other in named):
            named[middle] = side.layers[k].name
    axis.set_ticks(sorted(named), [named[middle] for middle in sorted(named)], **turned)
    axis.set_tick_params(length=0)


def _scale(images: Sequence[AxesImage], limits: tuple[float, float] | None, heading: str) -> None:
    """One scale for the images, and a bar for each row; default limits are those of all pixels, DECADES apart."""
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
