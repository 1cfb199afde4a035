"""What two samples have in common in their features, so that nothing cancels.

    W[n, n'] = (phi_n . phi_n')^2 = columns + entries,   entries = phi_n^2 . phi_n'^2 = spread + F_n F_n' / s

with squares entry by entry and F_n = |phi_n|^2. `columns` has the products of different features: with o the sum of
r_a = phi_n[a] phi_n'[a] over all features but the largest of n and of n', t and u, it is

    2 r_t r_u + 2 (r_t + r_u) o + (o^2 - sum r_a^2),   r_u = 0 where t = u.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from hessext._memory import require
from hessext._products import multiply

from .feature_products import FeatureProducts, squared_lengths
from .part import Part

_TILE = 32 << 20  # bytes of a copy of some columns


class FeatureTile(NamedTuple):
    """Summands of W for samples a and b, float64 [a, b]."""

    columns: Tensor
    entries: Tensor
    spread: Tensor

    @property
    def W(self) -> Tensor:
        """(phi_n . phi_n')^2."""
        return self.columns + self.entries


class FeatureGram:
    """Features phi_n (N, s) of one layer over a power of two, in float64; with `ones` the last one is always 1.

    Where samples are split over ranks, those of this rank; vectors over samples are of all of them.
    """

    def __init__(self, part: Part) -> None:
        features, ones = part.features(part.row), part.row.bias
        self._part, self._features, self._ones = part, features, ones
        self.size = features.shape[1] + ones
        self.power = FeatureProducts(features, ones, torch.float64, part.ranks).power.item()
        N, device = len(features), features.device
        self._squares = squared_lengths(features, ones, self.power)
        self._largest, self._top = torch.zeros_like(self._squares), torch.zeros(N, dtype=torch.int64, device=device)
        for first, some in self.columns():
            at = some.abs().argmax(1)
            value = some.gather(1, at[:, None])[:, 0]
            larger = value.abs() > self._largest.abs()
            self._largest = torch.where(larger, value, self._largest)
            self._top = torch.where(larger, at + first, self._top)
        self.squares = part.everywhere(self._squares)  # F_n

    def __len__(self) -> int:
        return len(self._features)

    def state(self) -> tuple[Tensor, ...]:
        """What another rank needs to form the same."""
        return self._features, self._squares, self._largest, self._top

    def visiting(self, state: Sequence[Tensor]) -> FeatureGram:
        """That of another rank's samples."""
        result = copy(self)
        result._features, result._squares, result._largest, result._top = state
        return result

    @property
    def _step(self) -> int:
        return max(1, _TILE // (8 * len(self)))

    def columns(self, step: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Some features at a time, (n, k), and the number of the first."""
        step = step or self._step
        for first in range(0, self._features.shape[1], step):
            yield first, self._features[:, first : first + step].double() / self.power
        if self._ones:
            one = torch.full((len(self), 1), 1 / self.power, dtype=torch.float64, device=self._features.device)
            yield self._features.shape[1], one

    def dense(self) -> Tensor:
        """All features (n, s) of this rank's samples."""
        require(16 * len(self) * self.size, "features in float64", self.squares.device)
        return torch.cat([some for _, some in self.columns()], 1)

    def sum(self, weights: Tensor) -> Tensor:
        """sum_n weights[n] phi_n phi_n^T (s, s)."""
        require(
            16 * self.size * (self.size + len(self)),
            f"a matrix of {self.size} x {self.size} features",
            self.squares.device,
        )
        phi = self.dense()
        products = self._part.ranks.sum(multiply(phi.T, weights[self._part.own, None] * phi))
        return (products + products.T) / 2

    def against(self, A: Tensor) -> Tensor:
        """phi_n^T A phi_n (N,)."""
        phi = self.dense()
        return self._part.everywhere(torch.linalg.vecdot(phi @ A, phi))

    def tile(self, a: slice, b: slice, other: FeatureGram | None = None) -> FeatureTile:
        """W and its summands for the samples a and b, the second of another one if there is one."""
        left, right = self, other or self
        shape = len(left._top[a]), len(right._top[b])
        others, squares, spread, at_b, at_a = self.squares.new_zeros(5, *shape).unbind()
        sides = (left,) if other is None else (left, right)
        step = min(side._step for side in sides)
        for tiles in zip(*(side.columns(step) for side in sides), strict=True):
            (first, some), (_, of_right) = tiles[0], tiles[-1]
            centred = [
                columns.square() - side._squares[:, None] / self.size
                for side, (_, columns) in zip(sides, tiles, strict=True)
            ]
            spread.addmm_(centred[0][a], centred[-1][b].T)
            at_b.T.add_(_picked(of_right[b], left._top[a] - first))  # [n, n'] = phi_n'[t], t the largest of n
            at_a.add_(_picked(some[a], right._top[b] - first))
            for side, (_, columns) in zip(sides, tiles, strict=True):
                own = _inside(columns, side._top - first)
                columns[own, (side._top - first)[own]] = 0
            others.addmm_(some[a], of_right[b].T)
            for _, columns in tiles:
                columns.square_()
            squares.addmm_(some[a], of_right[b].T)
        same = left._top[a, None] == right._top[b]
        t, u = at_b.mul_(left._largest[a, None]), at_a.mul_(right._largest[b]).masked_fill_(same, 0)
        columns = (t * u).add_((t + u).mul_(others)).mul_(2).add_(others.square_()).sub_(squares)
        return FeatureTile(columns, squares.add_(t.square_()).add_(u.square_()), spread)


def _inside(some: Tensor, column: Tensor) -> Tensor:
    """Which of the columns' numbers are those of `some`."""
    return (column >= 0) & (column < some.shape[1])


def _picked(some: Tensor, column: Tensor) -> Tensor:
    """some[:, column], and 0 for columns that it does not have."""
    inside = _inside(some, column)
    return some[:, column.clamp(0, some.shape[1] - 1)] * inside
