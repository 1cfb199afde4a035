"""Norms in the Gram form, ||sum_n q_n phi_n psi_n^T||_F^2 = sum_nn' q_n q_n' (phi_n . phi_n')(psi_n . psi_n').

No block is formed. What is squared is N x N; it is worked on in blocks of samples, so memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _checks, _ops
from ._ops import Curvature, Kind

if TYPE_CHECKING:
    from ._blocks import BlockMatrix
    from ._problem import Problem

_SQUARES = 192 << 20  # bytes of the N x N tensors in hand
_SQUARES_ON_GPU = 320 << 20  # there N = 4096 samples at once cost less than logits formed three times
_KEPT = 256 << 20  # bytes of probabilities kept between passes, and of curvature entries in hand
_TILE = 32 << 20  # bytes of a tile of classes where they are not kept
_EXPONENTS = {torch.float32: 120, torch.float64: 1000}  # of the largest unit
# A sum of squares this small beside what it would be without cancellation is taken from blocks instead.
_CANCELLED = {torch.float32: 1e-9, torch.float64: 1e-6}


class SamplePairs:
    """Blocks of samples (a, b), a <= b, that cover all pairs."""

    def __init__(self, samples: int, bytes_each: int, device: torch.device) -> None:
        limit = _SQUARES if device.type == "cpu" else _SQUARES_ON_GPU
        most = max(1, int((limit / bytes_each) ** 0.5))
        count = -(-samples // most)
        step = -(-samples // count)
        self.blocks = [slice(n, min(samples, n + step)) for n in range(0, samples, step)]
        self.bytes = step * step * bytes_each

    def __iter__(self) -> Iterator[tuple[slice, slice, bool, int]]:
        """(a, b, whether they are the same, how often the pair stands for one of the whole square)."""
        for k, a in enumerate(self.blocks):
            for b in self.blocks[k:]:
                yield a, b, a == b, 1 if a == b else 2


def _unit(t: Tensor, dim: int | None = None) -> Tensor:
    """A power of two at or above the largest |t|: divided by it, products of four neither overflow nor underflow."""
    least, most = torch.aminmax(t, **({} if dim is None else {"dim": dim, "keepdim": True}))
    exponent = torch.maximum(most, -least).double().log2().ceil()
    return torch.where(exponent > -torch.inf, torch.exp2(exponent.clamp(max=_EXPONENTS[t.dtype])), 1.0)


class _FeatureProducts:
    """phi_n . phi_n' in units of `unit`^2; with `ones` there is one more feature that is always 1."""

    def __init__(self, features: Tensor, ones: bool, dtype: torch.dtype) -> None:
        self._features, self._ones, self._dtype = features, ones, dtype
        self.unit = _unit(features if features.shape[1] else features.new_ones(1))
        if ones:
            self.unit = self.unit.clamp(min=1)

    def __call__(self, a: slice, b: slice) -> Tensor:
        shape = [len(self._features[s]) for s in (a, b)]
        result = torch.zeros(shape, dtype=self._dtype, device=self.unit.device)
        step = max(1, _TILE // (max(shape) * result.element_size()))
        for some in self._features.split(step, dim=1):
            left = some[a].to(self._dtype) / self.unit
            result.addmm_(left, left.T if a == b else (some[b].to(self._dtype) / self.unit).T)
        return result.add_(self.unit**-2) if self._ones else result

    def lengths(self) -> Tensor:
        """|phi_n| (N,) in units of `unit`."""
        squares = torch.zeros(len(self._features), dtype=torch.float64, device=self.unit.device)
        for some in self._features.split(max(1, _TILE // (8 * len(squares))), dim=1):
            squares += (some.double() / self.unit).square_().sum(1)
        return (squares + self.unit**-2 if self._ones else squares).sqrt_()


class _OtherClasses:
    """Probabilities of an output layer, class-major and without each sample's most probable class.

    Top-class deflation: where one class dominates, sums of squares over all classes cancel; over the others they do
    not. Probabilities are kept where they fit, else a tile of classes is formed again when it is asked for. Those of
    sample n are in units of `unit[n]`, about 1 together.
    """

    def __init__(self, problem: Problem) -> None:
        self._features, (self._weight, self._bias) = problem.features, problem.network.output
        N, C = len(self._features), len(self._weight)
        x = problem.x
        self._tile = max(1, min(C, _TILE // (N * x.element_size())))
        self._kept = x.new_empty(C, N) if C * N * x.element_size() <= _KEPT else None
        self._largest = x.new_full((N,), -torch.inf)
        self.top = torch.zeros(N, dtype=torch.int64, device=x.device)
        self._others = torch.zeros(N, dtype=torch.float64, device=x.device)  # sum of e^(l - largest)
        for c in range(0, C, self._tile):
            _ops.softmax_scan_(self._logits(c, slice(None)), c, self._largest, self.top, self._others)
        self.p = 1 / (1 + self._others)  # of the top class
        self.rest = self._others * self.p  # 1 - p
        self.unit = _unit(self.rest[:, None], 1)[:, 0]
        if self._kept is not None:
            _ops.softmax_others_(self._kept, 0, self._largest, self.top, self._others, self.unit)

    def _logits(self, c: int, samples: slice) -> Tensor:
        weight, bias = (None if t is None else t[c : c + self._tile] for t in (self._weight, self._bias))
        features = self._features[samples]
        out = features.new_empty(len(weight), len(features)) if self._kept is None else self._kept[c : c + len(weight)]
        _ops.logits_(out, weight, bias, features)
        return out

    def tiles(self, *samples: slice) -> Iterator[tuple[int, list[Tensor]]]:
        """The first class and the probabilities (classes, samples) of a tile, for each of the given samples."""
        if self._kept is not None:
            yield 0, [self._kept[:, s] for s in samples]
            return
        for c in range(0, len(self._weight), self._tile):
            tile = [self._logits(c, s) for s in samples]
            for s, logits in zip(samples, tile, strict=True):
                _ops.softmax_others_(logits, c, self._largest[s], self.top[s], self._others[s], self.unit[s])
            yield c, tile

    def samples_by_tile(self, samples: slice) -> tuple[Tensor, ...]:
        """Which of some samples have their top class in each of the `tiles`; a GPU is waited for once, if at all."""
        top = self.top[samples]
        if self._kept is not None:
            return (torch.arange(len(top), device=top.device),)
        top, order = top.sort()
        firsts = torch.arange(self._tile, len(self._weight), self._tile, device=top.device)
        return order.tensor_split(torch.searchsorted(top, firsts).tolist())


def softmax_sums(B: BlockMatrix) -> tuple[float, float]:
    """Sums of ||H_jj||_F^2 and of ||H_jk||_F^2, j != k, over a softmax layer.

    With r_j = p_nj p_n'j, sum_{j != k} Q_n[j, k] Q_n'[j, k] = c_n c_n' ((sum_j r_j)^2 - sum_j r_j^2); the top classes
    of both samples are split off, only what is left of r goes through the difference.
    """
    problem = B._problem
    problem.check_unchanged()
    phi = _FeatureProducts(problem.features_of(B._row), B._row.ones, B.dtype)
    scale_unit = _unit(problem.scale)
    scale = problem.scale / scale_unit
    pairs = SamplePairs(len(scale), 8 + 3 * scale.element_size(), B.device)
    kept = min(_KEPT, problem.network.classes * len(scale) * scale.element_size())
    _checks.memory(pairs.bytes + kept + 2 * _TILE, "the ratio in the Gram form", B.device)
    P = _OtherClasses(problem)
    diagonal = off_diagonal = 0.0
    for a, b, same, times in pairs:
        W = phi(a, b).square_().mul_(scale[a, None]).mul_(scale[b])
        products = torch.zeros(W.shape, dtype=torch.float64, device=W.device)
        sums, tops = torch.zeros(2, 2, dtype=torch.float64, device=W.device)
        at_b = torch.empty_like(W)  # [n, n'] = p_n'[top_n] in units of n'
        at_a = at_b if same else torch.empty_like(W.T, memory_format=torch.contiguous_format)
        units = [P.unit[a], P.unit[b]]
        of_a = P.samples_by_tile(a)
        of_b = of_a if same else P.samples_by_tile(b)
        for (first, tile), in_a, in_b in zip(P.tiles(a) if same else P.tiles(a, b), of_a, of_b, strict=True):
            _ops.gram_sums_(tile[0], tile[-1], W, same, products, units, sums)
            _gather(in_a, P.top[a] - first, tile[-1], at_b)
            if not same:
                _gather(in_b, P.top[b] - first, tile[0], at_a)
        sides = [[P.top[s], P.p[s], P.rest[s], at] for s, at in ((a, at_b), (b, at_a))]
        _ops.gram_tops_(products, W, same, units, *sides, tops)
        on, squares, tops_on, tops_off = torch.cat([sums, tops]).tolist()
        diagonal += times * (on + tops_on)
        off_diagonal += times * (tops_off - squares)
        del W, products, at_a, at_b, sides, tile  # before the next ones are made
    unit = ((phi.unit**2 * scale_unit) ** 2).item()
    return diagonal * unit, off_diagonal * unit


def _gather(rows: Tensor, top: Tensor, tile: Tensor, out: Tensor) -> None:
    """Rows out[n] = tile[top_n], some at a time: no second N x N tensor."""
    for some in rows.split(max(1, _TILE // (out.shape[1] * out.element_size()))):
        out[some] = tile[top[some]]


def chunks(pairs: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Pairs in pieces whose entries q (P, N) stay within the memory of this module."""
    return pairs.split(max(1, _KEPT // (32 * len(x))))


def _scaled(q: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """q / unit, in place, and the unit; of each row with dim=1."""
    unit = _unit(q, dim)
    return q.div_(unit), unit if dim is None else unit[:, 0]


class PairSquares:
    """Squared norms of blocks, or their sum, from q = Q_n[i, j]: q^T W q with W = (phi_n . phi_n')(psi_n . psi_n').

    Cross-layer blocks sum_n x_n (q_n psi_n + r_n e_i)^T, r = r_n[j] act'(z_i), have x_n . x_n' (r r' + 2 r q' psi'_i)
    besides. All in float64: entries of both signs cancel, and more in squares than in blocks. Where that leaves too
    little, `blocks` gives the squares.
    """

    def __init__(self, B: BlockMatrix, blocks: Callable[[Tensor], Tensor]) -> None:
        problem = B._problem
        row, col = (B._col, B._row) if B._swapped else (B._row, B._col)
        self._swapped, self._blocks = B._swapped, blocks
        self._curvature = problem.curvature_of(problem.network.part(row, col), B._term)
        self._psi = problem.features_of(col)
        self._left = _FeatureProducts(problem.features_of(row), row.ones, torch.float64)
        self._right = self._left if row == col else _FeatureProducts(self._psi, col.ones, torch.float64)
        self._pairs = SamplePairs(len(problem.x), 16, problem.x.device)
        _checks.memory(self._pairs.bytes, "norms in the Gram form", problem.x.device)
        self._first: Tensor | None = None
        self._least = _CANCELLED[B.dtype]
        self._phi_lengths = self._left.lengths()
        self._lengths = self._phi_lengths * (self._phi_lengths if row == col else self._right.lengths())

    def _entries(self, pairs: Tensor) -> Tensor:
        """Q_n[i, j] (P, N)."""
        entries = _ops.curvature_entries(pairs.contiguous(), *self._curvature)
        return entries.double()

    def _weight(self, a: slice, b: slice) -> Tensor:
        if self._first is not None:
            return self._first
        W = self._left(a, b)
        W = W.square_() if self._right is self._left else W.mul_(self._right(a, b))
        if len(self._pairs.blocks) == 1:
            self._first = W
        return W

    def sum(self, pairs: Tensor) -> float:
        """The sum over some pairs of one layer."""
        q, unit = _scaled(self._entries(pairs))
        total = torch.zeros(2, dtype=torch.float64, device=q.device)
        for a, b, same, times in self._pairs:
            sums = torch.zeros_like(total)
            _ops.gram_sums_(q[:, a], q[:, b], self._weight(a, b), same, None, [], sums)
            total += times * sums
        if total[0] < self._least * (q.abs() @ self._lengths).square().sum():
            return self._blocks(pairs).sum().item()
        return (total[0] * (unit * self._left.unit * self._right.unit) ** 2).item()

    def each(self, pairs: Tensor) -> Tensor:
        """The squared norms (P,) float64."""
        given, pairs = pairs, pairs.flip(1) if self._swapped else pairs
        q, unit = _scaled(self._entries(pairs), 1)
        unit = unit * self._left.unit * self._right.unit
        total = self._forms(q, q, self._weight) * unit**2
        bound = (q.abs() @ self._lengths) * unit  # of the norm: no cancellation
        if self._curvature.residual is not None and self._psi.shape[1]:
            i, j = pairs.unbind(1)
            r, r_unit = _scaled(self._curvature.residual.T[j].double() * self._curvature.slope.T[i], 1)
            r_unit = r_unit * self._left.unit
            q *= self._psi.T[i] / self._right.unit
            mixed = self._forms(r, q, self._left) * unit
            total += (self._forms(r, r, self._left) * r_unit + 2 * mixed) * r_unit
            bound += (r.abs() @ self._phi_lengths) * r_unit
        if (poor := total < self._least * bound**2).any():
            total[poor] = self._blocks(given[poor])
        return total

    def _forms(self, u: Tensor, v: Tensor, weight: Callable[[slice, slice], Tensor]) -> Tensor:
        """u^T W v for each row of u and v (P, N)."""
        total = torch.zeros(len(u), dtype=torch.float64, device=u.device)
        for a, b, same, _ in self._pairs:
            W = weight(a, b)
            total += torch.sum((u[:, a] @ W).mul_(v[:, b]), 1, dtype=torch.float64)
            if not same:
                total += torch.sum((v[:, a] @ W).mul_(u[:, b]), 1, dtype=torch.float64)
        return total


def class_pair_cost(B: BlockMatrix) -> float:
    """Of `class_pair_squares` in multiply-adds: those of whole panels of classes and, as measured, forming the rows."""
    classes, row = B.grid[0], (1700 + 46 * B.grid[0]) * 8 / B.dtype.itemsize
    return len(B._problem.x) ** 2 / 2 * ((-(-classes // 32) * 32) ** 2 / 2 + row)


def class_pair_squares(B: BlockMatrix) -> Tensor:
    """||H_jk||_F^2 of all j != k of a softmax layer with c_n of one sign, (C, C) float64; the diagonal means nothing.

    It is sum_nn' w r_j r_k with r_j = p_nj p_n'j and w = c_n c_n' (phi_n . phi_n')^2: an outer-product assembly like
    that of a block, whose samples are the pairs n <= n' and whose features are the classes.
    """
    problem = B._problem
    problem.check_unchanged()
    phi = _FeatureProducts(problem.features_of(B._row), B._row.ones, torch.float64)
    P = problem.curvature.probs
    N, C = P.shape
    work = _KEPT if B.device.type == "cuda" else _TILE  # a GPU takes few large assemblies
    _checks.memory(16 * C * C + 3 * work, f"norms of {C} x {C} blocks", B.device)
    unit = _unit(P, 0)[0]
    # squares of the smallest probabilities underflow in float32
    wide = B.dtype == torch.float64 or bool((P / unit).min() < 1e-8)
    P = (P / unit).to(torch.float64 if wide else B.dtype)
    scale_unit = _unit(problem.scale)
    scale = problem.scale.double() / scale_unit
    few = max(1, int((work / (C * P.element_size())) ** 0.5))
    total = torch.zeros(C, C, dtype=torch.float64, device=P.device)
    pair = torch.zeros(1, 2, dtype=torch.int64, device=P.device)
    for n in range(0, N, few):
        a = slice(n, n + few)
        for k in range(n, N, few):
            b = slice(k, k + few)
            w = phi(a, b).square_().mul_(scale[a, None]).mul_(scale[b]).mul_(1 if n == k else 2)
            r = (P[a, None] * P[None, b]).view(-1, C)
            weights = Curvature(int(Kind.OUTPUT), 1, 1, True, 1, scale=w.view(-1).to(P.dtype))
            total += _ops.blocks(pair, False, r, False, r, False, True, *weights)[0]
            del w, r, weights  # before the next ones are made
    unit = unit.double().square()
    return total.mul_(unit[:, None]).mul_(unit).mul_((phi.unit**2 * scale_unit) ** 2)
