"""Squared norms of a part within a layer and of what is left of it, as sums over pairs of samples: THEORY (i).

||H||^2 = sum_nn' <Q_n, Q_n'> (phi_n . phi_n')^2; entries i = j and i != j of Q_n, a = b and a != b of phi phi^T, are
kept apart, so that what an approximation leaves out is a sum of its own and no difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from hessext._memory import require

from .feature_gram import FeatureGram, FeatureTile
from .gram import SamplePairs
from .norms import norm
from .part import Part
from .sample_curvature import CurvatureTile, sample_curvature

_BYTES = 1 << 30  # of all matrices [a, b] of a tile, of which there are about _MATRICES
_MATRICES = 16
_LEAST = 1e-140  # and its reciprocal: squares of squared norms are numbers


class PairSum:
    """sum_nn' u[n, n'] w[n, n'] by sample: `rows[n]` is the sum over n', `own[n]` what n' = n gives, both (N,)."""

    def __init__(self, like: Tensor) -> None:
        self.rows, self.own = torch.zeros_like(like), torch.zeros_like(like)
        self._size = torch.zeros_like(like[0])  # what the total would be if nothing cancelled

    def add(self, tile: CurvatureTile, matrix: Tensor) -> None:
        """Add u w of a tile's samples."""
        self.rows[tile.a] += matrix.sum(1)
        if tile.same:
            self.own[tile.a] += matrix.diagonal()
        else:
            self.rows[tile.b] += matrix.sum(0)
        self._size += matrix.abs().sum() * (1 if tile.same else 2)

    @property
    def total(self) -> float:
        """The sum over all pairs, which is no less than 0."""
        return max(0.0, self.rows.sum().item())

    @property
    def size(self) -> float:
        """The sum of what is added, without signs."""
        return self._size.item()

    @property
    def apart(self) -> float:
        """The sum over pairs of different samples."""
        return (self.rows.sum() - self.own.sum()).item()


def add_products(out: Tensor, v: Tensor, a: slice, b: slice, matrix: Tensor) -> None:
    """Add what samples a and b of a symmetric matrix, [a, b] of it, give for its products with rows of v (., N)."""
    out[:, a] += v[:, b] @ matrix.T
    if a != b:
        out[:, b] += v[:, a] @ matrix


class Pairs:
    """Tiles of the sums over pairs of samples, with Q_n and phi_n; kept between passes where there is one."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.curvature = sample_curvature(part)
        full = part.term == "full" and part.samples.bends(part.row.layer)
        gauss_newton = part.term == "gauss_newton" or (part.term == "full" and not full)
        self.gauss_newton = self.curvature if gauss_newton else sample_curvature(replace(part, term="gauss_newton"))
        self.features = FeatureGram(part.features(part.row), part.row.bias)
        self.blocks = SamplePairs(len(self.features), 8 * _MATRICES, part.device, _BYTES)
        require(self.blocks.bytes, "sums over pairs of samples", part.device)
        self._kept: tuple[CurvatureTile, FeatureTile] | None = None

    @property
    def together(self) -> bool:
        """Whether all samples are in one tile."""
        return len(self.blocks.blocks) == 1

    def __iter__(self) -> Iterator[tuple[CurvatureTile, FeatureTile]]:
        if self._kept is not None:
            yield self._kept
            return
        for tile in self.curvature.tiles(self.blocks):
            found = tile, self.features.tile(tile.a, tile.b)
            if self.together:
                self._kept = found
            yield found
            del found  # before the next one is made

    def weights(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """W of the same tiles alone."""
        if self._kept is not None:
            yield self._kept[0].a, self._kept[0].b, self._kept[1].W
            return
        for a, b, _, _ in self.blocks:
            yield a, b, self.features.tile(a, b).W

    def whole(self) -> tuple[Tensor, Tensor]:
        """U and W of all samples (N, N)."""
        if self._kept is not None:
            return self._kept[0].U, self._kept[1].W
        N = len(self.features)
        require(16 * N * N, f"two matrices of {N} x {N} pairs of samples", self.part.device)
        U, W = self.features.squares.new_empty(2, N, N).unbind()
        for tile, features in self:
            for matrix, found in ((U, tile.U), (W, features.W)):
                matrix[tile.a, tile.b] = found
                matrix[tile.b, tile.a] = found.T
        return U, W

    def products(self, of_U: Tensor, of_both: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U v for rows v of the first (., N), (U * W) v for those of the second, entry by entry, and U[n, n] (N,)."""
        one, two, own = torch.zeros_like(of_U), torch.zeros_like(of_both), torch.zeros_like(of_U[0])
        for tile, features in self:
            U = tile.U
            add_products(one, of_U, tile.a, tile.b, U)
            add_products(two, of_both, tile.a, tile.b, U * features.W)
            if tile.same:
                own[tile.a] = U.diagonal()
        return one, two, own

    def weighted(self, alphas: Tensor) -> Tensor:
        """sum_n' W[n, n'] alphas[., n'] (., N): phi_n^T A phi_n with A = sum alpha phi phi^T."""
        result = torch.zeros_like(alphas)
        for a, b, W in self.weights():
            add_products(result, alphas, a, b, W)
        return result

    def diagonal_in(self, U: Tensor, V: Tensor) -> Tensor:
        """The diagonal of H in the basis of u_i (x) v_a: sum_n (u_i^T Q_n u_i) (v_a^T phi_n)^2."""
        return self.curvature.in_basis(U).T @ (self.features.dense() @ V).square_()

    @cached_property
    def counted(self) -> Tensor:
        """Which samples the loss counts (N,)."""
        counted = self.part.samples.counted
        return self.gauss_newton.traces != 0 if counted is None else counted

    @property
    def unit(self) -> float:
        """What ||H|| is in, as features are divided by a power of two."""
        return self.features.power * self.features.power

    def checked(self, square: float) -> float:
        """||H||^2 in squared units. Raises ValueError where it or a power of it is beyond float64."""
        size = norm(self.part) if square == 0 else math.inf if square == math.inf else math.sqrt(square) * self.unit
        if size and not _LEAST < square < 1 / _LEAST:
            raise ValueError(
                f"{self.part.row.name}: expected a part whose norm has a fourth power in float64; got {size:.1e}"
            )
        return square
