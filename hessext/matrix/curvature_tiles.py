"""What all kinds of curvature Q_n of samples within a layer have in common: sums, products, and tiles over pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hessext._memory import require
from hessext.data.ranks import Visit

from .gram import SamplePairs
from .part import Part

ENTRIES = 128 << 20  # bytes of entries in float64 in hand


class CurvatureTile(NamedTuple):
    """<Q_n, Q_n'> of samples a and b, over entries i = j and over i != j: float64 [a, b]."""

    a: slice
    b: slice
    on: Tensor
    off: Tensor

    @property
    def U(self) -> Tensor:
        """<Q_n, Q_n'>."""
        return self.on + self.off

    @property
    def same(self) -> bool:
        """Whether it is a square on the diagonal; another one stands for its transpose, too."""
        return self.a == self.b


class SampleCurvature(ABC):
    """Q_n of a part within a layer.

    Where samples are split over ranks, those of this rank; vectors over samples and sums are of all of them.
    """

    rounding: float  # relative errors of <Q_n, Q_n'>
    traces: Tensor  # tr Q_n (N,)
    before_tiles = 0.0  # what `prepare` does of the work of a pass over all tiles

    def __init__(self, part: Part) -> None:
        self.part, self.K, self.N = part, part.grid[0], sum(part.counts)
        part.samples.check_unchanged()

    def state(self) -> tuple[Tensor, ...]:
        """What another rank needs to form tiles with this rank's samples."""
        return ()

    def visiting(self, state: Sequence[Tensor]) -> SampleCurvature:
        """Q_n of another rank's samples."""
        return self

    def prepare(self, pairs: SamplePairs, groups: Tensor | None = None) -> dict[int, Tensor] | None:
        """What is found before the tiles, for those with each rank's samples, as what goes round is not their state."""
        return None

    @abstractmethod
    def tiles(
        self,
        pairs: SamplePairs,
        visit: Visit | None = None,
        other: SampleCurvature | None = None,
        prepared: dict[int, Tensor] | None = None,
    ) -> Iterator[CurvatureTile]:
        """All pairs of own samples, or those with a visitor's samples, of which `other` is the curvature."""

    def finish(self) -> None:  # noqa: B027  # most have nothing to add
        """What the tiles have given beside themselves."""

    @abstractmethod
    def sum(self, weights: Tensor) -> Tensor:
        """sum_n weights[b, n] Q_n (B, K, K) of weights (B, N)."""

    @abstractmethod
    def against(self, G: Tensor) -> Tensor:
        """<Q_n, G_b> (B, N) of symmetric matrices G (B, K, K)."""

    @abstractmethod
    def in_basis(self, U: Tensor) -> Tensor:
        """u_k^T Q_n u_k (n, K) of the columns of U, for this rank's samples."""

    @abstractmethod
    def across(
        self,
        groups: Tensor,
        a: slice,
        b: slice,
        visit: Visit,
        other: SampleCurvature | None,
        prepared: dict[int, Tensor] | None,
    ) -> Tensor:
        """sum of Q_n[i, j] Q_n'[i, j] over i and j of different groups, by the number of each row's group, [a, b]."""

    def zeros(self, *shape: int) -> Tensor:
        """Zeros in float64, if there is memory for them."""
        require(8 * torch.Size(shape).numel(), f"curvature {tuple(shape)}", self.part.device)
        return torch.zeros(*shape, dtype=torch.float64, device=self.part.device)


def mirrored(upper: Tensor) -> Tensor:
    """A symmetric matrix from its upper triangle."""
    return upper.triu_().add_(upper.triu(1).T)
