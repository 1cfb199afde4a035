"""One layer's Hessian, or a cross-layer part, as a grid of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessext import _checks
from hessext._tensors import own_precision

from . import assemble, block_diagonal, norms, scipy_operator
from .part import Part
from .product import part_product
from .results import BlockRatio, RowNorms

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class BlockMatrix:
    """A part of the Hessian: block (i, j) = d2 loss / d(row i of one layer) d(row j of the other).

    Rows and columns run block by block: parameter a of block i is row i * s + a, a layer's bias the last of each block.
    Nothing is computed before it is asked for; results have the inputs' dtype and device.
    """

    def __init__(self, part: Part) -> None:
        self._part = part

    # ------------------------------------------------------------------------------------------------------ sizes

    @property
    def layers(self) -> tuple[str, str]:
        """Names of the row and the column layer."""
        return self._part.row.name, self._part.col.name

    @property
    def grid(self) -> tuple[int, int]:
        """Number of block rows and block columns."""
        return self._part.grid

    @property
    def block_shape(self) -> tuple[int, int]:
        """Shape of one block."""
        return self._part.block_shape

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the whole matrix."""
        return self._part.shape

    @property
    def symmetric(self) -> bool:
        """Whether both layers are the same."""
        return self._part.same

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the results."""
        return self._part.dtype

    @property
    def device(self) -> torch.device:
        """Device of the results."""
        return self._part.device

    @property
    def T(self) -> BlockMatrix:
        """The transpose: the part of H between the same layers in the other order."""
        return BlockMatrix(self._part.T)

    def __repr__(self) -> str:
        """Layers, grid, block shape, bytes when dense."""
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        grid, block = "x".join(map(str, self.grid)), "x".join(map(str, self.block_shape))
        return f"BlockMatrix({' x '.join(self.layers)}: {grid} blocks of {block}, {self.dtype}, dense {size:,} bytes)"

    # ----------------------------------------------------------------------------------------------------- blocks

    def block(self, i: int, j: int) -> Tensor:
        """Block (i, j), shaped `block_shape`. Raises IndexError outside the grid."""
        return assemble.blocks(self._part, torch.tensor([_checks.block_index(i, j, self.grid)], device=self.device))[0]

    def blocks(self, pairs: Tensor | Sequence[tuple[int, int]]) -> Tensor:
        """Blocks (P, *block_shape) of pairs (i, j): int64 (P, 2) or a list. Raises IndexError, MemoryError."""
        return assemble.blocks(self._part, _checks.pairs(pairs, *self.grid, self.device))

    def diagonal_blocks(self) -> Tensor:
        """Blocks (i, i), (K, s, s). Raises ValueError for a part between different layers."""
        self._within("diagonal_blocks")
        return assemble.blocks(self._part, assemble.diagonal_pairs(0, self.grid[0], self.device))

    def dense(self, out: Tensor | None = None) -> Tensor:
        """The whole matrix, shaped `shape`, into `out` if given. Raises MemoryError before anything is allocated."""
        return assemble.dense(self._part, out)

    # ------------------------------------------------------------------------------------------ norms and sums

    @own_precision
    def norms(self, pairs: Tensor | Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Frobenius norms of all blocks, shaped `grid`, or (P,) of the listed pairs; no block is kept.

        Raises IndexError for a pair outside the grid, MemoryError.
        """
        if pairs is not None:
            pairs = _checks.pairs(pairs, *self.grid, self.device)
        return norms.block_norms(self._part, pairs)

    @own_precision
    def ratio(self) -> BlockRatio:
        """Means of ||H_ii||_F^2 and of ||H_ij||_F^2, i != j, over all blocks, and the second over the first.

        Without off-diagonal blocks their mean is 0. Raises ValueError for a part between different layers.
        """
        self._within("ratio")
        return norms.block_ratio(self._part)

    @own_precision
    def row_norms(self) -> RowNorms:
        """For each block row: ||H_ii||_F, mean and largest ||H_ij||_F, j != i, and where; K^2 norms in O(K) memory.

        Raises ValueError for a part between different layers.
        """
        self._within("row_norms")
        return norms.row_norms(self._part)

    def diagonal(self) -> Tensor:
        """The diagonal (shape[0],). Raises ValueError for a part between different layers."""
        self._within("diagonal")
        return self._part.data.sum(lambda samples, _: assemble.diagonal(self._part.of(samples)))

    def trace(self) -> Tensor:
        """The trace, a scalar tensor. Raises ValueError for a part between different layers."""
        self._within("trace")
        return self.diagonal().sum(dtype=torch.float64).to(self.dtype)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Exact product with a vector (shape[1],) or a matrix (shape[1], k)."""
        v = _checks.multiplied("v", v, self.shape[1], self._part.like)
        return self._part.data.sum(lambda samples, _: part_product(self._part.of(samples), v))

    def to_scipy(self) -> LinearOperator:
        """A scipy.sparse.linalg.LinearOperator, for eigsh, svds, ...: products `B @ v` and `B.T @ v`, of B's dtype."""
        return scipy_operator.linear_operator(self, self.T)

    # -------------------------------------------------------------------------------------------- block by block

    @own_precision
    def solve_block_diagonal(self, v: Tensor, damping: float = 0.0) -> Tensor:
        """u, like v, (shape[0],) or (shape[0], k), with (H_ii + damping I) u_i = v_i for every block: LU, in pieces.

        A nearly singular block (fewer samples than s, no damping) gives large u, as in torch.linalg.solve. Raises
        torch.linalg.LinAlgError for a singular block, ValueError for damping < 0 or a part between different layers,
        MemoryError.
        """
        self._within("solve_block_diagonal")
        v = _checks.multiplied("v", v, self.shape[0], self._part.like)
        return block_diagonal.solve(self._part, v, _checks.real("damping", damping, 0))

    @own_precision
    def eigh_blocks(self) -> torch.return_types.linalg_eigh:
        """torch.linalg.eigh of every diagonal block: `eigenvalues` (K, s), ascending, and `eigenvectors` (K, s, s).

        Raises ValueError for a part between different layers, MemoryError.
        """
        self._within("eigh_blocks")
        return block_diagonal.eigh(self._part)

    def _within(self, method: str) -> None:
        if not self.symmetric:
            raise ValueError(
                f"{method}: expected one layer; this is the part between {self.layers[0]} and {self.layers[1]}"
            )
