"""Norms of a softmax layer in the Gram form, where sums over all classes are products of probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import combinations_with_replacement, repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from hessext import _ops
from hessext._memory import in_huge_pages, require, spare
from hessext._ops import Curvature, Kind
from hessext._progress import shares, steps
from hessext.model.network import Layer

from .feature_products import FeatureProducts, power_of_two
from .gram import SamplePairs
from .part import Part

_TILE, _TILE_ON_GPU = 32 << 20, 128 << 20  # bytes of a tile of classes; a GPU takes few large products
_SAMPLES = 512  # whose logits are one product: a product of others may round otherwise
_CLASSES = 2048  # classes of a tile of `class_pair_norms`
# Largest relative errors: of what tensor cores round, and of a sum for what is rounded in it.
_ROUNDED, _ALLOWED = 1.2e-3, 4 * torch.finfo(torch.float32).eps
_WORK, _WORK_ON_GPU = 32 << 20, 256 << 20  # bytes of products of probabilities; a GPU takes few large assemblies


class OtherClasses:
    """Probabilities of an output layer, class-major and without each sample's most probable class.

    Top-class deflation: where one class dominates, sums of squares over all classes cancel; over the others they do
    not. Probabilities are kept where memory is free, else a tile of classes is formed again when it is asked for; both
    have the same bits. Those of sample n are divided by `power[n]`, about 1 together. Where they meet those of other
    data or of other ranks, both have the tiles of `most` samples.
    """

    def __init__(self, part: Part, most: int = 0) -> None:
        samples, self._ranks, self._first = part.samples, part.ranks, part.first_class
        layer = samples.network.layers[-1]
        self._features, self._weight, self._bias = samples.features(samples.network.last), layer.weight, layer.bias
        N, C = len(self._features), len(self._weight)
        x = samples.x
        self._tile = max(1, min(C, _tile_bytes(part) // (max(most, N) * x.element_size())))
        kept = spare(C * N * x.element_size(), x.device, part.ranks.size)
        self._kept = in_huge_pages(x.new_empty(C, N)) if kept else None
        self._largest = x.new_full((N,), -torch.inf)
        self.top = torch.zeros(N, dtype=torch.int64, device=x.device)
        self._others = torch.zeros(N, dtype=torch.float64, device=x.device)  # sum of e^(l - largest)
        room = self._room(0, N) if self._kept is None else self._kept
        for c in steps(range(0, C, self._tile)):
            out = room[: self._tile] if self._kept is None else room[c : c + self._tile]
            _ops.softmax_scan_(self._logits(c, 0, out), c, self._largest, self.top, self._others)
        self._of_all_classes()
        self._unit = 1.0
        self._derive()
        if self._kept is not None:
            _ops.softmax_others_(self._kept, self._first, self._largest, self.top, self._others, self._power)

    def _of_all_classes(self) -> None:
        """Put together what the ranks of the classes have scanned; of equal logits the first class is the top."""
        self.top += self._first
        if self.whole:
            return
        largest = self._ranks.class_largest(self._largest.clone())
        last = torch.iinfo(torch.int64).max
        top = -self._ranks.class_largest(-torch.where(self._largest == largest, self.top, last))
        own = (self._others + (self.top != top)) * (self._largest - largest).double().exp()
        self._largest, self.top, self._others = largest, top, self._ranks.class_sum(own)

    def _derive(self) -> None:
        self.p = 1 / (1 + self._others)  # of the top class
        self.rest = self._others * self.p  # 1 - p
        self.power = self._power = power_of_two(self.rest[:, None], 1)[:, 0]
        if self._unit != 1:
            self.power = torch.where(self.rest > 0, self._power / self._unit, 1.0)
            self.rest = self.rest / self._unit

    def state(self) -> tuple[Tensor, ...]:
        """What another rank, which has the weights, needs to form the same."""
        return self._features, self._largest, self.top, self._others

    def visiting(self, state: Sequence[Tensor]) -> OtherClasses:
        """Those of another rank's samples, of which none are kept."""
        result = copy(self)
        result._features, result._largest, result.top, result._others = state
        result._kept = None
        result._derive()
        return result

    @property
    def example(self) -> Tensor:
        """A tensor of the probabilities' dtype and device."""
        return self._largest

    def _room(self, start: int, stop: int) -> Tensor:
        """Memory for a tile of classes of some samples."""
        return self._largest.new_empty(self._tile, stop - start)

    def _logits(self, c: int, start: int, out: Tensor) -> Tensor:
        """Fill out (classes, samples) with those of a tile, of samples from `start` on, a multiple of _SAMPLES."""
        weight, bias = (None if t is None else t[c : c + self._tile] for t in (self._weight, self._bias))
        features, out = self._features[start : start + out.shape[1]], out[: len(weight)]
        whole = weight.dtype == out.dtype
        for rows, lifted in [(slice(None), weight)] if whole else Layer.lifted(weight, out.dtype):
            own = None if bias is None else bias[rows]
            for some, of_some in zip(features.split(_SAMPLES), out[rows].split(_SAMPLES, 1), strict=True):
                _ops.logits_(of_some, lifted, own, some)
        return out

    def tiles(self, samples: slice) -> Iterator[tuple[int, Tensor]]:
        """The first class and the probabilities (classes, samples) of a tile, of some samples, until the next one."""
        first, last, _ = samples.indices(len(self._features))
        start, stop = first // _SAMPLES * _SAMPLES, min(-(-last // _SAMPLES) * _SAMPLES, len(self._features))
        room = self._room(start, stop) if self._kept is None else None
        state = [t[start:stop] for t in (self._largest, self.top, self._others, self._power)]
        for c in range(0, len(self._weight), self._tile):
            if room is None:
                yield self._first + c, self._kept[c : c + self._tile, samples]
                continue
            tile = self._logits(c, start, room)
            _ops.softmax_others_(tile, self._first + c, *state)
            yield self._first + c, tile[:, first - start : last - start]

    @property
    def whole(self) -> bool:
        """Whether all classes are here."""
        return self._ranks.classes.size == 1

    def here(self, classes: Tensor) -> Tensor:
        """Those of some classes that this rank has."""
        return classes[(classes >= self._first) & (classes < self._first + len(self._weight))]

    def over_classes(self, *tensors: Tensor) -> None:
        """Add up what is a sum over classes."""
        self._ranks.class_sum(*tensors)

    def enlarge(self) -> float:
        """Divide `rest` and `power` of all samples, if tiny, by a power of two, which is returned.

        Where 1 - p_top < 2^-120 everywhere, curvature is proportional to it in float64. The largest becomes 2^-100.
        """
        largest = self._ranks.largest(self.rest.max()).item()
        if 0 < largest < 2.0**-120:
            self._unit = 2.0 ** (math.ceil(math.log2(largest)) + 100)
            self._derive()
        return self._unit

    def probabilities(self, classes: Tensor) -> Tensor:
        """Those of some classes that are here (classes, N), top classes too, in float64."""
        classes = classes - self._first
        bias = None if self._bias is None else self._bias[classes]
        logits = F.linear(self._features, self._weight[classes].to(self._features.dtype), bias).T.double()
        return (logits - self._largest).exp_().mul_(self.p)

    def samples_by_tile(self, samples: slice) -> tuple[Tensor, ...]:
        """Which of some samples have their top class in each of the `tiles`; a GPU is waited for once, if at all."""
        top, C = self.top[samples], len(self._weight)
        if self._tile == C and self.whole:
            return (torch.arange(len(top), device=top.device),)
        top, order = top.sort()
        ends = [*range(self._first, self._first + C, self._tile), self._first + C]
        ends = torch.searchsorted(top, torch.tensor(ends, device=top.device)).tolist()
        return order.tensor_split(ends)[1:-1]  # without those of other ranks' classes


