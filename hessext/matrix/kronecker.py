"""Kronecker products beside a layer's matrix H = sum_n Q_n (x) phi_n phi_n^T.

Of scale G (x) A only g_n = <Q_n, G>, w_n = phi_n^T A phi_n and norms are needed: <H, G (x) A> = sum_n g_n w_n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hessext._memory import require
from hessext.data.ranks import Ranks, collective

from .assemble import blocks, pieces_of_grid
from .curvature_tiles import SampleCurvature
from .part import Part
from .sample_pairs import Pairs

# Roundings of ||H||^2: a difference of less is formed by blocks, for 1e-10 and 1e-5; less is not told from 0.
_EXACT = {torch.float64: 1e5, torch.float32: 1e3}
FLOOR = 16
_FORMED, _BLOCK = 5e10, 1e5  # multiply-adds that these may cost, and what each block costs beside them
_ALL = 192  # samples up to which all singular values cost no more than the largest one


@dataclass(frozen=True, eq=False)
class Factor:
    """A matrix beside the samples: its products with their Q_n or phi_n phi_n^T, and its squared norm.

    It is sum_n weights[n] Q_n or sum_n weights[n] phi_n phi_n^T, a matrix of its own, or else the identity.
    """

    products: Tensor  # (N,)
    square: float
    weights: Tensor | None = None  # (N,)
    matrix: Tensor | None = None


@dataclass(frozen=True, eq=False)
class KroneckerProduct:
    """scale G (x) A; G is of `curvature` where it is a sum."""

    G: Factor
    A: Factor
    curvature: SampleCurvature
    scale: float = 1.0

    @property
    def inner(self) -> float:
        """<H, scale G (x) A>."""
        return self.scale * (self.G.products @ self.A.products).item()

    @property
    def square(self) -> float:
        """Its squared norm."""
        return self.scale**2 * self.G.square * self.A.square

    def curvature_matrix(self) -> Tensor:
        """G (K, K)."""
        return self.curvature.sum(self.G.weights[None])[0] if self.G.matrix is None else self.G.matrix

    def remainder(self, pairs: Pairs, square: float) -> tuple[float, float]:
        """||H - c M||^2 with the best scalar c, and what of it is not told from 0."""
        G = A = None

        def approximation(i: Tensor, j: Tensor) -> Tensor:
            nonlocal G, A
            if G is None:
                best = (self.G.products @ self.A.products).item() / (self.G.square * self.A.square)
                G, A = self.curvature_matrix(), best * self.feature_matrix(pairs)
            return G[i, j, None, None] * A

        return remainder(pairs, self.inner**2 / self.square, square, approximation)

    def feature_matrix(self, pairs: Pairs) -> Tensor:
        """A (s, s)."""
        if self.A.weights is None and self.A.matrix is None:
            return torch.eye(pairs.features.size, dtype=torch.float64, device=pairs.part.device)
        return pairs.features.sum(self.A.weights) if self.A.matrix is None else self.A.matrix


class NearestKronecker:
    """G (x) A, nearest to H in Frobenius norm; G (K, K) and A (s, s) are formed when they are asked for.

    ||G|| = ||A||, and tr A >= 0. `relative_error` is ||H - G (x) A|| / ||H||; `errors[k - 1]` is that of the nearest
    sum of k Kronecker products.
    """

    def __init__(self, pairs: Pairs, product: KroneckerProduct, errors: list[float]) -> None:
        self._pairs, self._product = pairs, product
        self.errors, self.relative_error = tuple(errors), errors[0]
        self._norm = math.sqrt(product.square) * pairs.unit  # of the product

    @property
    def ranks(self) -> Ranks:
        """Who has the other samples, and must ask for the factors, too."""
        return self._pairs.part.ranks

    @cached_property
    @collective
    def G(self) -> Tensor:
        """The factor of the curvature (K, K). Raises MemoryError."""
        return self._of_half_norm(self._product.curvature_matrix())

    @cached_property
    @collective
    def A(self) -> Tensor:
        """The factor of the features (s, s). Raises MemoryError."""
        return self._of_half_norm(self._product.feature_matrix(self._pairs))

    def _of_half_norm(self, t: Tensor) -> Tensor:
        return (t * (math.sqrt(self._norm) / t.norm())).to(self._pairs.part.dtype)

    def __repr__(self) -> str:
        """Sizes and errors."""
        K, s = self._pairs.curvature.K, self._pairs.features.size
        errors = ", ".join(f"{e:.3e}" for e in self.errors)
        return f"NearestKronecker({K} x {K} by {s} x {s}, relative errors of 1, 2, ... products: {errors})"


def nearest_kronecker(part: Part, terms: int) -> NearestKronecker:
    """Of a part within a layer, with the errors of sums of up to `terms` products. Raises ValueError where H = 0."""
    pairs = Pairs(part)
    total = torch.zeros(1, dtype=torch.float64, device=part.device)
    for tile, features in pairs:
        total += torch.sum(tile.U * features.W) * (1 if tile.same else 2)
    pairs.over_ranks(total)
    square = pairs.checked(total.item())
    found = nearest(pairs, every=terms > 1)
    if found is None:
        raise ValueError(f"nearest_kronecker: expected a part that is not 0; the {part.term} term of this one is")
    product, values = found
    errors = [math.sqrt(product.remainder(pairs, square)[0] / square)]
    rest = values.flip(0).cumsum(0).flip(0)  # sums of values[k:]
    errors += [math.sqrt(rest[k].item() / square) if k < len(rest) else 0.0 for k in range(2, terms + 1)]
    return NearestKronecker(pairs, product, errors)


def curvature_factors(pairs: Pairs, weights: Tensor, products: Tensor) -> list[Factor]:
    """sum_n weights[b, n] Q_n of the Gauss-Newton term, for each b; products are those of U and the weights."""
    if pairs.gauss_newton is pairs.curvature:
        return [Factor(u, (w @ u).item(), w) for w, u in zip(weights, products, strict=True)]
    matrices = pairs.gauss_newton.sum(weights)
    found = zip(weights, pairs.curvature.against(matrices), matrices, strict=True)
    return [Factor(g, G.square().sum().item(), w, G) for w, g, G in found]


def feature_factors(pairs: Pairs, weights: Tensor) -> list[Factor]:
    """sum_n weights[b, n] phi_n phi_n^T, for each b."""
    return [Factor(v, (w @ v).item(), w) for w, v in zip(weights, pairs.weighted(weights), strict=True)]


def given_curvature(pairs: Pairs, G: Tensor) -> Factor:
    """A matrix (K, K) beside the curvature."""
    G = (G + G.T) / 2
    return Factor(pairs.curvature.against(G[None])[0], G.square().sum().item(), None, G)


def given_features(pairs: Pairs, A: Tensor) -> Factor:
    """A matrix (s, s) beside the features."""
    return Factor(pairs.features.against(A), A.square().sum().item(), None, A)


def remainder(
    pairs: Pairs, kept: float, square: float, approximation: Callable[[Tensor, Tensor], Tensor]
) -> tuple[float, float]:
    """||H - M||^2 = ||H||^2 - ||M||^2 of a projection M of H, and what of it is not told from 0, where that is more.

    Where little is left of the difference, blocks are formed some at a time, if these are not too many:
    `approximation` gives blocks (P, s, s) of M for rows i and columns j. Squares are in squared units.
    """
    rounding, left = pairs.curvature.rounding * square, square - kept
    K, s, N = pairs.curvature.K, pairs.features.size, pairs.curvature.N
    accuracy = torch.float64 if pairs.curvature.rounding < 1e-10 else torch.float32
    if left > _EXACT[accuracy] * rounding:
        return left, 0.0
    size, limits = math.sqrt(square) * pairs.unit, torch.finfo(pairs.part.dtype)
    in_range = K * s * limits.tiny / limits.eps**2 < size < limits.max * limits.eps
    if K * K / 2 * (s * s * (N + s) + _BLOCK) > _FORMED or not in_range:
        return max(left, 0.0), FLOOR * rounding if left <= FLOOR * rounding else 0.0
    total = 0.0
    for ij in pieces_of_grid(pairs.part, True):
        i, j = ij.unbind(1)
        rest = blocks(pairs.part, ij).double().div_(pairs.unit).sub_(approximation(i, j))
        total += (rest.square_().sum((1, 2)) * (1.0 + (i != j))).sum().item()
    return total, 0.0


def nearest(pairs: Pairs, *, every: bool = False) -> tuple[KroneckerProduct, Tensor] | None:
    """The nearest product to H, and the squared singular values of H as a map from A to G, in falling order.

    The values are all of them with `every`, else the first is among them. None for H = 0.

    H sends A to sum_n w_n Q_n, and its transpose G to sum_n g_n phi_n phi_n^T: with A = sum alpha_n phi_n phi_n^T, the
    squared singular values are the eigenvalues of U W, and those of R^T U R with W = R R^T.
    """
    U, W = pairs.whole()
    if not (U.any() and W.any()):
        return None
    if every or len(U) <= _ALL:
        require(48 * len(U) ** 2, f"eigenvectors over {len(U)} samples", pairs.part.device)
        values, vectors = torch.linalg.eigh(W)
        R = vectors * values.clamp(min=0).sqrt()
        values, vectors = torch.linalg.eigh(R.T @ (U @ R))
        values, alpha = values.flip(0).clamp(min=0), U @ (R @ vectors[:, -1])
    else:
        value, alpha = _leading(U, W)
        values = torch.tensor([value], dtype=torch.float64)
    alpha /= alpha.abs().max()
    if (alpha @ pairs.features.squares) < 0:  # tr A > 0
        alpha = -alpha
    w = W @ alpha
    g = U @ w
    G, A = Factor(g, (w @ g).item(), w), Factor(w, (alpha @ w).item(), alpha)
    product = KroneckerProduct(G, A, pairs.curvature)
    best = product.inner / product.square
    return KroneckerProduct(G, A, pairs.curvature, best), values


def _leading(U: Tensor, W: Tensor) -> tuple[float, Tensor]:
    """The largest eigenvalue of U W and its vector."""
    from scipy.sparse.linalg import LinearOperator, eigs  # takes a second, and few need it

    def apply(v: np.ndarray) -> np.ndarray:
        return (U @ (W @ torch.from_numpy(np.ascontiguousarray(v)).to(U))).cpu().numpy()

    N = len(U)
    operator = LinearOperator((N, N), apply, dtype=np.float64)
    start = (U @ (W @ torch.ones_like(U[0]))).cpu().numpy()
    values, vectors = eigs(operator, 1, v0=start if start.any() else None, tol=1e-13)
    vector = vectors[:, 0]
    vector = (vector / vector[np.abs(vector).argmax()]).real
    return float(values[0].real), torch.from_numpy(vector.copy()).to(U)
