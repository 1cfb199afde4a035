"""Inner products of parts with matrices of some structure and with one another, in float64 and without cancellation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hessext._progress import steps

from .assemble import blocks, diagonal, pieces_of_grid
from .block_diagonal import pieces
from .closed_curvature import DiagonalCurvature, SoftmaxCurvature
from .curvature import Assemblies, diagonal_pairs
from .curvature_tiles import ENTRIES
from .feature_gram import FeatureGram
from .given_curvature import GivenCurvature
from .other_classes import OtherClasses
from .part import Part
from .sample_curvature import sample_curvature
from .softmax_gram import sums_of_classes

_TOGETHER = 8192  # samples of a tile between two parts


def with_factors(part: Part, G: Tensor, A: Tensor) -> float:
    """<B, G (x) A> = sum_n <Q_n, G> phi_n^T A phi_n of a part within a layer."""
    g = sample_curvature(part).against(((G + G.T) / 2).double()[None])[0]
    features = FeatureGram(part)
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
    """sum <Q_n, Q'_n'> (phi_n . phi'_n')^2 over samples n of one and n' of the other, in blocks of both."""
    ranks, most = part.ranks, max(*part.counts, *other.counts)
    left, right = FeatureGram(part), FeatureGram(other)
    phi, psi = left.dense(), right.dense()
    curvature = _products(part, other, most)
    total = torch.zeros(1, dtype=torch.float64, device=part.device)
    blocks = [slice(n, n + _TOGETHER) for n in range(0, most, _TOGETHER)]  # as many on all ranks
    for a in steps(blocks):
        for b in steps(blocks):
            U = curvature(a, b)
            for visit in ranks.ring(other.counts, psi[b], every=True):
                total += torch.sum(U.pop(visit.rank).mul_((phi[a] @ visit.tensors[0].T).square_()))
    return ranks.sum(total).item() * (left.power * right.power) ** 2


def _products(part: Part, other: Part, most: int) -> Callable[[slice, slice], dict[int, Tensor]]:
    """<Q_n, Q'_n'> of own samples a and samples b of each rank, float64 [a, b]."""
    left, right = sample_curvature(part), sample_curvature(other)
    ranks, counts = part.ranks, other.counts
    spans = [(sum(counts[:rank]), n) for rank, n in enumerate(counts)]

    def of_traces(a: slice, b: slice) -> dict[int, Tensor]:
        traces = left.traces[part.own][a] / left.K
        return {rank: torch.outer(traces, right.traces[start:][:n][b]) for rank, (start, n) in enumerate(spans)}

    def of_softmax(a: slice, b: slice) -> dict[int, Tensor]:
        found = {}
        for visit in ranks.ring(counts, right.scale, *R.state(), every=True):
            scale, *state = visit.tensors
            at = slice(*a.indices(len(left.scale))[:2]), slice(*b.indices(len(scale))[:2])
            on, off = left.zeros(2, *(s.stop - s.start for s in at)).unbind()
            if on.numel():
                sums_of_classes(P, R.visiting(state) if visit.other else R, *at, False, None, on, off)
            found[visit.rank] = on.add_(off).mul_(left.scale[at[0], None]).mul_(scale[at[1]])
        return found

    def of_entries(a: slice, b: slice) -> dict[int, Tensor]:
        sides = (GivenCurvature(p, max(1, ENTRIES // (8 * most))) for p in (part, other))
        found: dict[int, Tensor] = {}
        for (i, j, p), (_, _, q) in zip(*(side.pieces() for side in sides), strict=True):
            weighted = (p[:, a] * (1.0 + (i != j))[:, None]).T
            for visit in ranks.ring(counts, q[:, b], every=True):
                matrix = found.setdefault(visit.rank, left.zeros(len(weighted), visit.tensors[0].shape[1]))
                matrix.addmm_(weighted, visit.tensors[0])
        return found

    def of_diagonals(a: slice, b: slice) -> dict[int, Tensor]:
        p, q = _diagonals(part)[a], _diagonals(other)[b]
        return {visit.rank: p @ visit.tensors[0].T for visit in ranks.ring(counts, q, every=True)}

    if any(isinstance(side, DiagonalCurvature) and side.scalar for side in (left, right)):
        return of_traces
    if isinstance(left, DiagonalCurvature) or isinstance(right, DiagonalCurvature):
        return of_diagonals
    if isinstance(left, SoftmaxCurvature) and isinstance(right, SoftmaxCurvature):
        P, R = (OtherClasses(side, most) for side in (part, other))
        return of_softmax
    return of_entries


def _diagonals(part: Part) -> Tensor:
    """Q_n[i, i] (n, K) in float64, for this rank's samples."""
    result = torch.empty(len(part.samples), part.grid[0], dtype=torch.float64, device=part.device)
    for call in Assemblies(part)(diagonal_pairs(0, part.grid[0], part.device)):
        result[:, call.pairs[:, 0]] = call.entries().T.double()
    return result
