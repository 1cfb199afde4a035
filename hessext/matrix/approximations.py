"""What structured approximations of a layer's matrix H lose, without H or any block of it.

"Approximations" in docs/mathematics.md has the formulas.

With K rows of s parameters, H = sum_n Q_n (x) phi_n phi_n^T, F_n = |phi_n|^2, and Q_n of the Gauss-Newton term for all
factors but those of the nearest Kronecker product:

    block-diagonal            H_ii                                    Adam, one row at a time
    input-column blocks       entries of one feature, all rows
    diagonal                  diag H                                  Adam
    Adam-mini                 tr(H_ii) / s I in block (i, i)
    K-FAC                     G (x) A, G = sum Q_n, A = mean of phi phi^T over the samples that count
    E-KFAC                    diagonal in the eigenvectors of these G and A
    Shampoo                   L^1/2 (x) R^1/2 with the best scalar, L = sum F_n Q_n, R = sum tr(Q_n) phi phi^T
    Shampoo, squared factors  L (x) R / tr L
    one-sided                 (L / s) (x) I                           Muon-like
    nearest Kronecker         the nearest G (x) A in Frobenius norm

L and R are those of the per-sample Fisher matrix, not of gradients of minibatches. All are compared with H itself, as
what a step applies the inverse of; published Shampoo applies L^-1/4 (x) R^-1/4, the inverse root of its row's product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor

from hessext._progress import shares, steps

from .curvature_tiles import CurvatureTile
from .feature_gram import FeatureTile
from .kronecker import (
    FLOOR,
    Factor,
    KroneckerProduct,
    curvature_factors,
    feature_factors,
    given_curvature,
    given_features,
    nearest,
    remainder,
)
from .part import Part
from .results import Approximation, Approximations
from .sample_pairs import Pairs, PairSum, add_products
from .sampling import Sampling, Shares

_NOTHING = "H is 0"
_PARTITIONS = ("block-diagonal", "input-column blocks", "diagonal", "Adam-mini")
_PRODUCTS = ("K-FAC", "E-KFAC", "Shampoo", "Shampoo, squared factors", "one-sided", "nearest Kronecker")
NAMES = (*_PARTITIONS, *_PRODUCTS)
_WHOLE = 4 << 30  # bytes of matrices over all pairs of samples


def approximations(
    part: Part, groups: Tensor | None, factors: Mapping[str, tuple[Tensor, Tensor]], largest: int
) -> Approximations:
    """All rows for one layer; `largest` is the side of the largest matrix whose eigenvectors are formed."""
    with shares(2) as begin:
        begin(1)
        table = _Table(Pairs(part), largest)
        begin(1)
        rows = [*steps(chain(table.partitions(), table.kronecker_products()), total=len(NAMES))]
        if groups is not None:
            rows.append(table.groups(groups))
        rows += [table.given(name, *pair) for name, pair in factors.items()]
    residual = table.pairs.gauss_newton is not table.pairs.curvature
    return Approximations(rows, table.norm, part.term, part.row.name, part.grid, part.block_shape, residual)


class _Table:
    """Rows, and the sums over pairs of samples that they share, from one pass over them."""

    def __init__(self, pairs: Pairs, largest: int) -> None:
        self.pairs, self.largest = pairs, largest
        self.K, self.s, self.N = pairs.curvature.K, pairs.features.size, pairs.curvature.N
        K, s, both = self.K, self.s, self.K**2 + self.s**2
        products = (both, both + K * s, both, both, K * K, both)
        self.numbers = dict(zip(NAMES, (K * s * s, s * K * K, K * s, K, *products), strict=True))
        self.F = pairs.features.squares
        self.weights = torch.stack([torch.ones_like(self.F), self.F])
        self.products = torch.zeros_like(self.weights)  # of U
        self.whole = PairSum(self.F)
        self._sums: dict[str, tuple[PairSum, PairSum]] = {}
        for tile, features in pairs:
            U = tile.U
            add_products(self.products, self.weights, tile.a, tile.b, U)
            self.whole.add(tile, U * features.W)
            for name, kept, lost in self._summands(tile, features, U):
                sums = self._sums.setdefault(name, (PairSum(self.F), PairSum(self.F)))
                sums[0].add(tile, kept)
                sums[1].add(tile, lost)
            del tile, features, U, kept, lost  # before the next ones are made
        pairs.over_ranks(self.products, self.whole, *(t for sums in self._sums.values() for t in sums))
        self.square = pairs.checked(self.whole.total)
        self.shares = Shares(pairs, self.whole)

    def _summands(self, tile: CurvatureTile, features: FeatureTile, U: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """What a partition keeps of ||H||^2 and what it leaves out, for each pair of samples."""
        on, W = tile.on, features.W
        across = tile.off * W
        yield "block-diagonal", on * W, across
        yield "input-column blocks", U * features.entries, U * features.columns
        lost = on * features.columns
        yield "diagonal", on * features.entries, lost.add_(across)
        mean = torch.outer(self.F[tile.a], self.F[tile.b]).div_(self.s)
        yield "Adam-mini", mean.mul_(on), lost.addcmul_(on, features.spread)

    @property
    def norm(self) -> float:
        """||H||_F."""
        return math.sqrt(self.square) * self.pairs.unit

    # --------------------------------------------------------------------------------------------------- partitions

    def partitions(self) -> Iterator[Approximation]:
        """Blocks on the diagonal, blocks by feature, the diagonal and its means."""
        for name, sums in self._sums.items():
            yield self._partition(name, *sums)

    def groups(self, groups: Tensor) -> Approximation:
        """Blocks on the diagonal of groups of rows."""
        kept, lost = PairSum(self.F), PairSum(self.F)
        for tile, features, across in self.pairs.across(groups):
            lost.add(tile, across * features.W)
            kept.add(tile, (tile.U - across) * features.W)
        self.pairs.over_ranks(kept, lost)
        sizes = groups.unique(return_counts=True)[1].double()
        name = f"block-diagonal, {len(sizes)} groups"
        self.numbers[name] = int((sizes * self.s).square().sum())
        return self._partition(name, kept, lost)

    def _partition(self, name: str, kept: PairSum, lost: PairSum) -> Approximation:
        if not self.square:
            return self._unknown(name, _NOTHING)
        floor = FLOOR * self.pairs.curvature.rounding * lost.size
        cosine = math.sqrt(min(1.0, kept.total / self.square))
        return self._row(name, (lost.total, lost.total, floor), cosine, self.shares.of_partition(kept))

    # ------------------------------------------------------------------------------------------- Kronecker products

    def kronecker_products(self) -> Iterator[Approximation]:
        """K-FAC, E-KFAC, Shampoo in two forms, one-sided, and the nearest one."""
        pairs = self.pairs
        if not self.square:
            yield from (self._unknown(name, _NOTHING) for name in _PRODUCTS)
            return
        trace, counted = pairs.gauss_newton.traces, pairs.counted.double()
        G, L = curvature_factors(pairs, self.weights, self.products)
        A, R = feature_factors(pairs, torch.stack([counted / counted.sum(), trace]))
        identity = Factor(self.F, float(self.s))
        products = (
            KroneckerProduct(G, A, pairs.gauss_newton),
            KroneckerProduct(L, R, pairs.gauss_newton, 1 / (self.F @ trace).item() if trace.any() else 0.0),
            KroneckerProduct(L, identity, pairs.gauss_newton, 1 / self.s),
        )
        kfac, squared, one_sided = zip(products, self.shares.of_sums(products), strict=True)
        why = self._too_large()
        yield self._kronecker("K-FAC", *kfac)
        yield self._unknown("E-KFAC", why) if why else self._eigenbasis(G, A)
        yield self._unknown("Shampoo", why) if why else self._roots(L, R)
        yield self._kronecker("Shampoo, squared factors", *squared)
        yield self._kronecker("one-sided", *one_sided)
        if 16 * self.N**2 > _WHOLE:
            why = f"needs two matrices of {self.N} x {self.N} pairs of samples, more than {_WHOLE >> 30} GiB"
            yield self._unknown("nearest Kronecker", why)
        else:
            product = nearest(pairs)[0]
            yield self._kronecker("nearest Kronecker", product, self.shares.of_fixed(product), best=True)

    def given(self, name: str, G: Tensor, A: Tensor) -> Approximation:
        """The user's own product."""
        pairs, self.numbers[name] = self.pairs, G.numel() + A.numel()
        if not self.square:
            return self._unknown(name, _NOTHING)
        A = A / pairs.unit
        product = KroneckerProduct(given_curvature(pairs, G), given_features(pairs, A), pairs.curvature)
        return self._kronecker(name, product, self.shares.of_fixed(product))

    def _kronecker(
        self, name: str, product: KroneckerProduct, sampling: Sampling, *, best: bool = False
    ) -> Approximation:
        """`best`: the scalar is the best one."""
        inner, square = product.inner, product.square
        if not square:
            return self._unknown(name, "its factors are 0")
        left, floor = product.remainder(self.pairs, self.square)
        error = left if best else left + (inner / square - 1) ** 2 * square
        return self._row(name, (error, left, floor), inner / math.sqrt(square * self.square), sampling)

    def _too_large(self) -> str | None:
        """Why eigenvectors are not formed."""
        for side, what in ((self.K, "rows"), (self.s, "parameters of a row")):
            if side > self.largest:
                return f"needs the eigenvectors of a {side} x {side} matrix of {what}; largest={self.largest}"
        return None

    def _matrices(self, G: Factor, A: Factor) -> tuple[Tensor, Tensor]:
        product = KroneckerProduct(G, A, self.pairs.gauss_newton)
        return product.curvature_matrix(), product.feature_matrix(self.pairs)

    def _roots(self, L: Factor, R: Factor) -> Approximation:
        """L^1/2 (x) R^1/2 with the best scalar."""
        roots = []
        for t in self._matrices(L, R):
            values, vectors = torch.linalg.eigh(t)
            if values[0] < -1e3 * torch.finfo(self.pairs.part.dtype).eps * values[-1].abs():
                return self._unknown("Shampoo", "its factors are not positive semidefinite")
            roots.append((vectors * values.clamp(min=0).sqrt()) @ vectors.T)
        pairs = self.pairs
        product = KroneckerProduct(given_curvature(pairs, roots[0]), given_features(pairs, roots[1]), pairs.curvature)
        return self._kronecker("Shampoo", product, Sampling(), best=True)

    def _eigenbasis(self, G: Factor, A: Factor) -> Approximation:
        """Diagonal in the eigenvectors of G and A: ||H||^2 - ||lambda||^2."""
        (g, U), (a, V) = (torch.linalg.eigh(t) for t in self._matrices(G, A))
        values = self.pairs.diagonal_in(U, V)
        kept = values.square().sum().item()

        def approximation(i: Tensor, j: Tensor) -> Tensor:
            return (V * (U[i] * U[j] @ values)[:, None]) @ V.T

        lost, floor = remainder(self.pairs, kept, self.square, approximation)
        note = "eigenvalues of its factors coincide: other eigenvectors give other numbers" if _degenerate(g, a) else ""
        cosine = math.sqrt(min(1.0, kept / self.square))
        return self._row("E-KFAC", (lost, lost, floor), cosine, Sampling(), note)

    # --------------------------------------------------------------------------------------------------------- rows

    def _row(
        self,
        name: str,
        squares: tuple[float, float, float],
        cosine: float,
        sampling: Sampling,
        note: str = "",
    ) -> Approximation:
        """squares: ||H - M||^2, ||H - c M||^2 with the best c, and what is not told from 0."""
        error, scaled, floor = squares
        below = floor > 0 and scaled <= floor
        relative, best, least = (math.sqrt(t / self.square) for t in (max(error, floor), max(scaled, floor), floor))
        if below:
            note = f"below {least:.0e}, the floor of rounding" + (f"; {note}" if note else "")
        known = sampling.relative_error * cosine**2
        return Approximation(name, relative, best, cosine, self.numbers[name], sampling.population, known, note)

    def _unknown(self, name: str, why: str) -> Approximation:
        return Approximation(name, *(math.nan,) * 3, self.numbers[name], *(math.nan,) * 2, why)


def _degenerate(*values: Tensor) -> bool:
    """Whether two eigenvalues that are not 0 coincide."""
    for t in values:
        gaps, size = t.diff(), 1e-10 * t.abs().max()
        if ((gaps < size) & (t[1:].abs() > size)).any():
            return True
    return False
