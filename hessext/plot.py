"""Pictures of a Hessian: |H| as a heat map with block borders, and the map of block norms. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from . import BlockMatrix, Hessian

DECADES = 4  # of the colour scale, where no limits are given
ZERO_COLOR = "0.8"  # of entries that are exactly zero
NAMED_SHARE = 0.08  # of a side: a narrower layer has no room for its name
COLOR_MAP = "viridis"  # lightness rises all the way: read alike with and without colour-blindness, and in print


class _Layer(NamedTuple):
    """`count` blocks of `size` entries along one side of the picture."""

    name: str
    count: int
    size: int


class _Side:
    """One side of the image: cells of at most `pool` entries, none across a layer, nor across a block >= pool."""

    def __init__(self, layers: list[_Layer], pool: int) -> None:
        self.starts = []  # per layer: the first entry of each cell
        self.ends = [0]  # cells at which layers begin, and the end
        self.borders = []  # cells at which blocks inside a layer begin
        for _, count, size in layers:
            if size >= pool:
                starts = (np.arange(count)[:, None] * size + np.arange(0, size, pool)).ravel()
                if size > 1:
                    self.borders += list(self.ends[-1] + len(starts) // count * np.arange(1, count))
            else:
                starts = np.arange(0, count * size, pool)
            self.starts.append(starts)
            self.ends.append(self.ends[-1] + len(starts))


def _pool(matrix: torch.Tensor, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Largest |entry| of each cell, given the first entries of the cells; works by strips, without a copy of all."""
    ends = [*rows[1:], matrix.shape[0]]
    strips = [matrix[a:b].detach().abs().amax(0) for a, b in zip(rows, ends, strict=True)]
    return np.maximum.reduceat(torch.stack(strips).double().cpu().numpy(), cols, axis=1)


def _draw(
    rows: list[_Layer],
    cols: list[_Layer],
    part: Callable[[int, int], torch.Tensor],
    what: str,
    limits: tuple[float, float] | None,
    max_pixels: int,
    title: str | None,
    ax: Axes | None,
) -> Figure:
    """Pool part(i, j) for all pairs of layers, put the results side by side, draw borders and names."""
    try:
        from matplotlib import colormaps
        from matplotlib.colors import LogNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("hessext.plot needs matplotlib: pip install matplotlib") from error
    if max_pixels < 1:
        raise ValueError(f"max_pixels: expected at least 1, got {max_pixels}")
    if limits is not None and not 0 < limits[0] < limits[1] < np.inf:
        raise ValueError(f"limits: expected 0 < low < high, got {limits}")
    entries = max(sum(layer.count * layer.size for layer in side) for side in (rows, cols))
    pool = -(-entries // max_pixels)
    down, across = _Side(rows, pool), _Side(cols, pool)
    image = np.block(
        [[_pool(part(i, j), a, b) for j, b in enumerate(across.starts)] for i, a in enumerate(down.starts)]
    )
    if limits is None:
        high = float(image[np.isfinite(image)].max(initial=0.0)) or 1.0
        limits = (high * 10.0**-DECADES, high)

    if ax is None:
        ax = Figure(figsize=(7.5, 6), layout="constrained").subplots()
    shown = ax.imshow(
        np.ma.masked_where(image == 0, np.clip(image, *limits)),
        norm=LogNorm(*limits),
        cmap=colormaps[COLOR_MAP].with_extremes(bad=ZERO_COLOR),
        interpolation="nearest",
        extent=(0, across.ends[-1], down.ends[-1], 0),
    )
    for side, layers, line, axis in ((down, rows, ax.axhline, ax.yaxis), (across, cols, ax.axvline, ax.xaxis)):
        for position in side.borders:
            line(position, color="white", linewidth=0.4, alpha=0.7)
        for position in side.ends[1:-1]:
            line(position, color="white", linewidth=1.5)
        spans = list(zip(side.ends, side.ends[1:], layers, strict=False))
        named = [(a, b, layer.name) for a, b, layer in spans if b - a >= NAMED_SHARE * side.ends[-1]]
        turned = {"rotation": 90, "va": "center"} if axis is ax.yaxis else {}
        axis.set_ticks([(a + b) / 2 for a, b, _ in named], [name for *_, name in named], **turned)
        axis.set_tick_params(length=0)
    if title:
        ax.set_title(title)
    bar = ax.figure.colorbar(shown, ax=ax, extend="both", fraction=0.046, pad=0.02)
    label = f"{what}, {limits[0]:.1e} to {limits[1]:.1e}"
    label += f"; a pixel is the largest of {pool} x {pool}" if pool > 1 else ""
    bar.set_label(label + ("; grey: exactly 0" if (image == 0).any() else ""))
    return ax.figure


def _check_hessian(H: object) -> None:
    if not hasattr(H, "layers"):
        raise TypeError(f"H: expected a hessext.Hessian or a BlockMatrix; got {type(H).__name__}")


def heat_map(
    H: Hessian | BlockMatrix | torch.Tensor,
    *,
    limits: tuple[float, float] | None = None,
    max_pixels: int = 1000,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """|H| on a logarithmic colour scale, thin lines between blocks, thick ones between layers.

    H: a Hessian (all pairs of layers, each neuron by neuron), a BlockMatrix, or a matrix (R, S). Where it has more
    than max_pixels rows or columns, a pixel is the *largest* of the entries that it covers. limits: ends of the scale
    (default: max |H| and four decades below); what lies beyond has the end's colour, exact zeros are grey.
    ax: where to draw; default a new figure. Raises ImportError without matplotlib, ValueError or TypeError for bad
    arguments, MemoryError as
    H.dense() does; one pair of layers is dense at a time.
    """
    if isinstance(H, torch.Tensor):
        if H.ndim != 2 or not H.numel():
            raise ValueError(f"H: expected a matrix with entries, got shape {tuple(H.shape)}")
        rows, cols = [_Layer("", 1, H.shape[0])], [_Layer("", 1, H.shape[1])]
        return _draw(rows, cols, lambda i, j: H, "|H|", limits, max_pixels, title, ax)
    if hasattr(H, "grid"):
        rows, cols = ([_Layer(*side)] for side in zip(H.layers, H.grid, H.block_shape, strict=True))
        return _draw(rows, cols, lambda i, j: H.dense(), "|H|", limits, max_pixels, title, ax)
    _check_hessian(H)
    layers = [_Layer(name, H[name].grid[0], H[name].block_shape[0]) for name in H.layers]

    def part(i: int, j: int) -> torch.Tensor:
        return H[H.layers[i], H.layers[j]].dense() if i <= j else part(j, i).mT

    return _draw(layers, layers, part, "|H|", limits, max_pixels, title, ax)


def block_norm_map(
    H: Hessian | BlockMatrix,
    *,
    limits: tuple[float, float] | None = None,
    max_pixels: int = 1000,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Frobenius norm of every block, one pixel a block; otherwise as heat_map. Forms no block."""
    what = "Frobenius norm of a block"
    if hasattr(H, "grid"):
        rows, cols = ([_Layer(name, count, 1)] for name, count in zip(H.layers, H.grid, strict=True))
        return _draw(rows, cols, lambda i, j: H.norms(), what, limits, max_pixels, title, ax)
    _check_hessian(H)
    layers = [_Layer(name, H[name].grid[0], 1) for name in H.layers]

    def part(i: int, j: int) -> torch.Tensor:
        return H[H.layers[i], H.layers[j]].norms() if i <= j else part(j, i).mT

    return _draw(layers, layers, part, what, limits, max_pixels, title, ax)
