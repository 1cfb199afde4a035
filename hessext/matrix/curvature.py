"""Q_n between two layers as the core takes it, and the calls of the core that cover some blocks of a part.

With V the last weight, D_n = diag act'(z_n) of the layer before it and B_n = d2 l_n / d f_n2:

    Kind.OUTPUT  last layer                  Q_n = B_n                       (3), (5), (9), (15)
    Kind.HIDDEN  layer before it             Q_n = D V^T B V D + diag(bend)  (8), (14)
    Kind.CROSS   between these two           Q_n = D V^T B                   (11), (18)
    Kind.GIVEN   any other                   entries, from data/curvature.py

The entries of the first three are computed in csrc/curvature.h, on either device. V^T B V of (14) is a covariance over
the classes: csrc/cpu/isa/class_sums.h and csrc/cuda/weights.h. Between layers l < k the residual term adds
g_k[j] phi_n (d a_{k-1} / d z_l[i])^T, whose last factor is act'(z_l[i]) e_i where k = l + 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hessext import _ops
from hessext._ops import Curvature, Kind
from hessext._progress import shares, steps
from hessext.data.curvature import tangents
from hessext.data.samples import Samples

from .part import Part

_ENTRIES = 256 << 20  # bytes of given entries in hand


class Sides(NamedTuple):
    """phi_n and psi_n of the upright part, without and with a feature that is always 1."""

    left: Tensor
    left_ones: bool
    right: Tensor
    right_ones: bool
    same_features: bool


class Assembly(NamedTuple):
    """One call of the core: some blocks of an upright part."""

    where: slice | Tensor  # which of the pairs that were asked for
    pairs: Tensor | None  # (P, 2) in the upright grid; None for all, which `_ops.dense_` takes
    sides: Sides
    curvature: Curvature

    @property
    def arguments(self) -> tuple:
        """The operators' last arguments."""
        return *self.sides, *self.curvature

    def split(self, most: int) -> Iterator[Assembly]:
        """The same for at most so many pairs at a time."""
        for first in range(0, len(self.pairs), most):
            some = slice(first, first + most)
            if isinstance(self.where, slice):
                where = slice(self.where.start + first, self.where.start + min(first + most, len(self.pairs)))
            else:
                where = self.where[some]
            entries = self.curvature.entries
            curvature = self.curvature if entries is None else self.curvature._replace(entries=entries[some])
            yield Assembly(where, self.pairs[some], self.sides, curvature)

    def entries(self) -> Tensor:
        """Q_n[i, j] (P, N) of the pairs, without what the residual adds between layers."""
        given = self.curvature.entries
        return _ops.curvature_entries(self.pairs, *self.curvature) if given is None else given


