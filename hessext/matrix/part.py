"""The one view of a part of the Hessian that all algorithms on blocks take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hessext._ops import Kind
from hessext.data.data import Data
from hessext.data.ranks import Ranks
from hessext.data.samples import Samples
from hessext.model.network import ParameterGroup

_SQUARES = 2.0**500  # features whose squares are far inside float64's range
Term = Literal["full", "gauss_newton", "residual"]


class Divisors(NamedTuple):
    """Powers of two that what H_ij = sum_n Q_n[i, j] phi_n psi_n^T is made of is divided by."""

    row: float = 1.0  # phi
    col: float = 1.0  # psi
    curvature: float = 1.0  # Q_n


_NONE = Divisors()


@dataclass(frozen=True, eq=False)
class Part:
    """One layer's matrix, or the part between two layers: H_ij = sum_n Q_n[i, j] phi_n psi_n^T.

    Block (i, j) belongs to row i of the first group's map and row j of the second's. The core takes the earlier layer
    first: where the groups come the other way round, `upright` is the transpose that it computes.
    """

    data: Data
    term: Term
    row: ParameterGroup
    col: ParameterGroup
    divided: Divisors = _NONE

    def __reduce__(self) -> tuple:
        """Pickle what it is a view of, not what was asked for."""
        return Part, (self.data, self.term, self.row, self.col, self.divided)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of block rows and block columns."""
        return self.row.blocks, self.col.blocks

    @property
    def block_shape(self) -> tuple[int, int]:
        """Shape of one block."""
        return self.row.size, self.col.size

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the whole matrix."""
        return self.row.blocks * self.row.size, self.col.blocks * self.col.size

    @property
    def like(self) -> Tensor:
        """A tensor of the results' dtype and device."""
        return self.data.network.like

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the results."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        """Device of the results."""
        return self.like.device

    @property
    def same(self) -> bool:
        """Whether rows and columns are the same parameters."""
        return self.row == self.col

    @property
    def within(self) -> bool:
        """Whether rows and columns are parameters of one layer, so that Q_n is symmetric."""
        return self.row.layer == self.col.layer

    @property
    def kind(self) -> Kind:
        """Closed form of Q_n."""
        row, col = self.row.layer, self.col.layer
        return self.data.kind(row, col) if row <= col else self.data.kind(col, row)

    @property
    def in_closed_form(self) -> bool:
        """Whether the core forms the entries of Q_n itself: it needs all classes, in one curvature."""
        return self.kind is not Kind.GIVEN and self.ranks.classes.size == 1 and not self.data.logits_apart

    @property
    def residual_far(self) -> bool:
        """Whether the residual term adds a dense factor for each row: between layers that are no neighbours."""
        row, col = self.upright.row, self.upright.col
        return self.term != "gauss_newton" and col.layer > row.layer + 1 and col.cols > 0

    @property
    def of_output(self) -> bool:
        """Whether rows and columns are parameters of the output layer."""
        return self.kind is Kind.OUTPUT

    @property
    def transposed(self) -> bool:
        """Whether the core computes the transpose."""
        return self.row.layer > self.col.layer

    @property
    def T(self) -> Part:
        """The part between the same groups in the other order."""
        row, col, curvature = self.divided
        return Part(self.data, self.term, self.col, self.row, Divisors(col, row, curvature))

    @property
    def upright(self) -> Part:
        """The part or its transpose, the earlier layer first."""
        return self.T if self.transposed else self

    @property
    def block_diagonal(self) -> bool:
        """Whether blocks (i, j), i != j, vanish, as Q_n is diagonal."""
        return not self.data.loss.softmax and self.of_output

    @property
    def replicated(self) -> bool:
        """Whether blocks (i, i) are one and the same besides, which the core computes once."""
        return self.block_diagonal and not self.data.logits_apart  # then Q_n = c_n I

    @property
    def samples(self) -> Samples:
        """All of this rank's data in memory. Raises MemoryError where it does not fit."""
        return self.data.in_memory()

    @property
    def ranks(self) -> Ranks:
        """Who has the other samples."""
        return self.data.ranks

    @property
    def counts(self) -> list[int]:
        """Samples of each rank."""
        return self.data.counts

    @property
    def first_class(self) -> int:
        """The first row of the output weight that is here, where the ranks have split them."""
        return self.data.first_class

    @property
    def largest(self) -> int:
        """Samples of the rank that has most: what pieces are cut by on all of them."""
        return max(self.counts)

    @property
    def own(self) -> slice:
        """Samples of this rank among all of them."""
        first = sum(self.counts[: self.ranks.samples.rank])
        return slice(first, first + self.counts[self.ranks.samples.rank])

    def of(self, samples: Samples) -> Part:
        """The same part for some of the data."""
        return replace(self, data=samples)

    def everywhere(self, t: Tensor, dim: int = 0) -> Tensor:
        """What there is for each sample of all ranks, of which this one has t for its own."""
        return self.ranks.everywhere(t, self.counts, dim)

    # ------------------------------------------------------------------------------------- of data in memory

    def features(self, group: ParameterGroup) -> Tensor:
        """phi_n of a group without the bias's feature 1 (N, cols)."""
        features = self.samples.features(group.layer)
        if not group.cols:
            return features[:, :0]
        if features.dtype == torch.float64 and self._silent is not None:
            features = features.masked_fill(self._silent[:, None], 0)
        power = self.divided.row if group == self.row else self.divided.col
        return features if power == 1 else features / power

    @property
    def scale(self) -> Tensor:
        """c_n (N,) of a softmax."""
        scale = self.samples.scale
        return scale if self.divided.curvature == 1 else scale / self.divided.curvature

    @cached_property
    def _silent(self) -> Tensor | None:
        """Which samples (N,) have no curvature, where features are so large that it would meet infinite squares."""
        samples = self.samples
        if self.kind not in (Kind.OUTPUT, Kind.HIDDEN) or samples.largest(self.row.layer) <= _SQUARES:
            return None
        silent = torch.zeros_like(samples.x[:, 0], dtype=torch.bool)
        if samples.output.rest is not None:
            silent |= samples.output.rest == 0
        if self.kind is Kind.HIDDEN:
            silent |= (samples.slope(self.row.layer) == 0).all(1)
            if (bend := samples.bend(self.row.layer)) is not None:
                silent &= (bend == 0).all(1)
        return silent
