"""P = M + damping I, with M one of the forms in approximations.py, in its eigenvectors.

M is of the Gauss-Newton term whichever term H is: this is what optimizers estimate, and it is positive semidefinite.
Shampoo is L^{1/2} (x) R^{1/2} with the best scalar, which the published step applies as M^{-1}.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from hessext import _checks
from hessext._memory import require

from . import assemble, block_diagonal, requests
from .kronecker import nearest
from .part import Part
from .sample_pairs import Pairs

NOISE = 64  # eigenvalues of less than so many roundings of the largest one are not told from 0


@dataclass(frozen=True, eq=False)
class Eigensystem:
    """M = Q diag(values) Q^T, with Q v = left v right^T of vectors v as matrices (K, s); None stands for I."""

    values: Tensor  # (K, s)
    left: Tensor | None = None  # (K, K), or one for each column (s, K, K)
    right: Tensor | None = None  # (s, s), or one for each row (K, s, s)


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """P = Q diag(scale)^{-2} Q^T. R = Q diag(scale) stands for P^{-1/2}: R R^T = P^{-1}."""

    scale: Tensor  # (K, s)
    damping: float
    left: Tensor | None
    right: Tensor | None

    def times(self, v: Tensor) -> Tensor:
        """R v, of a vector as a matrix (K, s)."""
        return _turned(self.right, _turned(self.left, (self.scale * v).T).T)

    def transpose_times(self, v: Tensor) -> Tensor:
        """R^T v."""
        left, right = (None if t is None else t.mT for t in (self.left, self.right))
        return self.scale * _turned(right, _turned(left, v.T).T)


def _turned(vectors: Tensor | None, v: Tensor) -> Tensor:
    """vectors @ v[i] for each row of v, with one matrix for all rows or one for each."""
    if vectors is None:
        return v
    return v @ vectors.mT if vectors.ndim == 2 else (vectors @ v[:, :, None])[:, :, 0]


def preconditioner(
    part: Part, approximation: object, damping: float | None, relative_damping: float, largest: int
) -> Preconditioner:
    """P of a part within a layer; without `damping`, it is relative_damping times the mean diagonal entry of M.

    "none" is P = I, and then the mean is that of the Gauss-Newton term. Raises ValueError, TypeError, MemoryError.
    """
    relative_damping = _checks.real("relative_damping", relative_damping, 0)
    damping = None if damping is None else _checks.real("damping", damping, 0)
    forms = _Forms(replace(part, term="gauss_newton"))
    none = isinstance(approximation, str) and approximation == "none"
    system = forms.diagonal() if none else forms(approximation, largest)
    number = relative_damping * system.values.mean().item() if damping is None else damping
    if none:
        return Preconditioner(torch.ones_like(system.values), number, None, None)
    least = system.values.min().item() + number
    if not least > 0:
        name, given = ("relative_damping", relative_damping) if damping is None else ("damping", damping)
        raise ValueError(
            f"{name}: expected a number with which P = M + damping I is positive definite; got {given:g}, with which "
            f"the smallest eigenvalue of P is {least:.3g}"
        )
    return Preconditioner((system.values + number).rsqrt(), number, system.left, system.right)


class _Forms:
    """M of each name, of a Gauss-Newton term within a layer, in float64."""

    def __init__(self, part: Part) -> None:
        self.part, self.eps = part, torch.finfo(part.dtype).eps
        (self.K, _), (self.s, _) = part.grid, part.block_shape

    def __call__(self, approximation: object, largest: int) -> Eigensystem:
        """M of a name, or given as factors, a diagonal or blocks."""
        K, s, like = self.K, self.s, self.part.like
        name = "approximation"
        if isinstance(approximation, str):
            if approximation not in _FORMS:
                names = ", ".join(map(repr, _FORMS))
                raise ValueError(f"{name}: expected 'none' or one of {names}; got {approximation!r}")
            self._check_sides(approximation, approximation, largest)
            return _FORMS[approximation][0](self)
        if isinstance(approximation, tuple | list):
            G, A = requests.symmetric_factors(name, approximation, self.part.grid, self.part.block_shape, like)
            self._check_sides("K-FAC", "a product of factors", largest)
            return self._product(G, A)
        if not isinstance(approximation, Tensor):
            raise TypeError(
                f"{name}: expected a name, a pair (G, A) of factors, a diagonal or diagonal blocks; got "
                f"{type(approximation).__name__}"
            )
        if approximation.ndim == 1:
            return Eigensystem(_checks.vector(name, approximation, size=K * s, like=like).double().view(K, s))
        blocks = _checks.floats(name, approximation, (K, s, s), like)
        self._check_sides("block-diagonal", "a matrix of blocks", largest)
        require(3 * 8 * blocks.numel(), "eigenvectors of the blocks", self.part.device)
        vectors, values = self._eigh(requests.symmetric(name, blocks))
        return Eigensystem(values, None, vectors)

    def _check_sides(self, form: str, what: str, largest: int) -> None:
        sides = {"K": self.K, "s": self.s}
        for side in _FORMS[form][1]:
            if sides[side] > largest:
                left = [name for name, (_, needed) in _FORMS.items() if all(sides[t] <= largest for t in needed)]
                raise ValueError(
                    f"approximation: {what} needs eigenvectors of {sides[side]} x {sides[side]} matrices, and "
                    f"largest={largest}; that leaves {', '.join(left)}"
                )

    # ------------------------------------------------------------------------------------------------- partitions

    def diagonal(self) -> Eigensystem:
        """Entry by entry."""
        found = self.part.data.sum(lambda samples, _: assemble.diagonal(self.part.of(samples)))
        if not found.isfinite().all():
            raise ValueError(
                f"expected a diagonal within the range of {found.dtype}; H.to(torch.float64) has a larger one"
            )
        return Eigensystem(found.double().view(self.K, self.s))

    def means(self) -> Eigensystem:
        """Adam-mini: one number for each row."""
        return Eigensystem(self.diagonal().values.mean(1, keepdim=True).expand(-1, self.s))

    def row_blocks(self) -> Eigensystem:
        """Block-diagonal."""
        self.diagonal()  # finite, and so are then the blocks
        values, vectors = block_diagonal.eigh(self.part, torch.float64)
        return Eigensystem(self._without_noise(values), None, vectors)

    def column_blocks(self) -> Eigensystem:
        """Blocks of all entries of one feature: sum_n phi_n[a]^2 Q_n."""
        require(3 * 8 * self.s * self.K**2, f"eigenvectors of {self.s} blocks", self.part.device)
        squares = self.part.everywhere(self.pairs.features.dense().square().T.contiguous(), 1)
        vectors, values = self._eigh(self.pairs.curvature.sum(squares))
        return Eigensystem(self.pairs.unit * values.T, vectors)

    # ------------------------------------------------------------------------------------------ Kronecker products

    @cached_property
    def pairs(self) -> Pairs:
        """Q_n and phi_n of all samples, features over a power of two."""
        return Pairs(self.part)

    def kfac(self) -> Eigensystem:
        """sum Q_n (x) the mean of phi phi^T."""
        return self._product(*self._kfac_factors(), scale=self.pairs.unit)

    def ekfac(self) -> Eigensystem:
        """Diagonal in the eigenvectors of K-FAC."""
        (U, _), (V, _) = map(self._eigh, self._kfac_factors())
        values = self.pairs.unit * self.pairs.diagonal_in(U, V)
        return Eigensystem(self._without_noise(values.flatten()).view_as(values), U, V)

    def shampoo(self) -> Eigensystem:
        """L^{1/2} (x) R^{1/2} with the best scalar."""
        (U, left), (V, right) = map(self._eigh, self._moments())
        if min(left.min(), right.min()) < 0:
            raise ValueError("approximation: the factors of Shampoo are not positive semidefinite, so have no roots")
        roots = torch.outer(left.sqrt(), right.sqrt())
        square = roots.square().sum()
        best = (roots * self.pairs.diagonal_in(U, V)).sum() / square if square else square
        return Eigensystem(self.pairs.unit * best * roots, U, V)

    def squared_factors(self) -> Eigensystem:
        """L (x) R / tr L."""
        L, R = self._moments()
        trace = L.trace().item()
        return self._product(L, R, scale=self.pairs.unit / trace if trace else 0.0)

    def one_sided(self) -> Eigensystem:
        """(L / s) (x) I."""
        vectors, values = self._eigh(self.pairs.curvature.sum(self.pairs.features.squares[None])[0])
        return Eigensystem((self.pairs.unit / self.s * values)[:, None].expand(-1, self.s), vectors)

    def nearest(self) -> Eigensystem:
        """The nearest G (x) A."""
        found = nearest(self.pairs)
        if found is None:
            return Eigensystem(torch.zeros(self.K, self.s, dtype=torch.float64, device=self.part.device))
        product = found[0]
        G, A = product.curvature_matrix(), product.feature_matrix(self.pairs)
        return self._product(G, A, scale=self.pairs.unit * product.scale)

    def _kfac_factors(self) -> tuple[Tensor, Tensor]:
        curvature, counted = self.pairs.curvature, self.pairs.counted.double()
        G = curvature.sum(torch.ones_like(counted)[None])[0]
        return G, self.pairs.features.sum(counted / counted.sum())

    def _moments(self) -> tuple[Tensor, Tensor]:
        """L and R of Shampoo."""
        curvature, features = self.pairs.curvature, self.pairs.features
        return curvature.sum(features.squares[None])[0], features.sum(curvature.traces)

    def _product(self, G: Tensor, A: Tensor, scale: float = 1.0) -> Eigensystem:
        """scale G (x) A of symmetric factors."""
        (U, g), (V, a) = self._eigh(G), self._eigh(A)
        return Eigensystem(scale * torch.outer(g, a), U, V)

    def _eigh(self, matrices: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvectors, and eigenvalues that are 0 where they are not told from it."""
        values, vectors = torch.linalg.eigh(matrices)
        return vectors, self._without_noise(values)

    def _without_noise(self, values: Tensor) -> Tensor:
        """Eigenvalues (..., n) of matrices; 0 for those of float64's roundings, or below 0 by the data's roundings."""
        size = values.abs().amax(-1, keepdim=True)
        noise = (values >= -NOISE * self.eps * size) & (values <= NOISE * torch.finfo(torch.float64).eps * size)
        return values.masked_fill(noise, 0)


# What M is, and what it needs eigenvectors of: matrices of all rows (K, K), of all parameters of a row (s, s).
_FORMS: dict[str, tuple[Callable[[_Forms], Eigensystem], str]] = {
    "diagonal": (_Forms.diagonal, ""),
    "Adam-mini": (_Forms.means, ""),
    "block-diagonal": (_Forms.row_blocks, "s"),
    "input-column blocks": (_Forms.column_blocks, "K"),
    "one-sided": (_Forms.one_sided, "K"),
    "K-FAC": (_Forms.kfac, "Ks"),
    "E-KFAC": (_Forms.ekfac, "Ks"),
    "Shampoo": (_Forms.shampoo, "Ks"),
    "Shampoo, squared factors": (_Forms.squared_factors, "Ks"),
    "nearest Kronecker": (_Forms.nearest, "Ks"),
}