class Assemblies:
    """The calls of the core for blocks of a part of data in memory: one in closed form, else entries piece by piece.

    Without `far`, what the residual adds between layers that are no neighbours is left out.
    """

    def __init__(self, part: Part, far: bool = True) -> None:
        self.part, self._upright, self._closed = part, part.upright, part.in_closed_form
        self._far = far and part.residual_far
        self._samples = part.samples
        self._samples.check_unchanged()
        row, col = self._upright.row, self._upright.col
        self.sides = Sides(part.features(row), row.bias, part.features(col), col.bias, part.same)
        self._layers = row.layer, col.layer
        if not self._closed:
            self.curvature = Curvature(Kind.GIVEN, row.blocks, col.blocks, part.within)
            if part.term != "gauss_newton" and col.layer == row.layer + 1:
                slope, gradient = self._samples.slope(row.layer), self._samples.gradient(col.layer)
                self.curvature = self.curvature._replace(slope=slope, residual=gradient)
        else:
            self.curvature = _closed_form(self._samples, part.kind, part.term)
        if part.divided != (1, 1, 1):
            self.curvature = _divided(self.curvature, self._upright)

    def __call__(self, pairs: Tensor | None) -> Iterator[Assembly]:
        """Yield what covers the pairs (P, 2) of the part, or all that may not vanish, i <= j within a layer."""
        if self._closed:
            yield Assembly(slice(0, None), self._flipped(pairs), self.sides, self.curvature)
            return
        for where, some in self._pieces(self._flipped(pairs)):
            with shares(2) as begin:  # the entries, and what is made of them
                begin(1)
                entries = self._samples.curvature_entries(*self._layers, some, self.part.term)
                sides = self.sides
                if self._far:
                    sides, entries = self._with_residual(int(some[0, 0]), some[:, 1], entries)
                begin(1)
                yield Assembly(where, some, sides, self.curvature._replace(entries=entries))
                del entries  # before the next ones are made

    def some(self, pairs: Tensor, most: int) -> Iterator[Assembly]:
        """The same, at most so many pairs at a time: steps of what is done one by one."""
        for call in self(pairs):
            yield from steps(call.split(most), lambda part: len(part.pairs), len(call.pairs))

    def _flipped(self, pairs: Tensor | None) -> Tensor | None:
        if pairs is None:
            return None
        return (pairs.flip(1) if self.part.transposed else pairs).contiguous()

    def _pieces(self, pairs: Tensor | None) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Pairs whose entries fit in memory, rows one after another; pairs of one row where sides differ by row."""
        (rows, cols), device = self._upright.grid, self.part.device
        most, first = max(1, _ENTRIES // (self.part.largest * self.part.dtype.itemsize)), 0
        if pairs is None and self.part.block_diagonal:
            pairs = diagonal_pairs(0, rows, device)
        if pairs is None:
            together = cols if self._far else most
            for _, some in grid_pairs(rows, cols, self.part.within, together, device):
                for piece in some.split(most):
                    yield slice(first, first + len(piece)), piece
                    first += len(piece)
            return
        order = pairs[:, 0].argsort(stable=True)
        counts = pairs[:, 0].unique(return_counts=True)[1].tolist() if self._far else [len(pairs)]
        ascending = bool((pairs[1:, 0] >= pairs[:-1, 0]).all())
        for piece in steps([piece for where in order.split(counts) for piece in where.split(most)], len):
            yield slice(first, first + len(piece)) if ascending else piece, pairs[piece]
            first += len(piece)

    def _with_residual(self, i: int, j: Tensor, entries: Tensor) -> tuple[Sides, Tensor]:
        """Blocks (i, j) as sums over twice as many samples: Q_n[i, j] phi_n psi_n^T, and what the residual adds."""
        left, right = self._doubled
        row, col = self._layers
        along = tangents(self._samples, row, torch.tensor([i], device=j.device), col - 1)[0]
        along = F.pad(along, (0, int(self.sides.right_ones)))
        sides = Sides(left, self.sides.left_ones, torch.cat([right, along]), False, False)
        return sides, torch.cat([entries, self._samples.gradient(col).T[j]], 1)

    @cached_property
    def _doubled(self) -> tuple[Tensor, Tensor]:
        """phi_n of all samples twice, and psi_n with its 1 as a feature like the others."""
        left, _, right, right_ones, _ = self.sides
        return torch.cat([left, left]), F.pad(right, (0, 1), value=1.0) if right_ones else right


def diagonal_pairs(first: int, end: int, device: torch.device) -> Tensor:
    """Pairs (i, i), first <= i < end, as (P, 2)."""
    return torch.arange(first, end, device=device)[:, None].expand(-1, 2).contiguous()


def grid_pairs(rows: int, cols: int, upper: bool, most: int, device: torch.device) -> Iterator[tuple[range, Tensor]]:
    """All pairs of the grid, or those with i <= j, in pieces of whole rows: about `most` pairs, and which rows."""
    more = max(1, most // cols)
    pieces = [range(i, min(rows, i + more)) for i in range(0, rows, more)]
    for some in steps(pieces, lambda some: len(some) * (cols - upper * (some.start + some.stop - 1) / 2)):
        block = torch.arange(some.start, some.stop, device=device)
        pairs = torch.cartesian_prod(block, torch.arange(some.start if upper else 0, cols, device=device))
        yield some, pairs[pairs[:, 0] <= pairs[:, 1]] if upper else pairs


def _divided(curvature: Curvature, part: Part) -> Curvature:
    """What belongs to the divided part; the residual's r_n[j] act'(z)[i] stands in the place of psi."""
    _, col, of_curvature = part.divided
    if of_curvature != 1:
        curvature = curvature._replace(scale=curvature.scale / of_curvature)
    if curvature.residual is not None and col * of_curvature != 1:
        curvature = curvature._replace(residual=curvature.residual / of_curvature / col)
    return curvature


def _closed_form(samples: Samples, kind: Kind, term: str) -> Curvature:
    """Q_n of the last two layers; `term` says which of its summands."""
    last, classes, o = samples.network.last, samples.network.classes, samples.output
    gauss_newton, residual = term != "residual", term != "gauss_newton"
    output = {"scale": o.scale, "probs": o.probs, "top": o.top, "rest": o.rest}
    if kind is Kind.OUTPUT:
        return Curvature(kind, classes, classes, True, classes, gauss_newton, **output)
    V = samples.network.layers[last].weight
    units, hidden = V.shape[1], {"weight": V, "shift": samples.shift, "slope": samples.slope(last - 1)}
    if kind is Kind.CROSS:
        r = samples.residual if residual else None
        return Curvature(kind, units, classes, False, classes, gauss_newton, **output, **hidden, residual=r)
    gram = V.T @ V if o.probs is None else None
    bend = samples.bend(last - 1) if residual else None
    own = {"gram": gram, "bend": bend}
    return Curvature(kind, units, units, True, classes, gauss_newton, **output, **hidden, **own)
