"""Norms in the Gram form, ||sum_n q_n phi_n psi_n^T||_F^2 = sum_nn' q_n q_n' (phi_n . phi_n')(psi_n . psi_n').

No block is formed. What is squared is N x N; it is worked on in blocks of samples, so memory stays bounded. Numbers are
divided by powers of two, exactly, so that products of four of them neither overflow nor underflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hessext import _ops
from hessext._memory import require
from hessext._progress import steps
from hessext.data.ranks import Ranks, Visit

from .curvature import Assemblies, Assembly, Sides
from .feature_products import FeatureProducts, power_of_two
from .part import Part

_SQUARES = 192 << 20  # bytes of the N x N tensors in hand
_SQUARES_ON_GPU = 320 << 20  # there N = 4096 samples at once cost less than logits formed three times
_ENTRIES = 256 << 20  # bytes of entries of Q_n in hand
_STRIP = 256  # samples whose products with all earlier ones are taken at once
# A sum of squares this small beside what it would be without cancellation is taken from blocks instead.
_CANCELLED = {torch.float32: 1e-9, torch.float64: 1e-6}


class SamplePairs:
    """Blocks of samples (a, b), a <= b, that cover all pairs; or those with a visitor's samples b.

    Where classes are split into `shares`, each rank has the whole of such a block: it is smaller.
    """

    def __init__(
        self, samples: int, bytes_each: int, device: torch.device, limit: int | None = None, shares: int = 1
    ) -> None:
        limit = limit or (_SQUARES if device.type == "cpu" else _SQUARES_ON_GPU)
        if shares > 1:
            limit //= 2 * shares
        self._most = max(1, int((limit / bytes_each) ** 0.5))
        self.blocks = self._split(slice(0, samples))
        step = self.blocks[0].stop
        self.bytes = step * step * bytes_each

    def _split(self, some: slice) -> list[slice]:
        samples = some.stop - some.start
        step = -(-samples // -(-samples // self._most))
        return [slice(n, min(some.stop, n + step)) for n in range(some.start, some.stop, step)]

    def of(self, visit: Visit | None) -> Iterator[tuple[slice, slice, bool, int]]:
        """The same of a visit: own samples with one another, or with a visitor's."""
        if visit is None or not visit.other:
            yield from self
            return
        yield from steps([(a, b, False, 2) for a in self._split(visit.rows) for b in self._split(visit.cols)], _work)

    def __iter__(self) -> Iterator[tuple[slice, slice, bool, int]]:
        """(a, b, whether they are the same, how often the pair stands for one of the whole square)."""
        tiles = [(a, b, a == b, 1 if a == b else 2) for k, a in enumerate(self.blocks) for b in self.blocks[k:]]
        yield from steps(tiles, _work)


def _work(tile: tuple[slice, slice, bool, int]) -> int:
    """What a tile costs: its pairs, or half of them where it is symmetric."""
    a, b, _, times = tile
    return (a.stop - a.start) * (b.stop - b.start) * times


