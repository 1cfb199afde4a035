"""The curvature Q_n (K, K) of each sample within a layer, for what is asked of all of them at once.

Three kinds of it: of a softmax, c_n (diag p_n - p_n p_n^T), with many classes never formed; of other losses, c_n I; and
entries that are formed some at a time. Sums are in float64, and keep their digits where one class dominates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from hessext import _ops
from hessext._memory import require

from .assemble import diagonal_pairs
from .curvature import Assemblies, grid_pairs
from .gram import SamplePairs
from .part import Part
from .results import CurvatureParts
from .softmax_gram import OtherClasses, memory_of_classes, sums_of_classes

ENTRIES = 128 << 20  # bytes of entries in float64 in hand
_SLAB = 256 << 20  # bytes of entries formed at once where each row of them is a pass through a network
_KEPT = 512 << 20  # bytes of such entries that are kept
_TENSOR = 1 << 30  # bytes of Q_n as matrices, where it has a closed form


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
    """Q_n of a part within a layer."""

    rounding: float  # relative errors of <Q_n, Q_n'>
    traces: Tensor  # tr Q_n (N,)

    def __init__(self, part: Part) -> None:
        self.part, self.K, self.N = part, part.grid[0], len(part.samples)
        part.samples.check_unchanged()

    @abstractmethod
    def tiles(self, pairs: SamplePairs) -> Iterator[CurvatureTile]:
        """All pairs of samples, a tile at a time."""

    @abstractmethod
    def sum(self, weights: Tensor) -> Tensor:
        """sum_n weights[b, n] Q_n (B, K, K) of weights (B, N)."""

    @abstractmethod
    def against(self, G: Tensor) -> Tensor:
        """<Q_n, G_b> (B, N) of symmetric matrices G (B, K, K)."""

    @abstractmethod
    def in_basis(self, U: Tensor) -> Tensor:
        """u_k^T Q_n u_k (N, K) of the columns of U."""

    @abstractmethod
    def across(self, groups: Tensor, a: slice, b: slice) -> Tensor:
        """sum of Q_n[i, j] Q_n'[i, j] over i and j of different groups, by the number of each row's group, [a, b]."""

    def zeros(self, *shape: int) -> Tensor:
        """Zeros in float64, if there is memory for them."""
        require(8 * torch.Size(shape).numel(), f"curvature {tuple(shape)}", self.part.device)
        return torch.zeros(*shape, dtype=torch.float64, device=self.part.device)


def sample_curvature(part: Part) -> SampleCurvature:
    """Q_n of a part within a layer, in the form of its kind."""
    if part.replicated or (part.of_output and part.term == "residual"):
        return ScaledIdentity(part)
    return SoftmaxCurvature(part) if part.of_output else GivenCurvature(part)


def _mirrored(upper: Tensor) -> Tensor:
    return upper.triu_().add_(upper.triu(1).T)


class ScaledIdentity(SampleCurvature):
    """c_n I, or 0."""

    rounding = torch.finfo(torch.float64).eps

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        scale = part.samples.output.scale.double()
        self.scale = torch.zeros_like(scale) if part.term == "residual" else scale
        self.traces = self.K * self.scale

    def tiles(self, pairs: SamplePairs) -> Iterator[CurvatureTile]:
        """As above."""
        for a, b, _, _ in pairs:
            on = self.K * torch.outer(self.scale[a], self.scale[b])
            yield CurvatureTile(a, b, on, torch.zeros_like(on))

    def sum(self, weights: Tensor) -> Tensor:
        """As above."""
        result = self.zeros(len(weights), self.K, self.K)
        result.diagonal(dim1=1, dim2=2).copy_((weights @ self.scale)[:, None])
        return result

    def against(self, G: Tensor) -> Tensor:
        """As above."""
        return torch.outer(G.diagonal(dim1=1, dim2=2).sum(1), self.scale)

    def in_basis(self, U: Tensor) -> Tensor:
        """As above."""
        return torch.outer(self.scale, U.square().sum(0))

    def across(self, groups: Tensor, a: slice, b: slice) -> Tensor:
        """As above."""
        return self.zeros(len(self.scale[a]), len(self.scale[b]))


class SoftmaxCurvature(SampleCurvature):
    """c_n (diag p_n - p_n p_n^T). With t the most probable class, d = p - e_t is as small as 1 - p_t."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self.rounding = torch.finfo(part.dtype).eps
        self.scale = part.samples.scale.double()

    @cached_property
    def _others(self) -> OtherClasses:
        require(memory_of_classes(self.part), "probabilities", self.part.device)
        return OtherClasses(self.part.samples)

    @cached_property
    def traces(self) -> Tensor:
        """As above."""
        P, squares = self._others, torch.zeros_like(self.scale)
        for _, tile in P.tiles(slice(None)):
            for some in tile.split(max(1, ENTRIES // (8 * self.N))):
                squares += some.double().square_().sum(0)
        return self.scale * (P.rest * (1 + P.p) - squares * P.power.square())  # sum p (1 - p)

    def tiles(self, pairs: SamplePairs) -> Iterator[CurvatureTile]:
        """As above."""
        P, squares = self._others, torch.empty_like(self.scale)
        for a, b, same, _ in pairs:
            on, off = self.zeros(2, len(self.scale[a]), len(self.scale[b])).unbind()
            products = sums_of_classes(P, P, a, b, same, None, on, off)[2]
            if same:
                squares[a] = products.diagonal()
                on, off = _mirrored(on), _mirrored(off)
            del products
            for t in (on, off):
                t.mul_(self.scale[a, None]).mul_(self.scale[b])
            yield CurvatureTile(a, b, on, off)
        self.traces = self.scale * (P.rest * (1 + P.p) - squares)  # without one more pass over the classes

    def _centred(self) -> tuple[Tensor, Tensor]:
        """d (N, C), and t (N,)."""
        require(8 * 5 * self.N * self.K, "probabilities in float64", self.part.device)
        o = self.part.samples.output
        d = o.probs.to(torch.float64, copy=True)
        d[torch.arange(self.N, device=d.device), o.top] = -o.rest.double()
        return d, o.top

    def sum(self, weights: Tensor) -> Tensor:
        """As above."""
        result = self.zeros(len(weights), self.K, self.K)
        d, top = self._centred()
        number = torch.arange(self.N, device=d.device)
        p = d.clone()
        p[number, top] += 1
        s = p * (1 - p)
        s[number, top] = -p[number, top] * d[number, top]
        for w, out in zip(weights * self.scale, result, strict=True):
            products = torch.mm(p.T, p * -w[:, None])
            torch.add(products, products.T, out=out).div_(2)
            out.diagonal().copy_(w @ s)
        return result

    def against(self, G: Tensor) -> Tensor:
        """As above."""
        d, top = self._centred()
        along = G.diagonal(dim1=1, dim2=2)[:, None] - 2 * G[:, top] - d @ G
        return torch.einsum("nc,bnc->bn", d, along) * self.scale

    def in_basis(self, U: Tensor) -> Tensor:
        """As above."""
        d, top = self._centred()
        along = d @ U
        return (d @ U.square() - 2 * U[top] * along - along.square_()).mul_(self.scale[:, None])

    def across(self, groups: Tensor, a: slice, b: slice) -> Tensor:
        """2 sum_{g < h} r_g r_h with r_g = sum_{j in g} p_nj p_n'j: no summand is negative."""
        before, result = self.zeros(2, len(self.scale[a]), len(self.scale[b])).unbind()
        for g in groups.unique().tolist():
            rows = (groups == g).nonzero()[:, 0]
            r = torch.zeros_like(result)
            for some in rows.split(max(1, ENTRIES // (16 * self.N))):
                p = self._others.probabilities(some)
                r.addmm_(p[:, a].T, p[:, b])
            result.addcmul_(before, r, value=2)
            before += r
        return result.mul_(self.scale[a, None]).mul_(self.scale[b])


class GivenCurvature(SampleCurvature):
    """Entries Q_n[i, j], i <= j, of some pairs at a time."""

    rounding = torch.finfo(torch.float64).eps

    def __init__(self, part: Part, most: int = 0) -> None:
        super().__init__(part)
        self._most = most or max(1, ENTRIES // (8 * self.N))  # pairs whose entries are in hand
        # Entries without a closed form are a pass through the rest of the network.
        size = self.K * (self.K + 1) // 2 * self.N * part.dtype.itemsize
        self._keeps = not part.in_closed_form and size <= _KEPT
        self._kept: list[tuple[Tensor, Tensor]] = []

    @cached_property
    def traces(self) -> Tensor:
        """tr Q_n (N,)."""
        pairs = diagonal_pairs(0, self.K, self.part.device).split(self._most)
        found = self.pieces() if self._keeps else (piece for some in pairs for piece in self._entries(some))
        return sum(q[i == j].sum(0) for i, j, q in found)

    def pieces(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """i and j (P,), i <= j, and entries (P, N) in float64."""
        if not self._kept:
            together = self._most if self.part.in_closed_form else max(self._most, _SLAB // (8 * self.N))
            found: list[tuple[Tensor, Tensor]] = []
            for _, pairs in grid_pairs(self.K, self.K, True, together, self.part.device):
                yield from self._entries(pairs, found if self._keeps else None)
            self._kept = found
            return
        for pairs, q in self._kept:
            for i, some in zip(pairs.split(self._most), q.split(self._most), strict=True):
                yield *i.unbind(1), some.double()

    def _entries(self, pairs: Tensor, kept: list | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for call in Assemblies(self.part)(pairs):
            if kept is not None:
                kept.append((call.pairs, call.entries()))
            for some in call.split(self._most):
                yield *some.pairs.unbind(1), some.entries().double()

    def tiles(self, pairs: SamplePairs) -> Iterator[CurvatureTile]:
        """As above."""
        blocks, sums = pairs.blocks, self.zeros(2)
        for k, a in enumerate(blocks):
            sizes = [(2, a.stop - a.start, b.stop - b.start) for b in blocks[k:]]
            found = [self.zeros(*size).unbind() for size in sizes]
            for i, j, q in self.pieces():
                own, other = q[i == j], q[i != j]
                for b, (on, off) in zip(blocks[k:], found, strict=True):
                    for some, out in ((own, on), (other, off)):
                        if len(some):
                            _ops.gram_sums_(some[:, a], some[:, b], None, a == b, None, [out], [], sums)
            for b, (on, off) in zip(blocks[k:], found, strict=True):
                if a == b:
                    on, off = _mirrored(on), _mirrored(off)
                yield CurvatureTile(a, b, on, off.mul_(2))

    def sum(self, weights: Tensor) -> Tensor:
        """As above."""
        result = self.zeros(len(weights), self.K, self.K)
        for i, j, q in self.pieces():
            some = weights @ q.T
            result[:, i, j], result[:, j, i] = some, some
        return result

    def against(self, G: Tensor) -> Tensor:
        """As above."""
        result = self.zeros(len(G), self.N)
        for i, j, q in self.pieces():
            result.addmm_(G[:, i, j] * (1.0 + (i != j)), q)
        return result

    def in_basis(self, U: Tensor) -> Tensor:
        """As above."""
        result = self.zeros(self.N, self.K)
        for i, j, q in self.pieces():
            units, counts = i.unique_consecutive(return_counts=True)
            firsts = j[counts.cumsum(0) - counts].tolist()
            for unit, first, some in zip(units.tolist(), firsts, q.split(counts.tolist()), strict=True):
                along = 2 * some.T @ U[first : first + len(some)]  # neighbouring j, of which i comes first
                if first == unit:
                    along.addr_(some[0], U[unit], alpha=-1)
                result.addcmul_(along, U[unit])
        return result

    def across(self, groups: Tensor, a: slice, b: slice) -> Tensor:
        """As above."""
        result, sums = self.zeros(a.stop - a.start, b.stop - b.start), self.zeros(2)
        for i, j, q in self.pieces():
            some = q[groups[i] != groups[j]]
            if len(some):
                _ops.gram_sums_(some[:, a], some[:, b], None, a == b, None, [result], [], sums)
        return (_mirrored(result) if a == b else result).mul_(2)


def curvature(part: Part, samples: Tensor) -> Tensor | CurvatureParts:
    """Q_n (n, K, K) of some samples; its parts where these are more than `_TENSOR` bytes and have a closed form."""
    K, closed = part.grid[0], part.of_output and part.term != "residual"
    if closed and len(samples) * K * K * part.dtype.itemsize > _TENSOR:
        o = part.samples.output
        return CurvatureParts(*(None if t is None else t[samples] for t in (o.scale, o.probs, o.top, o.rest)))
    require(len(samples) * K * K * part.dtype.itemsize, f"curvature of {len(samples)} samples", part.device)
    result = part.like.new_zeros(len(samples), K, K)
    if not part.of_output or closed:
        for i, j, q in GivenCurvature(part).pieces():
            some = q[:, samples].T.to(part.dtype)
            result[:, i, j], result[:, j, i] = some, some
    return result
