"""Q_n of the output layer: c_n (diag p_n - p_n p_n^T) of a softmax, its many classes never formed, or diagonal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hessext._memory import require
from hessext._progress import steps
from hessext.data.ranks import Visit

from .curvature_tiles import ENTRIES, CurvatureTile, SampleCurvature, mirrored
from .gram import SamplePairs
from .other_classes import OtherClasses, memory_of_classes
from .part import Part
from .softmax_gram import sums_of_classes


class DiagonalCurvature(SampleCurvature):
    """c_n I, diag c_n, or 0."""

    rounding = torch.finfo(torch.float64).eps

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        o = part.samples.output
        scale = (o.scale[:, None] if o.probs is not None else o.columns).double()
        self._own = torch.zeros_like(scale) if part.term == "residual" else scale  # (n, 1) of c_n I, or (n, K)
        self.scale = part.everywhere(self._own)
        self.traces = self._times * self.scale.sum(1)

    @property
    def scalar(self) -> bool:
        """Whether it is c_n I."""
        return self._own.shape[1] == 1

    @property
    def _times(self) -> int:
        """How often each number is on the diagonal."""
        return self.K // self._own.shape[1]

    def state(self) -> tuple[Tensor, ...]:
        """As above."""
        return (self._own,)

    def visiting(self, state: Sequence[Tensor]) -> DiagonalCurvature:
        """As above."""
        result = copy(self)
        (result._own,) = state
        return result

    def tiles(
        self,
        pairs: SamplePairs,
        visit: Visit | None = None,
        other: DiagonalCurvature | None = None,
        prepared: None = None,
    ) -> Iterator[CurvatureTile]:
        """As above."""
        for a, b, _, _ in pairs.of(visit):
            on = self._times * (self._own[a] @ (other or self)._own[b].T)
            yield CurvatureTile(a, b, on, torch.zeros_like(on))

    def sum(self, weights: Tensor) -> Tensor:
        """As above."""
        result = self.zeros(len(weights), self.K, self.K)
        result.diagonal(dim1=1, dim2=2).copy_(weights @ self.scale)
        return result

    def against(self, G: Tensor) -> Tensor:
        """As above."""
        return self._summed(G.diagonal(dim1=1, dim2=2), 1) @ self.scale.T

    def in_basis(self, U: Tensor) -> Tensor:
        """As above."""
        return self._own @ self._summed(U.square(), 0)

    def _summed(self, t: Tensor, dim: int) -> Tensor:
        """t, whose axis `dim` of K has one place for each number of a sample."""
        return t.sum(dim, keepdim=True) if self.scalar else t

    def across(self, groups: Tensor, a: slice, b: slice, visit: Visit, other: Any, prepared: None) -> Tensor:
        """As above."""
        return self.zeros(a.stop - a.start, b.stop - b.start)


class SoftmaxCurvature(SampleCurvature):
    """c_n (diag p_n - p_n p_n^T). With t the most probable class, d = p - e_t is as small as 1 - p_t."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self.rounding = torch.finfo(part.dtype).eps
        self.scale = part.samples.scale.double()

    @cached_property
    def others(self) -> OtherClasses:
        """Probabilities of this rank's samples."""
        require(memory_of_classes(self.part), "probabilities", self.part.device)
        return OtherClasses(self.part)

    @property
    def before_tiles(self) -> float:
        """The logits, which are formed again with their products."""
        logits, products = self.part.row.size, 2 * self.N
        return 0.0 if "others" in vars(self) else logits / (2 * logits + products)

    def prepare(self, pairs: SamplePairs, groups: Tensor | None = None) -> None:
        """As above: the probabilities."""
        _ = self.others

    def state(self) -> tuple[Tensor, ...]:
        """As above."""
        return self.scale, *self.others.state()

    def visiting(self, state: Sequence[Tensor]) -> SoftmaxCurvature:
        """As above."""
        result = copy(self)
        result.scale, *rest = state
        result.others = self.others.visiting(rest)
        return result

    @cached_property
    def traces(self) -> Tensor:
        """As above."""
        P, squares = self.others, torch.zeros_like(self.scale)
        for _, tile in steps(P.tiles(slice(None)), lambda tile: len(tile[1]), self.K):
            for some in tile.split(max(1, ENTRIES // (8 * len(squares)))):
                squares += some.double().square().sum(0)
        P.over_classes(squares)
        return self._traces(squares * P.power.square())

    def _traces(self, squares: Tensor) -> Tensor:
        P = self.others
        return self.part.everywhere(self.scale * (P.rest * (1 + P.p) - squares))  # sum p (1 - p)

    def tiles(
        self,
        pairs: SamplePairs,
        visit: Visit | None = None,
        other: SoftmaxCurvature | None = None,
        prepared: None = None,
    ) -> Iterator[CurvatureTile]:
        """As above."""
        other = other or self
        if other is self:
            self._squares = torch.empty_like(self.scale)
        for a, b, same, _ in pairs.of(visit):
            on, off = self.zeros(2, a.stop - a.start, b.stop - b.start).unbind()
            products = sums_of_classes(self.others, other.others, a, b, same, None, on, off)[1]
            if same:
                self._squares[a] = products.diagonal()
                on, off = mirrored(on), mirrored(off)
            del products
            for t in (on, off):
                t.mul_(self.scale[a, None]).mul_(other.scale[b])
            yield CurvatureTile(a, b, on, off)

    def finish(self) -> None:
        """Traces without one more pass over the classes."""
        self.traces = self._traces(self._squares)

    def _centred(self) -> tuple[Tensor, Tensor]:
        """d (n, C), and t (n,)."""
        n = len(self.scale)
        require(8 * 5 * n * self.K, "probabilities in float64", self.part.device)
        o = self.part.samples.output
        d = self.part.samples.probabilities.to(torch.float64, copy=True)
        d[torch.arange(n, device=d.device), o.top] = -o.rest.double()
        return d, o.top

    def sum(self, weights: Tensor) -> Tensor:
        """As above."""
        result = self.zeros(len(weights), self.K, self.K)
        d, top = self._centred()
        number = torch.arange(len(d), device=d.device)
        p = d.clone()
        p[number, top] += 1
        s = p * (1 - p)
        s[number, top] = -p[number, top] * d[number, top]
        for w, out in zip(weights[:, self.part.own] * self.scale, result, strict=True):
            products = torch.mm(p.T, p * -w[:, None])
            torch.add(products, products.T, out=out).div_(2)
            out.diagonal().copy_(w @ s)
        return self.part.ranks.sum(result)

    def against(self, G: Tensor) -> Tensor:
        """As above."""
        d, top = self._centred()
        along = G.diagonal(dim1=1, dim2=2)[:, None] - 2 * G[:, top] - d @ G
        return self.part.everywhere(torch.einsum("nc,bnc->bn", d, along) * self.scale, 1)

    def in_basis(self, U: Tensor) -> Tensor:
        """As above."""
        d, top = self._centred()
        along = d @ U
        return (d @ U.square() - 2 * U[top] * along - along.square_()).mul_(self.scale[:, None])

    def across(
        self, groups: Tensor, a: slice, b: slice, visit: Visit, other: SoftmaxCurvature | None, prepared: None
    ) -> Tensor:
        """2 sum_{g < h} r_g r_h with r_g = sum_{j in g} p_nj p_n'j: no summand is negative."""
        other = other or self
        before, result = self.zeros(2, a.stop - a.start, b.stop - b.start).unbind()
        for g in steps(groups.unique().tolist()):
            rows = self.others.here((groups == g).nonzero()[:, 0])
            r = torch.zeros_like(result)
            for some in rows.split(max(1, ENTRIES // (16 * len(self.scale)))):
                p = self.others.probabilities(some)
                q = p if other is self else other.others.probabilities(some)
                r.addmm_(p[:, a].T, q[:, b])
            self.others.over_classes(r)
            result.addcmul_(before, r, value=2)
            before += r
        return result.mul_(self.scale[a, None]).mul_(other.scale[b])
