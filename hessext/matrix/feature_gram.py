"""What two samples have in common in their features, so that nothing cancels: THEORY (i).

    W[n, n'] = (phi_n . phi_n')^2 = columns + entries,   entries = phi_n^2 . phi_n'^2 = spread + F_n F_n' / s

with squares entry by entry and F_n = |phi_n|^2. `columns` has the products of different features: with o the sum of
r_a = phi_n[a] phi_n'[a] over all features but the largest of n and of n', t and u, it is

    2 r_t r_u + 2 (r_t + r_u) o + (o^2 - sum r_a^2),   r_u = 0 where t = u.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hessext._memory import require

from .gram import FeatureProducts

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
    """Features phi_n (N, s) of one layer over a power of two, in float64; with `ones` the last one is always 1."""

    def __init__(self, features: Tensor, ones: bool) -> None:
        self._features, self._ones = features, ones
        self.size = features.shape[1] + ones
        self.power = FeatureProducts(features, ones, torch.float64).power.item()
        N, device = len(features), features.device
        self.squares = torch.zeros(N, dtype=torch.float64, device=device)  # F_n
        self._largest, self._top = torch.zeros_like(self.squares), torch.zeros(N, dtype=torch.int64, device=device)
        for first, some in self.columns():
            self.squares += some.square().sum(1)
            at = some.abs().argmax(1)
            value = some.gather(1, at[:, None])[:, 0]
            larger = value.abs() > self._largest.abs()
            self._largest = torch.where(larger, value, self._largest)
            self._top = torch.where(larger, at + first, self._top)

    def __len__(self) -> int:
        return len(self._features)

    def columns(self) -> Iterator[tuple[int, Tensor]]:
        """Some features at a time, (N, k), and the number of the first."""
        step = max(1, _TILE // (8 * len(self)))
        for first in range(0, self._features.shape[1], step):
            yield first, self._features[:, first : first + step].double() / self.power
        if self._ones:
            one = torch.full((len(self), 1), 1 / self.power, dtype=torch.float64, device=self._features.device)
            yield self._features.shape[1], one

    def dense(self) -> Tensor:
        """All features (N, s)."""
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
        products = phi.T @ (weights[:, None] * phi)
        return (products + products.T) / 2

    def against(self, A: Tensor) -> Tensor:
        """phi_n^T A phi_n (N,)."""
        phi = self.dense()
        return torch.linalg.vecdot(phi @ A, phi)

    def tile(self, a: slice, b: slice) -> FeatureTile:
        """W and its summands for the samples a and b."""
        shape = len(self._top[a]), len(self._top[b])
        others, squares, spread, at_b, at_a = self.squares.new_zeros(5, *shape).unbind()
        for first, some in self.columns():
            centred = some.square() - self.squares[:, None] / self.size
            spread.addmm_(centred[a], centred[b].T)
            at_b.T.add_(_picked(some[b], self._top[a] - first))  # [n, n'] = phi_n'[t], t the largest of n
            at_a.add_(_picked(some[a], self._top[b] - first))
            own = _inside(some, self._top - first)
            some[own, (self._top - first)[own]] = 0
            others.addmm_(some[a], some[b].T)
            some.square_()
            squares.addmm_(some[a], some[b].T)
        same = self._top[a, None] == self._top[b]
        t, u = at_b.mul_(self._largest[a, None]), at_a.mul_(self._largest[b]).masked_fill_(same, 0)
        columns = (t * u).add_((t + u).mul_(others)).mul_(2).add_(others.square_()).sub_(squares)
        return FeatureTile(columns, squares.add_(t.square_()).add_(u.square_()), spread)


def _inside(some: Tensor, column: Tensor) -> Tensor:
    """Which of the columns' numbers are those of `some`."""
    return (column >= 0) & (column < some.shape[1])


def _picked(some: Tensor, column: Tensor) -> Tensor:
    """some[:, column], and 0 for columns that it does not have."""
    inside = _inside(some, column)
    return some[:, column.clamp(0, some.shape[1] - 1)] * inside