def softmax_sums(part: Part) -> tuple[float, float, float]:
    """Sums of ||H_jj||_F^2 and of ||H_jk||_F^2, j != k, over a softmax layer, and the unit that norms are in.

    With r_j = p_nj p_n'j, sum_{j != k} Q_n[j, k] Q_n'[j, k] = c_n c_n' ((sum_j r_j)^2 - sum_j r_j^2); the top classes
    of both samples are split off, only what is left of r goes through the difference. Tensor cores round what small
    probabilities add beside (sum_j r_j)^2; where that could be seen in the sums, all is done again without.
    """
    samples = part.samples
    samples.check_unchanged()
    phi = FeatureProducts(part.features(part.row), part.row.bias, part.dtype, part.ranks)
    scale_power = part.ranks.largest(power_of_two(part.scale))
    scale = part.scale / scale_power
    pairs = SamplePairs(len(scale), 8 + 3 * scale.element_size(), part.device, shares=part.ranks.classes.size)
    require(pairs.bytes + memory_of_classes(part), "the ratio in the Gram form", part.device)
    logits, products = part.row.size, 1.5 * part.largest
    with shares(2 * logits + products) as begin:  # they are formed again beside their products
        begin(logits)
        P = OtherClasses(part)
        unit = (phi.power**2 * scale_power).item() * P.enlarge()

        def sums(rounding: bool) -> list[float]:
            """The two sums, and how much of them has been rounded."""
            total = torch.zeros(4, dtype=torch.float64, device=part.device)
            for visit in part.ranks.ring(part.counts, scale, *P.state()):
                other_scale, *state = visit.tensors
                other = P.visiting(state) if visit.other else P
                features = state[0][:, : phi.features.shape[1]] if visit.other else None
                for a, b, same, times in pairs.of(visit):
                    W = phi(a, b, features).square_().mul_(scale[a, None]).mul_(other_scale[b])
                    total += times * sums_of_classes(P, other, a, b, same, W, rounding=rounding)[0]
                    del W  # before the next one is made
            return part.ranks.sum(total).tolist()

        begin(logits + products)
        diagonal, off_diagonal, *rounded = sums(True)
        beside = zip(rounded, (diagonal, off_diagonal), strict=True)
        excess = max(_ROUNDED * abs(r) - _ALLOWED * abs(t) for r, t in beside)
        # ranks of other classes may have added up in another order: one answer for all
        if part.ranks.class_largest(torch.tensor(excess, dtype=torch.float64, device=part.device)).item() > 0:
            diagonal, off_diagonal, *_ = sums(False)
    return diagonal, off_diagonal, unit


