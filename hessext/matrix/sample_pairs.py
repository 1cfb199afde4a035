"""Squared norms of a part within a layer and of what is left of it, as sums over pairs of samples.

||H||^2 = sum_nn' <Q_n, Q_n'> (phi_n . phi_n')^2; entries i = j and i != j of Q_n, a = b and a != b of phi phi^T, are
kept apart, so that what an approximation leaves out is a sum of its own and no difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hessext._memory import require
from hessext._progress import shares
from hessext.data.ranks import Visit

from .curvature_tiles import CurvatureTile
from .feature_gram import FeatureGram, FeatureTile
from .gram import SamplePairs
from .norms import norm
from .part import Part
from .sample_curvature import sample_curvature

_BYTES = 1 << 30  # of all matrices [a, b] of a tile, of which there are about _MATRICES
_MATRICES = 16
_LEAST = 1e-140  # and its reciprocal: squares of squared norms are numbers


class PairSum:
    """sum_nn' u[n, n'] w[n, n'] by sample: `rows[n]` is the sum over n', `own[n]` what n' = n gives, both (N,)."""

    def __init__(self, like: Tensor) -> None:
        self.sums = like.new_zeros(2 * len(like) + 1)  # all of it, to add up over ranks
        self.rows, self.own, self._size = self.sums.split([len(like), len(like), 1])

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
        """The sum of what is added, without signs: what the total would be if nothing cancelled."""
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
    """Tiles of the sums over pairs of samples, with Q_n and phi_n; kept between passes where there is one.

    Where samples are split over ranks, tiles are numbered among all samples and each rank has some of them: what is
    added up from tiles goes through `over_ranks`.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.curvature = sample_curvature(part)
        full = part.term == "full" and part.samples.bends(part.row.layer)
        gauss_newton = part.term == "gauss_newton" or (part.term == "full" and not full)
        self.gauss_newton = self.curvature if gauss_newton else sample_curvature(replace(part, term="gauss_newton"))
        self.features = FeatureGram(part)
        self.blocks = SamplePairs(len(self.features), 8 * _MATRICES, part.device, _BYTES)
        require(self.blocks.bytes, "sums over pairs of samples", part.device)
        self._kept: tuple[CurvatureTile, FeatureTile] | None = None

    @property
    def together(self) -> bool:
        """Whether all samples are in one tile."""
        return len(self.blocks.blocks) == 1 and self.part.ranks.samples.size == 1

    def __iter__(self) -> Iterator[tuple[CurvatureTile, FeatureTile]]:
        if self._kept is not None:
            yield self._kept
            return
        for tile, features, _ in self._tiles(None):
            if self.together:
                self._kept = tile, features
            yield tile, features
            del tile, features  # before the next ones are made

    def across(self, groups: Tensor) -> Iterator[tuple[CurvatureTile, FeatureTile, Tensor]]:
        """Tiles, and what of <Q_n, Q_n'> is of rows of different groups."""
        return self._tiles(groups)

    def _tiles(self, groups: Tensor | None) -> Iterator[tuple[CurvatureTile, FeatureTile, Tensor | None]]:
        curvature, across = self.curvature, None
        before = curvature.before_tiles
        with shares(1.0) as begin:
            begin(before)
            prepared = curvature.prepare(self.blocks, groups)
            begin(1 - before)
            for visit, (other, features) in self._visits(curvature, self.features):
                for tile in curvature.tiles(self.blocks, visit, other, prepared):
                    if groups is not None:
                        across = curvature.across(groups, tile.a, tile.b, visit, other, prepared)
                    yield self._numbered(tile, visit), self.features.tile(tile.a, tile.b, features), across
                    del tile  # before the next one is made
        curvature.finish()

    def _visits(self, *sides: Any) -> Iterator[tuple[Visit, list[Any]]]:
        """What meets own samples, and each side as of that rank's samples; None for own ones."""
        states = [side.state() for side in sides]
        for visit in self.part.ranks.ring(self.part.counts, *(t for state in states for t in state)):
            tensors, found = list(visit.tensors), []
            for side, state in zip(sides, states, strict=True):
                found.append(side.visiting(tensors[: len(state)]) if visit.other else None)
                del tensors[: len(state)]
            yield visit, found

    def _numbered(self, tile: CurvatureTile, visit: Visit) -> CurvatureTile:
        counts, own = self.part.counts, self.part.ranks.samples.rank
        starts = [sum(counts[:rank]) for rank in (own, visit.rank)]
        a, b = (slice(s.start + start, s.stop + start) for s, start in zip((tile.a, tile.b), starts, strict=True))
        return tile._replace(a=a, b=b)

    def over_ranks(self, *sums: Tensor | PairSum) -> None:
        """Add up what the tiles of all ranks have given."""
        self.part.ranks.sum(*(t.sums if isinstance(t, PairSum) else t for t in sums))

    def weights(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """W of the same tiles alone."""
        if self._kept is not None:
            yield self._kept[0].a, self._kept[0].b, self._kept[1].W
            return
        for visit, (features,) in self._visits(self.features):
            for a, b, _, _ in self.blocks.of(visit):
                tile = self.features.tile(a, b, features)
                at = self._numbered(CurvatureTile(a, b, None, None), visit)
                yield at.a, at.b, tile.W

    def whole(self) -> tuple[Tensor, Tensor]:
        """U and W of all samples (N, N), on all ranks."""
        if self._kept is not None:
            return self._kept[0].U, self._kept[1].W
        N = self.curvature.N
        require(16 * N * N, f"two matrices of {N} x {N} pairs of samples", self.part.device)
        U, W = self.features.squares.new_zeros(2, N, N).unbind()
        for tile, features in self:
            for matrix, found in ((U, tile.U), (W, features.W)):
                matrix[tile.a, tile.b] = found
                matrix[tile.b, tile.a] = found.T
        self.over_ranks(U, W)
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
        self.over_ranks(one, two, own)
        return one, two, own

    def weighted(self, alphas: Tensor) -> Tensor:
        """sum_n' W[n, n'] alphas[., n'] (., N): phi_n^T A phi_n with A = sum alpha phi phi^T."""
        result = torch.zeros_like(alphas)
        for a, b, W in self.weights():
            add_products(result, alphas, a, b, W)
        self.over_ranks(result)
        return result

    def diagonal_in(self, U: Tensor, V: Tensor) -> Tensor:
        """The diagonal of H in the basis of u_i (x) v_a: sum_n (u_i^T Q_n u_i) (v_a^T phi_n)^2."""
        result = self.curvature.in_basis(U).T @ (self.features.dense() @ V).square_()
        self.over_ranks(result)
        return result

    @cached_property
    def counted(self) -> Tensor:
        """Which samples the loss counts (N,)."""
        counted = self.part.samples.counted
        if any(self.part.ranks.notes("counted", counted is None)):
            return self.gauss_newton.traces != 0
        return self.part.everywhere(counted.double()) != 0

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
