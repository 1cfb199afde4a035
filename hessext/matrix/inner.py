"""Inner products of parts with matrices of some structure and with one another, in float64 and without cancellation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .assemble import blocks, diagonal, pieces_of_grid
from .block_diagonal import pieces
from .feature_gram import FeatureGram
from .part import Part
from .sample_curvature import ENTRIES, GivenCurvature, ScaledIdentity, SoftmaxCurvature, sample_curvature
from .softmax_gram import OtherClasses, sums_of_classes

_TOGETHER = 8192  # samples of a tile between two parts


def with_factors(part: Part, G: Tensor, A: Tensor) -> float:
    """<B, G (x) A> = sum_n <Q_n, G> phi_n^T A phi_n of a part within a layer."""
    g = sample_curvature(part).against(((G + G.T) / 2).double()[None])[0]
    features = FeatureGram(part.features(part.row), part.row.bias)
    return (g @ features.against(A.double())).item() * features.power**2


def with_diagonal(part: Part, v: Tensor) -> float:
    """<diag B, v> of a part within a layer, v (K s,)."""
    found = part.data.sum(lambda samples, _: diagonal(part.of(samples)))
    return (found.double() @ v.double()).item()


def with_blocks(part: Part, M: Tensor) -> float:
    """sum_i <B_ii, M_i> of a part within a layer, M (K, s, s)."""
    return sum(torch.sum(found.double() * M[rows].double()).item() for rows, found in pieces(part))


def with_part(part: Part, other: Part) -> float:
    """<B, B'> of two parts of one shape."""
    if part.same and other.same:
        return _by_samples(part, other)
    pairs = pieces_of_grid(part, False)
    return sum(torch.sum(blocks(part, some).double() * blocks(other, some).double()).item() for some in pairs)


def _by_samples(part: Part, other: Part) -> float:
    """sum <Q_n, Q'_n'> (phi_n . phi'_n')^2 over samples n of one and n' of the other."""
    left, right = (FeatureGram(p.features(p.row), p.row.bias) for p in (part, other))
    phi, psi = left.dense(), right.dense()
    total = sum(torch.sum(U.mul_((phi[a] @ psi[b].T).square_())).item() for a, b, U in _curvature_products(part, other))
    return total * (left.power * right.power) ** 2


def _curvature_products(part: Part, other: Part) -> Iterator[tuple[slice, slice, Tensor]]:
    """<Q_n, Q'_n'> of samples a of one part and b of another, float64 [a, b]."""
    left, right = sample_curvature(part), sample_curvature(other)
    most = max(left.N, right.N)
    blocks = [[slice(n, min(n + _TOGETHER, side.N)) for n in range(0, side.N, _TOGETHER)] for side in (left, right)]
    softmax = isinstance(left, SoftmaxCurvature) and isinstance(right, SoftmaxCurvature)
    if softmax:
        P, R = (OtherClasses(side.part.samples, most) for side in (left, right))
    for a in blocks[0]:
        for b in blocks[1]:
            if softmax:
                on, off = left.zeros(2, a.stop - a.start, b.stop - b.start).unbind()
                sums_of_classes(P, R, a, b, False, None, on, off)
                yield a, b, on.add_(off).mul_(left.scale[a, None]).mul_(right.scale[b])
            elif isinstance(left, ScaledIdentity):
                yield a, b, torch.outer(left.scale[a], right.traces[b])
            elif isinstance(right, ScaledIdentity):
                yield a, b, torch.outer(left.traces[a], right.scale[b])
            else:
                yield a, b, _of_entries(part, other, a, b, max(1, ENTRIES // (8 * most)))


def _of_entries(part: Part, other: Part, a: slice, b: slice, most: int) -> Tensor:
    left, right = GivenCurvature(part, most), GivenCurvature(other, most)
    result = left.zeros(a.stop - a.start, b.stop - b.start)
    for (i, j, p), (_, _, q) in zip(left.pieces(), right.pieces(), strict=True):
        result.addmm_((p[:, a] * (1.0 + (i != j))[:, None]).T, q[:, b])
    return result
