"""One layer's Hessian, or a cross-layer part, as a grid of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessext import _checks
from hessext._tensors import own_precision
from hessext.data.classes import own_vector
from hessext.data.ranks import Ranks, collective

from . import (
    approximations,
    assemble,
    block_diagonal,
    inner,
    kronecker,
    norms,
    notebook,
    requests,
    sample_curvature,
    scipy_operator,
)
from .curvature import diagonal_pairs
from .kronecker import NearestKronecker
from .part import Part
from .preconditioner import preconditioner
from .product import part_product
from .results import Approximations, BlockRatio, CurvatureParts, PreconditionedSpectrum, RowNorms
from .spectrum import extreme_eigenvalues

if TYPE_CHECKING:
    import numpy as np
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
    def ranks(self) -> Ranks:
        """Who has the other samples, and must ask for the same results."""
        return self._part.ranks

    @property
    def T(self) -> BlockMatrix:
        """The transpose: the part of H between the same layers in the other order."""
        return BlockMatrix(self._part.T)

    def __repr__(self) -> str:
        """Layers, grid, block shape, bytes when dense."""
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        grid, block = "x".join(map(str, self.grid)), "x".join(map(str, self.block_shape))
        return f"BlockMatrix({' x '.join(self.layers)}: {grid} blocks of {block}, {self.dtype}, dense {size:,} bytes)"

    def _repr_html_(self) -> str:
        """For notebooks: sizes, and a small picture of the norms of all blocks where that is cheap."""
        return notebook.page(repr(self), {" × ".join(self.layers): self}, [self._part], self.norms)

    # ----------------------------------------------------------------------------------------------------- blocks

    @collective
    def block(self, i: int, j: int) -> Tensor:
        """Block (i, j), shaped `block_shape`. Raises IndexError outside the grid."""
        return assemble.blocks(self._part, torch.tensor([requests.block_index(i, j, self.grid)], device=self.device))[0]

    @collective
    def blocks(self, pairs: Tensor | Sequence[tuple[int, int]]) -> Tensor:
        """Blocks (P, *block_shape) of pairs (i, j): int64 (P, 2) or a list. Raises IndexError, MemoryError."""
        return assemble.blocks(self._part, requests.pairs(pairs, *self.grid, self.device))

    @collective
    def diagonal_blocks(self) -> Tensor:
        """Blocks (i, i), (K, s, s). Raises ValueError for a part between different layers."""
        self._within("diagonal_blocks")
        return assemble.blocks(self._part, diagonal_pairs(0, self.grid[0], self.device))

    @collective
    def dense(self, out: Tensor | None = None) -> Tensor:
        """The whole matrix, shaped `shape`, into `out` if given. Raises MemoryError before anything is allocated."""
        return assemble.dense(self._part, out)

    # ------------------------------------------------------------------------------------------ norms and sums

    @collective
    @own_precision
    def norms(self, pairs: Tensor | Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Frobenius norms of all blocks, shaped `grid`, or (P,) of the listed pairs; no block is kept.

        Raises IndexError for a pair outside the grid, MemoryError.
        """
        if pairs is not None:
            pairs = requests.pairs(pairs, *self.grid, self.device)
        return norms.block_norms(self._part, pairs)

    @collective
    @own_precision
    def ratio(self) -> BlockRatio:
        """Means of ||H_ii||_F^2 and of ||H_ij||_F^2, i != j, over all blocks, and the second over the first.

        Without off-diagonal blocks their mean is 0. Raises ValueError for a part between different layers.
        """
        self._within("ratio")
        return norms.block_ratio(self._part)

    @collective
    @own_precision
    def row_norms(self) -> RowNorms:
        """For each block row: ||H_ii||_F, mean and largest ||H_ij||_F, j != i, and where; K^2 norms in O(K) memory.

        Raises ValueError for a part between different layers.
        """
        self._within("row_norms")
        return norms.row_norms(self._part)

    @collective
    def diagonal(self) -> Tensor:
        """The diagonal (shape[0],). Raises ValueError for a part between different layers."""
        self._within("diagonal")
        return self._part.data.sum(lambda samples, _: assemble.diagonal(self._part.of(samples)))

    @collective
    def trace(self) -> Tensor:
        """The trace, a scalar tensor. Raises ValueError for a part between different layers."""
        self._within("trace")
        return self._part.data.sum(lambda samples, _: assemble.trace(self._part.of(samples))).to(self.dtype)

    @collective
    def __matmul__(self, v: Tensor) -> Tensor:
        """Exact product with a vector (shape[1],) or a matrix (shape[1], k).

        Where classes are split over ranks, a DTensor with the rows of each rank, and then the result is such a one.
        """
        if hasattr(v, "placements"):
            rows = own_vector("v", v, self._part.data.network, self.block_shape[1])
            found = self._part.data.sum(lambda samples, _: part_product(self._part.of(samples), rows, own_rows=True))
            return type(v).from_local(found, v.device_mesh, v.placements, shape=v.shape, stride=v.stride())
        v = _checks.multiplied("v", v, self.shape[1], self._part.like)
        return self._part.data.sum(lambda samples, _: part_product(self._part.of(samples), v))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """The whole matrix for numpy."""
        return scipy_operator.dense_array(self, dtype, copy)

    def to_scipy(self) -> LinearOperator:
        """A scipy.sparse.linalg.LinearOperator, for eigsh, svds, ...: products `B @ v` and `B.T @ v`, of B's dtype."""
        return scipy_operator.linear_operator(self, self.T)

    # ------------------------------------------------------------------------------- structure and what it loses

    @collective
    @own_precision
    def norm(self) -> float:
        """||B||_F; no block is kept."""
        return norms.norm(self._part)

    @collective
    @own_precision
    def inner(self, other: tuple[Tensor, Tensor] | Tensor | BlockMatrix) -> float:
        """<B, other>_F, other not formed as a whole.

        Args:
            other: a pair (G, A) of Kronecker factors (K, K), (s, s); a diagonal (K s,); diagonal blocks (K, s, s); or
                another BlockMatrix of the same grid and block shape, of other weights, data or another term.

        Raises ValueError for another shape or device, or a part between layers with what is no BlockMatrix; TypeError.
        """
        part = self._part
        if isinstance(other, BlockMatrix):
            if (other.grid, other.block_shape, other.device) != (self.grid, self.block_shape, self.device):
                raise ValueError(f"other: expected the sizes and the device of {self!r}; got {other!r}")
            if other.dtype != self.dtype:
                raise TypeError(f"other: expected {self.dtype}; got {other.dtype} (H.to(...) changes it)")
            if not part.ranks.same_as(other.ranks):
                raise ValueError("other: expected a part over the same ranks; got one over others")
            return inner.with_part(part, other._part)
        self._within("inner")
        if isinstance(other, tuple | list):
            return inner.with_factors(part, *requests.factors("other", other, self.grid, self.block_shape, part.like))
        _checks.tensor("other", other)
        if other.ndim == 1:
            return inner.with_diagonal(part, _checks.vector("other", other, size=self.shape[0], like=part.like))
        return inner.with_blocks(part, _checks.floats("other", other, (self.grid[0], *self.block_shape), part.like))

    @collective
    @own_precision
    def approximations(
        self,
        *,
        groups: int | Tensor | Sequence[int] | None = None,
        factors: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        largest: int = 2048,
    ) -> Approximations:
        """What structured approximations of this layer's matrix lose: a table to print, rows by name.

        "block-diagonal", "input-column blocks", "diagonal", "Adam-mini", "K-FAC", "E-KFAC", "Shampoo", "Shampoo,
        squared factors", "one-sided" (Muon-like), "nearest Kronecker"; docs/approximations.md defines them.
        Nothing of C x C numbers or more is formed but for E-KFAC and Shampoo.

        Args:
            groups: one more row, blocks on the diagonal of groups of rows such as attention heads: how many, of equal
                size, or the number of each row's group (K,).
            factors: more rows: a name and a pair (G, A) of symmetric Kronecker factors (K, K), (s, s) each.
            largest: side of the largest matrices whose eigenvectors are formed; above it, E-KFAC and Shampoo are rows
                that say so.

        Raises ValueError for a part between layers, TypeError, MemoryError.
        """
        self._within("approximations")
        given = requests.named_factors(factors, approximations.NAMES, self.grid, self.block_shape, self._part.like)
        groups = requests.groups(groups, self.grid[0], self.device)
        return approximations.approximations(self._part, groups, given, _checks.count("largest", largest, 0))

    @collective
    @own_precision
    def nearest_kronecker(self, terms: int = 1) -> NearestKronecker:
        """The Kronecker product G (x) A nearest to this layer's matrix, and its error; with `terms` those of sums.

        Singular vectors of H as a map from A to G, from N x N sums over pairs of samples. Raises ValueError
        for a part between layers or where H = 0, MemoryError.
        """
        self._within("nearest_kronecker")
        return kronecker.nearest_kronecker(self._part, _checks.count("terms", terms))

    @collective
    @own_precision
    def preconditioned_spectrum(
        self,
        approximation: str | tuple[Tensor, Tensor] | Tensor,
        damping: float | None = None,
        *,
        relative_damping: float = 1e-3,
        damped: bool = False,
        largest: int = 2048,
        tol: float = 1e-7,
        maxiter: int = 100,
    ) -> PreconditionedSpectrum:
        """Extreme eigenvalues and condition number of P^{-1/2} H P^{-1/2}, P = M + damping I, H this layer's matrix.

        Lanczos iterations on products; each eigenvalue comes with its residual.

        Args:
            approximation: M by its name in `approximations`, of the Gauss-Newton term whichever term this is; or as
                `inner` takes it, but for a BlockMatrix; or "none": P = I. A step applies P^{-1}, Shampoo's too.
            damping: a number; by default relative_damping times the mean diagonal entry of M, for "none" of the term.
            relative_damping: see damping.
            damped: take H + damping I for H, whose condition number is finite where H is singular, as a softmax's is.
            largest: side of the largest matrices whose eigenvectors are formed.
            tol: residual to reach, in at most `maxiter` restarts; then the best there is comes back.
            maxiter: see tol.

        Raises ValueError for a part between layers, too large an M or a P that is not definite; TypeError, MemoryError.
        """
        self._within("preconditioned_spectrum")
        P = preconditioner(self._part, approximation, damping, relative_damping, _checks.count("largest", largest, 0))
        return extreme_eigenvalues(
            self._part, P, damped, _checks.real("tol", tol, 0), _checks.count("maxiter", maxiter)
        )

    @collective
    def curvature(self, samples: Tensor | Sequence[int] | slice | None = None) -> Tensor | CurvatureParts:
        """Q_n (n, K, K) with H = sum_n Q_n (x) phi_n phi_n^T, of all samples or of those with these numbers.

        Above 1 GiB a softmax or a squared error gives its CurvatureParts, from which a product with Q_n costs O(K).
        Raises ValueError for a part between layers, IndexError, MemoryError.
        """
        self._within("curvature")
        number = requests.numbers_of("samples", samples, len(self._part.samples), self.device)
        return sample_curvature.curvature(self._part, number)

    @property
    def features(self) -> Tensor:
        """phi_n (N, s) of this layer, a bias's 1 last. Raises ValueError for a part between layers."""
        self._within("features")
        features = self._part.features(self._part.row)
        return torch.cat([features, features.new_ones(len(features), 1)], 1) if self._part.row.bias else features

    # -------------------------------------------------------------------------------------------- block by block

    @collective
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

    @collective
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
