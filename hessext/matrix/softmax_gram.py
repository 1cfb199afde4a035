"""Norms of a softmax layer in the Gram form, where sums over all classes are products of probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement, repeat

import torch
from torch import Tensor

from hessext import _ops
from hessext._memory import require
from hessext._ops import Curvature, Kind
from hessext._progress import shares, steps

from .feature_products import FeatureProducts, power_of_two
from .gram import SamplePairs
from .other_classes import OtherClasses, memory_of_classes
from .part import Part

_CLASSES = 2048  # classes of a tile of `class_pair_norms`
# Largest relative errors: of what tensor cores round, and of a sum for what is rounded in it.
_ROUNDED, _ALLOWED = 1.2e-3, 4 * torch.finfo(torch.float32).eps
_WORK, _WORK_ON_GPU = 32 << 20, 256 << 20  # bytes of products of probabilities; a GPU takes few large assemblies


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
        left.take_tops(a, in_a, first, other, at_b)
        if not same:
            right.take_tops(b, in_b, first, tile, at_a)
    left.over_classes(sums, rounded, products, at_b, *(() if same else (at_a,)), *matrices)
    sides = [[P.top[s], P.p[s], P.rest[s], at] for P, s, at in ((left, a, at_b), (right, b, at_a))]
    _ops.gram_tops_(products, W, same, list(matrices), powers, *sides, tops)
    return torch.cat([tops + torch.stack([sums[0], -sums[1]]), rounded]), products


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