def _scaled(q: Tensor, ranks: Ranks, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Divide q by its power of two on all ranks in place, or each row by its own with dim=1; return both."""
    power = ranks.largest(power_of_two(q, dim))
    return q.div_(power), power if dim is None else power[:, 0]


class _Kernel:
    """A symmetric matrix over pairs of samples: blocks of own ones, and, kept, what lies between them and visitors'."""

    def __init__(
        self, own: Callable[[slice, slice], Tensor], pairs: SamplePairs, ranks: Ranks, counts: list[int]
    ) -> None:
        self.own, self.pairs, self._ranks, self._counts = own, pairs, ranks, counts
        self.visitors: dict[int, Tensor] = {}

    def visits(self, *vectors: Tensor) -> Iterator[tuple[Visit, Tensor]]:
        """Vectors (P, N) of visitors, and the matrix between own samples and theirs."""
        if self._ranks.samples.size > 1:
            for visit in self._ranks.ring(self._counts, *vectors):
                if visit.rank in self.visitors:
                    yield visit, self.visitors[visit.rank]

    def forms(self, u: Tensor, v: Tensor) -> Tensor:
        """u^T W v for each row of u and v (P, N); where they are the same, from half of W, which is symmetric."""
        total = torch.zeros(len(u), dtype=torch.float64, device=u.device)
        for a, b, same, times in self.pairs:
            W, left, right = self.own(a, b), u[:, a], v[:, b]
            if u is not v:
                total += _dots(left @ W, right)
                if not same:
                    total += _dots(v[:, a] @ W, u[:, b])
            elif not same:
                total += times * _dots(left @ W, right)
            else:
                for n in range(0, len(W), _STRIP):
                    strip = slice(n, n + _STRIP)
                    product = left[:, strip] @ W[strip, strip]
                    product.addmm_(left[:, :n], W[:n, strip], alpha=2)
                    total += _dots(product, left[:, strip])
        for visit, W in self.visits(u, *(() if u is v else (v,))):
            of_u, of_v = visit.tensors[0][:, visit.cols], visit.tensors[-1][:, visit.cols]
            total += _dots(u[:, visit.rows] @ W, of_v) + _dots(v[:, visit.rows] @ W, of_u)
        return self._ranks.sum(total)


class _PairWeights:
    """W[n, n'] = (phi_n . phi_n')(psi_n . psi_n') over the power of two `power`^2, in blocks of samples."""

    def __init__(self, sides: Sides, part: Part) -> None:
        left, left_ones, right, right_ones, same = sides
        ranks = part.ranks
        self.left = FeatureProducts(left, left_ones, torch.float64, ranks)
        self.right = self.left if same else FeatureProducts(right, right_ones, torch.float64, ranks)
        self.pairs = SamplePairs(len(left), 16, left.device)
        require(self.pairs.bytes, "norms in the Gram form", left.device)
        self.power = self.left.power * self.right.power
        self.left_lengths = self.left.lengths()
        self.lengths = self.left_lengths * (self.left_lengths if same else self.right.lengths())
        self._first: Tensor | None = None
        counts = [len(left) // len(part.samples) * n for n in part.counts]  # residuals may double them
        self.both, self.of_left = (_Kernel(own, self.pairs, ranks, counts) for own in (self._block, self.left))
        if ranks.samples.size > 1:
            self._keep_visitors(ranks, counts)

    def _keep_visitors(self, ranks: Ranks, counts: list[int]) -> None:
        """Vectors go round more often than features."""
        same, own = self.right is self.left, counts[ranks.samples.rank]
        kept = own * (sum(counts) // 2 + max(counts)) * (8 if same else 16)
        require(kept, "norms in the Gram form over pairs of ranks", self.power.device)
        for visit in ranks.ring(counts, self.left.features, *(() if same else (self.right.features,))):
            if not visit.other:
                continue
            left = self.left(visit.rows, visit.cols, visit.tensors[0])
            both = left.square() if same else left * self.right(visit.rows, visit.cols, visit.tensors[1])
            self.both.visitors[visit.rank] = both
            if not same:
                self.of_left.visitors[visit.rank] = left

    def _block(self, a: slice, b: slice) -> Tensor:
        if self._first is not None:
            return self._first
        W = self.left(a, b)
        W = W.square_() if self.right is self.left else W.mul_(self.right(a, b))
        if len(self.pairs.blocks) == 1:
            self._first = W
        return W


class PairSquares:
    """Squared norms of blocks, or their sum, from q = Q_n[i, j]: q^T W q with W = (phi_n . phi_n')(psi_n . psi_n').

    Blocks between neighbouring layers, sum_n x_n (q_n psi_n + r_n e_i)^T with r = r_n[j] act'(z_i), have the further
    terms x_n . x_n' (r r' + 2 r q' psi'_i). All is in float64: entries of both signs cancel, and more in squares than
    in blocks. Where that leaves too little, `blocks` gives the squares.
    """

    def __init__(self, part: Part, blocks: Callable[[Tensor], Tensor]) -> None:
        self._part, self._ranks = part, part.ranks
        self._assemblies, self._blocks = Assemblies(part), blocks
        self._least = _CANCELLED[part.dtype]
        self._weights = None if part.residual_far else _PairWeights(self._assemblies.sides, part)
        self._most = max(1, _ENTRIES // (32 * part.largest))  # pairs whose q (P, N) are worked on at once

    def sums(self, pairs: Tensor) -> tuple[float, float]:
        """The sums over the diagonal and over the other blocks of some pairs of one layer."""
        diagonal = off_diagonal = 0.0
        for call in self._assemblies.some(pairs, self._most):
            q, on = call.entries().double(), call.pairs[:, 0] == call.pairs[:, 1]
            if on.any():
                diagonal += self._sum(call.pairs[on], q[on])
            if not on.all():
                off_diagonal += self._sum(call.pairs[~on], q[~on])
        return diagonal, off_diagonal

    def _sum(self, pairs: Tensor, q: Tensor) -> float:
        weights = self._weights
        q, power = _scaled(q, self._ranks)
        total = torch.zeros(2, dtype=torch.float64, device=q.device)
        for a, b, same, times in weights.pairs:
            sums = torch.zeros_like(total)
            _ops.gram_sums_(q[:, a], q[:, b], weights.both.own(a, b), same, None, [], [], sums)
            total += times * sums
        for visit, W in weights.both.visits(q):
            sums, other = torch.zeros_like(total), visit.tensors[0][:, visit.cols]
            _ops.gram_sums_(q[:, visit.rows], other, W, False, None, [], [], sums)
            total += 2 * sums
        total, bound = self._ranks.sum(total, q.abs() @ weights.lengths)
        if total[0] < self._least * bound.square().sum():
            return self._blocks(pairs).sum().item()
        return (total[0] * (power * weights.power) ** 2).item()

    def each(self, pairs: Tensor) -> Tensor:
        """The squared norms (P,) float64; a GPU is waited for once, in the end."""
        result = torch.empty(len(pairs), dtype=torch.float64, device=pairs.device)
        cancelled = torch.empty_like(result, dtype=torch.bool)
        for call in self._assemblies.some(pairs, self._most):
            total, bound = self._each(call, self._weights or _PairWeights(call.sides, self._part))
            result[call.where], cancelled[call.where] = total, total < self._least * bound**2
        if len(poor := cancelled.nonzero()[:, 0]):
            result[poor] = self._blocks(pairs[poor])
        return result

    def _each(self, call: Assembly, weights: _PairWeights) -> tuple[Tensor, Tensor]:
        """The squared norms, and what the norms would be if nothing cancelled."""
        q, power = _scaled(call.entries().double(), self._ranks, 1)
        power = power * weights.power
        total = weights.both.forms(q, q) * power**2
        bound = (q.abs() @ weights.lengths) * power
        residual, psi = call.curvature.residual, call.sides.right
        if residual is not None and psi.shape[1]:
            i, j = call.pairs.unbind(1)
            r, r_power = _scaled(residual.T[j].double() * call.curvature.slope.T[i], self._ranks, 1)
            r_power = r_power * weights.left.power
            q *= psi.T[i] / weights.right.power
            mixed = weights.of_left.forms(r, q) * power
            total += (weights.of_left.forms(r, r) * r_power + 2 * mixed) * r_power
            bound += (r.abs() @ weights.left_lengths) * r_power
        return total, self._ranks.sum(bound)


def _dots(u: Tensor, v: Tensor) -> Tensor:
    """u . v (P,) for each row of u, which is overwritten, and of v (P, N)."""
    return torch.sum(u.mul_(v), 1, dtype=torch.float64)
