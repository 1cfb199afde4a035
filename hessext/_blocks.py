"""One layer's Hessian, or a cross-layer part, as a grid of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _block_diagonal, _checks, _ops, _scipy
from ._network import Layer, own_precision
from ._norms import BlockRatio, RowNorms, block_norms, block_ratio, diagonal_entries, row_norms
from ._problem import Data, Problem, Term
from ._product import columns, from_affine, product, to_affine

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class BlockMatrix:
    """A part of the Hessian: block (i, j) = d2 loss / d(row i of one layer) d(row j of the other).

    Rows and columns run block by block: parameter a of block i is row i * s + a, a layer's bias the last of each block.
    Nothing is computed before it is asked for; results have the inputs' dtype and device.
    """

    def __init__(self, data: Data, term: Term, row: Layer, col: Layer) -> None:
        self._data, self._term, self._row, self._col = data, term, row, col
        # The core has hidden rows and output columns; the other way round is its transpose.
        self._swapped = row.kind == "output" and col.kind == "hidden"

    # ------------------------------------------------------------------------------------------------------ sizes

    @property
    def layers(self) -> tuple[str, str]:
        """Names of the row and the column layer."""
        return self._row.name, self._col.name

    @property
    def grid(self) -> tuple[int, int]:
        """Number of block rows and block columns."""
        return self._row.blocks, self._col.blocks

    @property
    def block_shape(self) -> tuple[int, int]:
        """Shape of one block."""
        return self._row.size, self._col.size

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the whole matrix."""
        return self._row.blocks * self._row.size, self._col.blocks * self._col.size

    @property
    def symmetric(self) -> bool:
        """Whether both layers are the same."""
        return self._row == self._col

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the results."""
        return self._data.network.like.dtype

    @property
    def device(self) -> torch.device:
        """Device of the results."""
        return self._data.network.like.device

    @property
    def T(self) -> BlockMatrix:
        """The transpose: the part of H between the same layers in the other order."""
        return BlockMatrix(self._data, self._term, self._col, self._row)

    def __repr__(self) -> str:
        """Layers, grid, block shape, bytes when dense."""
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        grid, block = "x".join(map(str, self.grid)), "x".join(map(str, self.block_shape))
        return f"BlockMatrix({' x '.join(self.layers)}: {grid} blocks of {block}, {self.dtype}, dense {size:,} bytes)"

    # ----------------------------------------------------------------------------------------------------- blocks

    @property
    def _problem(self) -> Problem:
        """All of the data in memory."""
        return self._data.in_memory()

    def _arguments(self, problem: Problem | None = None) -> tuple:
        row, col = (self._col, self._row) if self._swapped else (self._row, self._col)
        return (problem or self._problem).arguments(row, col, self._term)

    @property
    def _replicated(self) -> bool:
        return self._data.replicated(self._row, self._col)

    def block(self, i: int, j: int) -> Tensor:
        """Block (i, j), shaped `block_shape`. Raises IndexError outside the grid."""
        return self._blocks(torch.tensor([_checks.block_index(i, j, self.grid)], device=self.device))[0]

    def blocks(self, pairs: Tensor | Sequence[tuple[int, int]]) -> Tensor:
        """Blocks (P, *block_shape) of pairs (i, j): int64 (P, 2) or a list. Raises IndexError, MemoryError."""
        return self._blocks(_checks.pairs(pairs, *self.grid, self.device))

    def diagonal_blocks(self) -> Tensor:
        """Blocks (i, i), (K, s, s). Raises ValueError for a part between different layers."""
        self._within("diagonal_blocks")
        return self._blocks(torch.arange(self.grid[0], device=self.device)[:, None].expand(-1, 2))

    def _blocks(self, pairs: Tensor) -> Tensor:
        entries = len(pairs) * self._row.size * self._col.size
        _checks.memory(self._data.results * entries * self.dtype.itemsize, f"{len(pairs)} blocks", self.device)
        given = pairs.new_zeros(1, 2) if self._replicated else (pairs.flip(1) if self._swapped else pairs).contiguous()

        def blocks(problem: Problem, _: Tensor | None) -> Tensor:
            return _ops.blocks(given, self._swapped, *self._arguments(problem))

        result = self._data.sum(blocks)
        return result * (pairs[:, 0] == pairs[:, 1])[:, None, None] if self._replicated else result

    def dense(self, out: Tensor | None = None) -> Tensor:
        """The whole matrix, shaped `shape`, into `out` if given. Raises MemoryError before anything is allocated."""
        like = self._data.network.like
        row, col = (self._col, self._row) if self._swapped else (self._row, self._col)
        axes = [n for layer in (row, col) for n in (0, layer.size, layer.cols, layer.size)]
        direct, mirror = not self._swapped, self._swapped or self.symmetric

        def dense(problem: Problem, out: Tensor | None) -> Tensor:
            out = _checks.out(out, self.shape, like)
            if self._replicated:
                out.zero_()
            _ops.dense_(out, self.shape[1], axes, direct, mirror, None, *self._arguments(problem))
            return out

        return self._data.sum(dense, _checks.out(out, self.shape, like, self._data.results))

    # ------------------------------------------------------------------------------------------ norms and sums

    @own_precision
    def norms(self, pairs: Tensor | Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Frobenius norms of all blocks, shaped `grid`, or (P,) of the listed pairs; no block is formed.

        Raises IndexError for a pair outside the grid, MemoryError.
        """
        if pairs is not None:
            pairs = _checks.pairs(pairs, *self.grid, self.device)
        return block_norms(self, pairs)

    @own_precision
    def ratio(self) -> BlockRatio:
        """Means of ||H_ii||_F^2 and of ||H_ij||_F^2, i != j, over all blocks, and the second over the first.

        Without off-diagonal blocks their mean is 0. Raises ValueError for a part between different layers.
        """
        self._within("ratio")
        return block_ratio(self)

    @own_precision
    def row_norms(self) -> RowNorms:
        """For each block row: ||H_ii||_F, mean and largest ||H_ij||_F, j != i, and where; K^2 norms in O(K) memory.

        Raises ValueError for a part between different layers.
        """
        self._within("row_norms")
        return row_norms(self)

    def diagonal(self) -> Tensor:
        """The diagonal (shape[0],). Raises ValueError for a part between different layers."""
        self._within("diagonal")
        return self._data.sum(lambda problem, _: diagonal_entries(self._of(problem)))

    def trace(self) -> Tensor:
        """The trace, a scalar tensor. Raises ValueError for a part between different layers."""
        self._within("trace")
        return self.diagonal().sum(dtype=torch.float64).to(self.dtype)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Exact product with a vector (shape[1],) or a matrix (shape[1], k)."""
        v = _checks.multiplied("v", v, self.shape[1], self._data.network.like)

        def apply(problem: Problem, c: Tensor) -> Tensor:
            direction = {self._col.kind: to_affine(self._col, c)}
            result = product(problem, self._term, direction, {self._row.kind})
            return from_affine(self._row, result[self._row.kind])

        return self._data.sum(lambda problem, _: columns(lambda c: apply(problem, c), v, self.shape[0], self.dtype))

    def to_scipy(self) -> LinearOperator:
        """A scipy.sparse.linalg.LinearOperator, for eigsh, svds, ...: products `B @ v` and `B.T @ v`, of B's dtype."""
        return _scipy.linear_operator(self, self.T)

    # -------------------------------------------------------------------------------------------- block by block

    @own_precision
    def solve_block_diagonal(self, v: Tensor, damping: float = 0.0) -> Tensor:
        """u, like v, (shape[0],) or (shape[0], k), with (H_ii + damping I) u_i = v_i for every block: LU, in pieces.

        A nearly singular block (fewer samples than s, no damping) gives large u, as in torch.linalg.solve. Raises
        torch.linalg.LinAlgError for a singular block, ValueError for damping < 0 or a part between different layers,
        MemoryError.
        """
        self._within("solve_block_diagonal")
        v = _checks.multiplied("v", v, self.shape[0], self._data.network.like)
        return _block_diagonal.solve(self, v, _checks.real("damping", damping, 0))

    @own_precision
    def eigh_blocks(self) -> torch.return_types.linalg_eigh:
        """torch.linalg.eigh of every diagonal block: `eigenvalues` (K, s), ascending, and `eigenvectors` (K, s, s).

        Raises ValueError for a part between different layers, MemoryError.
        """
        self._within("eigh_blocks")
        return _block_diagonal.eigh(self)

    def _of(self, problem: Problem) -> BlockMatrix:
        """The same part for some of the data."""
        return BlockMatrix(problem, self._term, self._row, self._col)

    def _within(self, method: str) -> None:
        if not self.symmetric:
            raise ValueError(
                f"{method}: expected one layer; this is the part between {self.layers[0]} and {self.layers[1]}"
            )
