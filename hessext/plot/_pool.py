"""|H| in as few pixels as a screen has: the largest or the mean entry of every cell, none left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from hessext._checks import count

if TYPE_CHECKING:
    from hessext.matrix.block_matrix import BlockMatrix
    from hessext.matrix.hessian import Hessian

POOLINGS = ("max", "mean")
_DENSE = 512 << 20  # bytes of a part that is formed as one matrix; of a larger one, a few blocks at a time
_STRIP = 1 << 22  # entries of which a copy is made


class LayerBlocks(NamedTuple):
    """A layer along one side of the picture: `count` blocks of `size` entries."""

    name: str
    count: int
    size: int


class Side:
    """One side of the image: cells of at most `pool` entries, none across a layer, nor across a block >= pool."""

    def __init__(self, layers: Sequence[LayerBlocks], pool: int) -> None:
        self.layers = layers
        self.starts = []  # per layer: the first entry of each cell
        self.ends = [0]  # cells at which layers begin, and the end
        self.borders = []  # cells at which blocks inside a layer begin
        for _, blocks, size in layers:
            if size >= pool:
                starts = (np.arange(blocks)[:, None] * size + np.arange(0, size, pool)).ravel()
                if size > 1:
                    self.borders += list(self.ends[-1] + len(starts) // blocks * np.arange(1, blocks))
            else:
                starts = np.arange(0, blocks * size, pool)
            self.starts.append(starts)
            self.ends.append(self.ends[-1] + len(starts))


class Cells:
    """How a matrix of layers is divided into an image of about max_pixels at most, `pool` entries to a cell's side."""

    def __init__(self, rows: Sequence[LayerBlocks], cols: Sequence[LayerBlocks], max_pixels: int) -> None:
        max_pixels = count("max_pixels", max_pixels)
        self.pool = -(-max(sum(layer.count * layer.size for layer in side) for side in (rows, cols)) // max_pixels)
        self.down, self.across = Side(rows, self.pool), Side(cols, self.pool)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the image."""
        return self.down.ends[-1], self.across.ends[-1]

    def image(
        self, part: Callable[[int, int], BlockMatrix | torch.Tensor], symmetric: bool, pooling: str
    ) -> np.ndarray:
        """Pool part(i, j) for all pairs of layers, or those with i <= j of a symmetric matrix; float64."""
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected {' or '.join(POOLINGS)}; got {pooling!r}")
        image = np.empty(self.shape)
        for i, rows in enumerate(self.down.starts):
            for j, cols in enumerate(self.across.starts):
                place = [slice(*side.ends[k : k + 2]) for side, k in ((self.down, i), (self.across, j))]
                if symmetric and i > j:
                    image[tuple(place)] = image[tuple(place[::-1])].T
                else:
                    image[tuple(place)] = self._pooled(part(i, j), rows, cols, pooling)
        return image

    def _pooled(self, part: BlockMatrix | torch.Tensor, rows: np.ndarray, cols: np.ndarray, pooling: str) -> np.ndarray:
        if isinstance(part, torch.Tensor):
            return _reduced(part, rows, cols, pooling)
        entries = part.shape[0] * part.shape[1]
        if entries * part.dtype.itemsize <= _DENSE or min(part.block_shape) < self.pool:
            return _reduced(part.dense(), rows, cols, pooling)
        (rows_of, cols_of), (height, width) = part.grid, part.block_shape
        inside, across = rows[: len(rows) // rows_of], cols[: len(cols) // cols_of]  # cells of one block
        image = np.empty((rows_of, len(inside), cols_of, len(across)))
        at_once = max(1, _DENSE // (height * width * part.dtype.itemsize))
        for i in range(rows_of):
            for first in range(i if part.symmetric else 0, cols_of, at_once):
                js = range(first, min(first + at_once, cols_of))
                for j, block in zip(js, part.blocks([(i, j) for j in js]), strict=True):
                    image[i, :, j] = _reduced(block, inside, across, pooling)
                    if part.symmetric:
                        image[j, :, i] = image[i, :, j].T
        return image.reshape(len(rows), len(cols))


def _reduced(matrix: torch.Tensor, rows: np.ndarray, cols: np.ndarray, pooling: str) -> np.ndarray:
    """Largest or mean |entry| of each cell, given the first entries of the cells; by strips, without a copy of all."""
    matrix, ends = matrix.detach().cpu(), np.append(rows, len(matrix))
    step = max(1, _STRIP * len(rows) // matrix.numel())  # cells that a strip is high
    image = np.empty((len(rows), len(cols)))
    for first in range(0, len(rows), step):
        last = min(first + step, len(rows))
        strip, inside = matrix[ends[first] : ends[last]], ends[first:last] - ends[first]
        strip = (strip if strip.dtype == torch.float32 else strip.double()).abs().numpy()
        if pooling == "max":  # along rows first: there the entries of a cell are neighbours
            image[first:last] = np.maximum.reduceat(np.maximum.reduceat(strip, cols, axis=1), inside, axis=0)
        else:
            image[first:last] = np.add.reduceat(np.add.reduceat(strip, cols, axis=1, dtype=float), inside, axis=0)
    if pooling == "mean":
        image /= np.outer(np.diff(ends), np.diff(np.append(cols, matrix.shape[1])))
    return image


def numbers(name: str, values: object) -> torch.Tensor:
    """Return values as a dense tensor of real numbers, detached."""
    try:
        result = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected numbers; {error}") from None
    if result.is_complex() or result.layout != torch.strided or result.is_meta:
        raise TypeError(
            f"{name}: expected a dense tensor of real numbers; got {result.dtype}, {result.layout}, on {result.device}"
        )
    return result


def layout(H: Hessian | BlockMatrix | torch.Tensor) -> tuple[list[LayerBlocks], list[LayerBlocks], Callable, bool]:
    """Layers along rows and columns, part(i, j) of two of them, and whether the matrix is symmetric by construction."""
    if isinstance(H, torch.Tensor):
        H = numbers("H", H)
        if H.ndim != 2 or not H.numel():
            raise ValueError(f"H: expected a matrix with entries; got shape {tuple(H.shape)}")
        rows, cols = ([LayerBlocks("", 1, size)] for size in H.shape)
        return rows, cols, lambda i, j: H, False
    if not hasattr(H, "layers"):
        raise TypeError(f"H: expected a hessext.Hessian, a BlockMatrix or a tensor; got {type(H).__name__}")
    if hasattr(H, "grid"):
        rows, cols = ([LayerBlocks(*side)] for side in zip(H.layers, H.grid, H.block_shape, strict=True))
        return rows, cols, lambda i, j: H, False
    layers = [LayerBlocks(name, H[name].grid[0], H[name].block_shape[0]) for name in H.layers]
    return layers, layers, lambda i, j: H[H.layers[i], H.layers[j]], True
