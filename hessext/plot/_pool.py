"""|H| pooled to as few pixels as a screen has: the largest or the mean |entry| of each cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from hessext._checks import count
from hessext._progress import steps

if TYPE_CHECKING:
    from hessext.matrix.block_matrix import BlockMatrix
    from hessext.matrix.hessian import Hessian

POOLINGS = {"max": np.maximum, "mean": np.add}  # reduction over a cell; a mean's sum is divided at the end
_FORMED = 512 << 20  # bytes: a larger part is not formed as one matrix, but some rows of blocks at a time
_STRIP = 1 << 22  # entries copied at a time


class LayerBlocks(NamedTuple):
    """A layer along one side of the matrix: `count` blocks of `size` entries."""

    name: str
    count: int
    size: int

    @property
    def numel(self) -> int:
        """Entries along the side."""
        return self.count * self.size


class Side:
    """One side of the image, in cells of at most `pool` entries.

    No cell crosses the border of a layer, nor that of a block of at least `pool` entries.
    """

    def __init__(self, layers: Sequence[LayerBlocks], pool: int) -> None:
        self.layers = layers
        self.starts = []  # per layer: the first entry of each cell
        self.ends = [0]  # the first cell of each layer, and the number of all cells
        self.borders = []  # per layer: the first cell of each block but the first; empty for small blocks
        for _, blocks, size in layers:
            if size >= pool:
                starts = (np.arange(blocks)[:, None] * size + np.arange(0, size, pool)).ravel()
            else:
                starts = np.arange(0, blocks * size, pool)
            lined = size > 1 and size >= pool
            self.borders.append(self.ends[-1] + len(starts) // blocks * np.arange(1, blocks) if lined else ())
            self.starts.append(starts)
            self.ends.append(self.ends[-1] + len(starts))


class Cells:
    """The division of a matrix of layers into cells of at most pool x pool entries, about max_pixels on a side."""

    def __init__(self, rows: Sequence[LayerBlocks], cols: Sequence[LayerBlocks], max_pixels: int) -> None:
        max_pixels = count("max_pixels", max_pixels)
        self.pool = -(-max(sum(layer.numel for layer in side) for side in (rows, cols)) // max_pixels)
        self.down, self.across = Side(rows, self.pool), Side(cols, self.pool)

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels of the image, (rows, columns)."""
        return self.down.ends[-1], self.across.ends[-1]

    def image(
        self, part: Callable[[int, int], BlockMatrix | torch.Tensor], symmetric: bool, pooling: str
    ) -> np.ndarray:
        """Pool part(i, j) of all pairs of layers to an image, float64; of a symmetric matrix those with i <= j."""
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected {' or '.join(POOLINGS)}; got {pooling!r}")
        image = np.empty(self.shape)
        down, across = self.down, self.across
        pairs = [(i, j) for i in range(len(down.layers)) for j in range(i if symmetric else 0, len(across.layers))]
        for i, j in steps(pairs, lambda pair: down.layers[pair[0]].numel * across.layers[pair[1]].numel):
            place = slice(*down.ends[i : i + 2]), slice(*across.ends[j : j + 2])
            image[place] = self._pooled(part(i, j), down.starts[i], across.starts[j], pooling)
            if symmetric and i < j:
                image[place[::-1]] = image[place].T
        return image

    def _pooled(self, part: BlockMatrix | torch.Tensor, rows: np.ndarray, cols: np.ndarray, pooling: str) -> np.ndarray:
        """Pool one part, given the first entry of each cell. A cell may lie in several pieces of the part."""
        combine, dtype = POOLINGS[pooling], float if pooling == "mean" else None
        image = np.zeros((len(rows), len(cols)))
        for matrix, top, left, mirrored in _pieces(part):
            across, col_starts = _met(cols, left, matrix.shape[1])
            step = max(1, _STRIP // matrix.shape[1])
            for first in range(0, len(matrix), step):
                strip = matrix[first : first + step].detach().cpu()
                strip = (strip if strip.dtype == torch.float32 else strip.double()).abs().numpy()
                down, row_starts = _met(rows, top + first, len(strip))
                along = combine.reduceat(strip, col_starts, axis=1, dtype=dtype)  # a cell is contiguous along this axis
                cells = combine.reduceat(along, row_starts, axis=0)
                for whole in (image, image.T)[: 1 + mirrored]:
                    combine(whole[down, across], cells, out=whole[down, across])
        if pooling == "mean":
            image /= np.outer(*(np.diff(starts, append=n) for starts, n in zip((rows, cols), part.shape, strict=True)))
        return image


def _pieces(part: BlockMatrix | torch.Tensor) -> Iterator[tuple[torch.Tensor, int, int, bool]]:
    """Yield the matrices that a part consists of, their first row and column, and whether to mirror them.

    A large part is formed in slabs of rows of blocks. Of a symmetric one only the upper triangle of slabs is formed,
    and what lies right of the slab on the diagonal stands for its transpose as well.
    """
    if isinstance(part, torch.Tensor):
        yield part, 0, 0, False
        return
    (K, J), (height, width), size = part.grid, part.block_shape, part.dtype.itemsize
    if K * J * height * width * size <= _FORMED:
        yield part.dense(), 0, 0, False
        return
    most = max(1, _FORMED // (height * width * size))
    slab = max(1, most // J)
    first = {i: i if part.symmetric else 0 for i in range(0, K, slab)}
    for i in steps(first, lambda i: (min(i + slab, K) - i) * (J - first[i])):
        end = min(i + slab, K)
        for j in steps(range(first[i], J, most)):
            js = torch.arange(j, min(j + most, J))
            blocks = part.blocks(torch.cartesian_prod(torch.arange(i, end), js)).view(-1, len(js), height, width)
            # The first `square` columns of blocks contain their own mirror images.
            square = min(max(0, end - j), len(js)) if part.symmetric else len(js)
            for row, strip in enumerate(blocks, i):
                matrix = strip.transpose(0, 1).reshape(height, -1)
                if square:
                    yield matrix[:, : square * width], row * height, j * width, False
                if square < len(js):
                    yield matrix[:, square * width :], row * height, (j + square) * width, True


def _met(starts: np.ndarray, first: int, count: int) -> tuple[slice, np.ndarray]:
    """Return the cells that contain the entries first .. first + count - 1, and where each begins among these."""
    met = slice(np.searchsorted(starts, first, "right") - 1, np.searchsorted(starts, first + count))
    return met, np.maximum(starts[met] - first, 0)


def numbers(name: str, values: object) -> torch.Tensor:
    """Return values as a dense, detached tensor of real numbers. Raises TypeError."""
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
    """Return the layers along rows and columns, part(i, j) of two of them, and whether part(j, i) is its transpose.

    Raises TypeError, ValueError.
    """
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