def memory_of_classes(part: Part) -> int:
    """Bytes of the probabilities that are worked on; more are kept only where memory is free."""
    return 2 * _tile_bytes(part)


def _tile_bytes(part: Part) -> int:
    return (_TILE_ON_GPU if part.device.type == "cuda" else _TILE) // part.ranks.classes.size


def sums_of_classes(
    left: OtherClasses,
    right: OtherClasses,
    a: slice,
    b: slice,
    same: bool,
    W: Tensor | None,
    *matrices: Tensor,
    rounding: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sums over pairs of samples (a, b) of W[n, n'] times sum_j Q_n[j, j] Q_n'[j, j], and of the same over j != k.

    Without the scales c_n. How much of each is rounded, with `rounding`, follows in the same tensor. What W weighs is
    added to `matrices`, one for each of the two, float64 [a, b]; their upper triangle where the samples are the `same`.
    Last, sum_j p_nj p_n'j [a, b] over what are no top classes, float64. Where classes are split over ranks, what is a
    sum over classes is added up before it is squared.
    """
    shape = len(left.top[a]), len(right.top[b])
    products = torch.zeros(shape, dtype=torch.float64, device=left.top.device)
    sums, tops, rounded = torch.zeros(3, 2, dtype=torch.float64, device=products.device)
    like = right.example
    empty = like.new_empty if left.whole else like.new_zeros
    at_b = empty(shape)  # [n, n'] = p_n'[top_n] over power[n']
    at_a = at_b if same else empty(shape[::-1])
    powers = [left.power[a], right.power[b]]
    of_a = left.samples_by_tile(a)
    of_b = of_a if same else right.samples_by_tile(b)
    rights = repeat((0, None)) if same else right.tiles(b)
    tiles = zip(left.tiles(a), rights, of_a, of_b, strict=False)
    for (first, tile), (_, other), in_a, in_b in steps(tiles, total=len(of_a)):
        other = tile if same else other
        _ops.gram_sums_(tile, other, W, same, products, list(matrices), powers, sums, rounded if rounding else None)
        _gather(in_a, left.top[a] - first, other, at_b)
        if not same:
            _gather(in_b, right.top[b] - first, tile, at_a)
    left.over_classes(sums, rounded, products, at_b, *(() if same else (at_a,)), *matrices)
    sides = [[P.top[s], P.p[s], P.rest[s], at] for P, s, at in ((left, a, at_b), (right, b, at_a))]
    _ops.gram_tops_(products, W, same, list(matrices), powers, *sides, tops)
    return torch.cat([tops + torch.stack([sums[0], -sums[1]]), rounded]), products


def _gather(rows: Tensor, top: Tensor, tile: Tensor, out: Tensor) -> None:
    """Rows out[n] = tile[top_n], some at a time: no second N x N tensor."""
    for some in rows.split(max(1, _TILE // (out.shape[1] * out.element_size()))):
        out[some] = tile[top[some]]


def class_pair_norms(part: Part) -> Iterator[tuple[int, int, Tensor]]:
    """||H_jk||_F, j != k, of a softmax layer with c_n of one sign: first j and k of a tile, and the tile, float64.

    Its square is sum_nn' w r_j r_k with r_j = p_nj p_n'j and w = c_n c_n' (phi_n . phi_n')^2: an outer-product
    assembly like that of a block, whose samples are the pairs n <= n' and whose features are the classes of a tile.
    Tiles are those of j <= k, square ones on the diagonal, where j = k means nothing.
    """
    samples = part.samples
    samples.check_unchanged()
    phi = FeatureProducts(part.features(part.row), part.row.bias, torch.float64, part.ranks)
    P = samples.output.probs
    C = P.shape[1]
    step = -(-C // -(-C // _CLASSES))
    work = _WORK_ON_GPU if part.device.type == "cuda" else _WORK
    require(16 * step * step + 3 * work, f"norms of {step} x {step} blocks", part.device)
    power = power_of_two(P, 0)[0]
    # squares of the smallest probabilities underflow in float32
    wide = part.dtype == torch.float64 or bool((P / power).min() < 1e-8)
    P = (P / power).to(torch.float64 if wide else part.dtype)
    scale_power = power_of_two(part.scale)
    scale = part.scale.double() / scale_power
    power, power_of_all = power.double(), phi.power**2 * scale_power
    classes = [slice(c, min(C, c + step)) for c in range(0, C, step)]
    tiles = list(combinations_with_replacement(classes, 2))
    for one, other in steps(tiles, lambda tile: 1 + (tile[0] != tile[1])):
        tile = _class_pair_tile(phi, scale, P[:, one], P[:, other], one == other, work)
        yield one.start, other.start, tile.sqrt_().mul_(power[one, None]).mul_(power[other]).mul_(power_of_all)


def _class_pair_tile(phi: FeatureProducts, scale: Tensor, left: Tensor, right: Tensor, same: bool, work: int) -> Tensor:
    """The sums of `class_pair_norms` over classes of left and of right (N, .), products in hand in `work` bytes."""
    most = max(left.shape[1], right.shape[1])
    total = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64, device=left.device)
    pair = torch.zeros(1, 2, dtype=torch.int64, device=left.device)
    for a, b, own, times in SamplePairs(len(left), most * left.element_size(), left.device, work):
        w = phi(a, b).square_().mul_(scale[a, None]).mul_(scale[b]).mul_(times)
        if own:  # n < n' stands for both
            n, k = torch.triu_indices(*w.shape, device=w.device)
            w = w[n, k] * torch.where(n < k, 2, 1)
            r = [p[a][n].mul_(p[a][k]) for p in ((left,) if same else (left, right))]
        else:
            r = [(p[a, None] * p[None, b]).flatten(0, 1) for p in ((left,) if same else (left, right))]
        weights = Curvature(Kind.GIVEN, 1, 1, True, entries=w.view(1, -1).to(left.dtype))
        total += _ops.blocks(pair, False, r[0], False, r[-1], False, same, *weights)[0]
        del w, r, weights  # before the next ones are made
    return total
