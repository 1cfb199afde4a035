"""Q_n as entries that are formed some at a time: of hidden layers, and of layers of any network."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from hessext import _ops
from hessext._memory import require
from hessext._progress import steps
from hessext.data.ranks import Visit

from .curvature import Assemblies, diagonal_pairs, grid_pairs
from .curvature_tiles import ENTRIES, CurvatureTile, SampleCurvature, mirrored
from .gram import SamplePairs
from .part import Part

_SLAB = 256 << 20  # bytes of entries formed at once where each row of them is a pass through a network
_KEPT = 512 << 20  # bytes of such entries that are kept


class GivenCurvature(SampleCurvature):
    """Entries Q_n[i, j], i <= j, of some pairs at a time."""

    rounding = torch.finfo(torch.float64).eps

    def __init__(self, part: Part, most: int = 0) -> None:
        super().__init__(part)
        self._most = most or max(1, ENTRIES // (8 * part.largest))  # pairs whose entries are in hand
        # Entries without a closed form are a pass through the rest of the network.
        size = self.K * (self.K + 1) // 2 * part.largest * part.dtype.itemsize
        self._keeps = not part.in_closed_form and size <= _KEPT
        self._kept: list[tuple[Tensor, Tensor]] = []

    @cached_property
    def traces(self) -> Tensor:
        """tr Q_n (N,)."""
        pairs = diagonal_pairs(0, self.K, self.part.device).split(self._most)
        found = self.pieces() if self._keeps else (piece for some in pairs for piece in self._entries(some))
        return self.part.everywhere(sum(q[i == j].sum(0) for i, j, q in found))

    def pieces(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """i and j (P,), i <= j, and entries (P, N) in float64."""
        if not self._kept:
            together = self._most if self.part.in_closed_form else max(self._most, _SLAB // (8 * self.part.largest))
            found: list[tuple[Tensor, Tensor]] = []
            for _, pairs in grid_pairs(self.K, self.K, True, together, self.part.device):
                yield from self._entries(pairs, found if self._keeps else None)
            self._kept = found
            return
        for pairs, q in steps(self._kept, lambda kept: len(kept[0])):
            for i, some in zip(pairs.split(self._most), q.split(self._most), strict=True):
                yield *i.unbind(1), some.double()

    def _entries(self, pairs: Tensor, kept: list | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for call in Assemblies(self.part)(pairs):
            if kept is not None:
                kept.append((call.pairs, call.entries()))
            for some in call.split(self._most):
                yield *some.pairs.unbind(1), some.entries().double()

    @property
    def before_tiles(self) -> float:
        """Where ranks have the other samples, all of it."""
        return float(self.part.ranks.samples.size > 1)

    def prepare(self, pairs: SamplePairs, groups: Tensor | None = None) -> dict[int, Tensor] | None:
        """on, off, and with groups what is across them, of own samples with those of each rank that is met.

        Entries go round a piece at a time: all matrices are held meanwhile.
        """
        ranks, counts = self.part.ranks, self.part.counts
        if ranks.samples.size == 1:
            return None
        n, many = counts[ranks.samples.rank], 2 if groups is None else 3
        size = 8 * many * n * (n + sum(counts) // 2 + max(counts))
        require(size, f"products of the curvature of {n} samples with those of other ranks", self.part.device)
        found: dict[int, Tensor] = {}
        sums = self.zeros(2)
        for i, j, q in self.pieces():
            which = [i == j, i != j] + ([] if groups is None else [groups[i] != groups[j]])
            for visit in ranks.ring(counts, q.to(self.part.dtype)):
                other = visit.tensors[0].double()
                shape = many, visit.rows.stop - visit.rows.start, visit.cols.stop - visit.cols.start
                for some, out in zip(which, found.setdefault(visit.rank, self.zeros(*shape)), strict=True):
                    if some.any():
                        sides = q[some][:, visit.rows], other[some][:, visit.cols]
                        _ops.gram_sums_(*sides, None, not visit.other, None, [out], [], sums)
        own = found[ranks.samples.rank]
        own.triu_().add_(own.triu(1).mT)
        for matrices in found.values():
            matrices[1:].mul_(2)
        return found

    def tiles(
        self,
        pairs: SamplePairs,
        visit: Visit | None = None,
        other: GivenCurvature | None = None,
        prepared: dict[int, Tensor] | None = None,
    ) -> Iterator[CurvatureTile]:
        """As above."""
        if prepared is not None:
            for a, b, _, _ in pairs.of(visit):
                yield CurvatureTile(a, b, *(_within(prepared[visit.rank][k], visit, a, b) for k in (0, 1)))
            return
        blocks, sums = pairs.blocks, self.zeros(2)
        for k, a in steps(list(enumerate(blocks)), lambda numbered: len(blocks) - numbered[0]):
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
                    on, off = mirrored(on), mirrored(off)
                yield CurvatureTile(a, b, on, off.mul_(2))

    def sum(self, weights: Tensor) -> Tensor:
        """As above."""
        result, weights = self.zeros(len(weights), self.K, self.K), weights[:, self.part.own]
        for i, j, q in self.pieces():
            some = weights @ q.T
            result[:, i, j], result[:, j, i] = some, some
        return self.part.ranks.sum(result)

    def against(self, G: Tensor) -> Tensor:
        """As above."""
        result = self.zeros(len(G), len(self.part.samples))
        for i, j, q in self.pieces():
            result.addmm_(G[:, i, j] * (1.0 + (i != j)), q)
        return self.part.everywhere(result, 1)

    def in_basis(self, U: Tensor) -> Tensor:
        """As above."""
        result = self.zeros(len(self.part.samples), self.K)
        for i, j, q in self.pieces():
            units, counts = i.unique_consecutive(return_counts=True)
            firsts = j[counts.cumsum(0) - counts].tolist()
            for unit, first, some in zip(units.tolist(), firsts, q.split(counts.tolist()), strict=True):
                along = 2 * some.T @ U[first : first + len(some)]  # neighbouring j, of which i comes first
                if first == unit:
                    along.addr_(some[0], U[unit], alpha=-1)
                result.addcmul_(along, U[unit])
        return result

    def across(
        self,
        groups: Tensor,
        a: slice,
        b: slice,
        visit: Visit,
        other: GivenCurvature | None,
        prepared: dict[int, Tensor] | None,
    ) -> Tensor:
        """As above."""
        if prepared is not None:
            return _within(prepared[visit.rank][2], visit, a, b)
        result, sums = self.zeros(a.stop - a.start, b.stop - b.start), self.zeros(2)
        for i, j, q in self.pieces():
            some = q[groups[i] != groups[j]]
            if len(some):
                _ops.gram_sums_(some[:, a], some[:, b], None, a == b, None, [result], [], sums)
        return (mirrored(result) if a == b else result).mul_(2)


def _within(matrix: Tensor, visit: Visit, a: slice, b: slice) -> Tensor:
    """The samples a and b of a matrix over what a visit is of."""
    rows, cols = visit.rows.start, visit.cols.start
    return matrix[a.start - rows : a.stop - rows, b.start - cols : b.stop - cols]
