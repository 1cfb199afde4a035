"""Entries of Q_n for layers before the last two: d2 l_n / dz_l^2 within a layer, and what lies between two.

With S_k = d2 l_n / d z_k^2 and J_kl = d z_k / d z_l: Q_n = S_l within a layer, (S_k J_kl)^T between l < k.
Neither is kept for all samples. There are two ways to some of their rows:

    tangents  row i is pushed from z_l to the logits, through B_n, and back to z_k: 2 sum K K' multiply-adds a row.
    factors   Q_n = c_n F_l^T F_k with F_l = A_n J_Ll and B_n = c_n A_n^T A_n, of C rows: for the Gauss-Newton term
              with few classes. Where B_n is diagonal, A_n = I and c_n stands between the factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hessext._memory import require
from hessext._progress import steps

if TYPE_CHECKING:
    from .samples import Samples

_WORK = 16 << 20  # bytes of the widest tangents in hand
_TOGETHER = 64  # samples of one unit at least, where there are so many
_FACTOR = 512 << 20  # bytes of a layer's factors, which are kept


def rows_in_turn(pairs: Tensor, few: int) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """The rows of pairs (P, 2) in ascending order, a few at a time, and which pairs are those of each of them."""
    units, at, counts = pairs[:, 0].unique(return_inverse=True, return_counts=True)
    where = at.argsort(stable=True).split(counts.tolist())
    for first in steps(range(0, len(units), few)):
        yield units[first : first + few], where[first : first + few]


def tangents(samples: Samples, row: int, units: Tensor, layer: int) -> Tensor:
    """d a_layer / d z_row[i] (U, N, K) for some units i (U,), of the activations of a later layer."""
    layers = samples.network.layers
    z = samples.slope(row).T[units, :, None] * layers[row + 1].weight.T[units, None]
    for k in range(row + 1, layer):
        z = F.linear(samples.through(k, z), layers[k + 1].weight)
    return samples.through(layer, z)


def factor(samples: Samples, layer: int) -> Tensor:
    """F_l = A_n J_Ll (N, C, K_l), up to c_n: the centred and scaled rows of V for a softmax, pulled back to z_l."""
    layers, last, o = samples.network.layers, samples.network.last, samples.output
    V = layers[last].weight
    size = len(samples) * V.shape[0] * max(len(below.weight) for below in layers[layer:last]) * V.element_size()
    require(2 * size, "factors of the curvature", V.device)
    rows = V.expand(len(samples), -1, -1)
    if o.probs is not None:
        rows = (V - V[o.top][:, None]).sub_(samples.shift[:, None]).mul_(o.probs.sqrt()[:, :, None])
    for k in range(last - 1, layer - 1, -1):
        rows = layers[k].activation.through(samples.slope(k)[:, None], rows)
        if k > layer:
            rows = rows @ layers[k].weight
    return rows


@dataclass(frozen=True)
class Entries:
    """Q_n between layers row <= col of samples, of which `term` says the summands."""

    samples: Samples
    row: int
    col: int
    term: str

    def __call__(self, pairs: Tensor) -> Tensor:
        """Q_n[i, j] (P, N) of pairs (P, 2)."""
        samples, bends = self.samples, self._bends
        out = samples.network.like.new_zeros(len(pairs), len(samples))
        if self.row == samples.network.last:  # whose B_n is diagonal
            own = pairs[:, 0] == pairs[:, 1]
            if self.term != "residual":
                out[own] = samples.output.scale.T[pairs[own, 0]]
            return out
        if self.term != "residual" or any(layer > self.row for layer in bends):
            if not bends and self._few_classes:
                self._fill_by_factors(pairs, out)
            else:
                self._fill_by_tangents(pairs, out)
        if self.row == self.col and self.row in bends:
            own = pairs[:, 0] == pairs[:, 1]
            out[own] += samples.bend(self.row).T[pairs[own, 0]]
        return out

    @property
    def _bends(self) -> list[int]:
        """Layers from `col` on whose activation adds act''(z_k) W_{k+1}^T g_{k+1} to S_k."""
        layers = range(self.col, self.samples.network.last) if self.term != "gauss_newton" else ()
        return [k for k in layers if self.samples.bend(k) is not None]

    @property
    def _few_classes(self) -> bool:
        """Whether factors fit in memory and cost less than tangents, which are pushed through all weights."""
        layers, classes = self.samples.network.layers, self.samples.network.classes
        if self.col == self.samples.network.last:
            return False  # A_n is C x C there
        weights = sum(layer.weight.numel() for layer in layers[self.row + 1 :])
        width = max(len(layers[k].weight) for k in (self.row, self.col))
        fits = len(self.samples) * classes * width * layers[0].weight.element_size() <= _FACTOR
        return fits and 4 * classes * len(layers[self.col].weight) <= weights  # thin products are not as fast

    # ------------------------------------------------------------------------------------------------ two ways

    def _fill_by_factors(self, pairs: Tensor, out: Tensor) -> None:
        samples, units, at = self.samples, *pairs[:, 0].unique(return_inverse=True)
        left, right, o = samples.factor(self.row), samples.factor(self.col), samples.output
        few = len(pairs) <= 2 * len(units)  # such as the diagonal's
        sizes = len(pairs) * right.shape[1] if few else len(units) * right.shape[2]
        step = max(1, _WORK // (sizes * out.element_size()))
        for n in range(0, len(samples), step):
            some = slice(n, n + step)
            scaled = left[some] * o.columns[some, :, None]
            if few:
                entries = (scaled[:, :, pairs[:, 0]] * right[some, :, pairs[:, 1]]).sum(1).T
            else:
                entries = (scaled[:, :, units].mT @ right[some]).permute(1, 2, 0)[at, pairs[:, 1]]
            out[:, some] = entries

    def _fill_by_tangents(self, pairs: Tensor, out: Tensor) -> None:
        samples = self.samples
        widest = max(len(layer.weight) for layer in samples.network.layers[self.row :])
        columns = max(1, _WORK // (widest * out.element_size()))  # of units and samples together
        few = max(1, columns // min(len(samples), _TOGETHER))
        for units, where in rows_in_turn(pairs, few):
            here = torch.cat(where)
            places = torch.searchsorted(units, pairs[here, 0]), pairs[here, 1]
            step = max(1, columns // len(units))
            for n in range(0, len(samples), step):
                rows = self._rows_by_tangents(units, slice(n, min(n + step, len(samples))))
                out[here, n : n + step] = rows[places]

    def _rows_by_tangents(self, units: Tensor, some: slice) -> Tensor:
        """Rows of Q_n for some units and samples, (units, K_col, n), without the bend of layer `row` itself.

        A unit that is off moves nothing: its rows are zero, and only the others are pushed.
        """
        samples, bends = self.samples, self._bends
        layers, last = samples.network.layers, samples.network.last
        slope = samples.slope(self.row)[some, units].T
        at, n = slope.nonzero().unbind(1)  # row by row
        sample = n + some.start
        z = slope[at, n, None] * layers[self.row + 1].weight.T[units[at]]
        moved = {}  # the derivative of z_k, where it is needed on the way back
        top = last if self.term != "residual" else bends[-1]
        for k in range(self.row + 1, top + 1):
            if k > self.row + 1:
                z = F.linear(samples.through(k - 1, z, sample), layers[k].weight)
            if k in bends:
                moved[k] = z
        g = samples.output.product_(z, sample) if top == last else samples.bend(top).index_select(0, sample).mul_(z)
        for k in range(top - 1, self.col - 1, -1):
            g = samples.through(k, g @ layers[k + 1].weight, sample)
            if k in moved:
                g.addcmul_(samples.bend(k).index_select(0, sample), moved[k])
        result = g.new_zeros(len(units), g.shape[1], slope.shape[1])
        counts = slope.count_nonzero(1).tolist()
        for rows, pushed, where in zip(result, g.split(counts), n.split(counts), strict=True):
            rows[:, where] = pushed.T
        return result
