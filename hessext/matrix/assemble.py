"""Blocks, dense matrices and diagonals: the entries of a part, written where they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from hessext import _checks, _ops
from hessext._memory import in_huge_pages, require
from hessext._progress import shares, steps
from hessext.data.data import Data
from hessext.data.samples import Samples
from hessext.model.network import ParameterGroup

from .curvature import Assemblies, diagonal_pairs, grid_pairs
from .far_residual import add_far_residual
from .feature_products import squared_lengths
from .part import Part, Term

_ENTRIES = 1 << 22  # entries of Q_n in hand
_PIECE = 64 << 20  # bytes of blocks formed, or of features squared, at once
_COPIED = 16 << 20  # bytes of blocks formed at once that are then put in order
_SAMPLES = 8192  # most samples summed in the tensors' own dtype; chunks are added in float64


def blocks(part: Part, pairs: Tensor) -> Tensor:
    """Blocks (P, *block_shape) of pairs (P, 2) in the grid."""
    size = len(pairs) * part.row.size * part.col.size * part.dtype.itemsize
    require(part.data.results * size, f"{len(pairs)} blocks", part.device)
    if part.replicated:
        first = part.data.sum(lambda samples, _: _blocks(part.of(samples), pairs.new_zeros(1, 2)))
        return first * (pairs[:, 0] == pairs[:, 1])[:, None, None]
    return part.data.sum(lambda samples, _: _blocks(part.of(samples), pairs))


def _blocks(part: Part, pairs: Tensor) -> Tensor:
    assemblies = Assemblies(part)
    if part.in_closed_form:
        (call,) = assemblies(pairs)
        return _ops.blocks(call.pairs, part.transposed, *call.arguments)
    result = in_huge_pages(part.like.new_empty(len(pairs), *part.block_shape))
    most = max(1, _COPIED // (part.row.size * part.col.size * part.dtype.itemsize))
    for call in assemblies(pairs):
        if isinstance(call.where, slice):
            _ops.blocks_(result[call.where], call.pairs, part.transposed, *call.arguments)
            continue
        for some in call.split(most):
            result[some.where] = _ops.blocks(some.pairs, part.transposed, *some.arguments)
    return result


def pieces_of_grid(part: Part, upper: bool) -> Iterator[Tensor]:
    """Pairs (P, 2) of all blocks, or those with i <= j, as many at a time as have blocks of little memory."""
    most = max(1, _PIECE // (8 * part.block_shape[0] * part.block_shape[1]))
    for _, pairs in grid_pairs(*part.grid, upper, most, part.device):
        yield from pairs.split(most)


def dense(part: Part, out: Tensor | None) -> Tensor:
    """The whole matrix, into `out` if given."""
    upright = part.upright
    axes = [n for group in (upright.row, upright.col) for n in (0, group.size, group.cols, group.size, group.cols)]
    direct, mirror = not part.transposed, part.transposed or part.same

    def write(samples: Samples, out: Tensor | None) -> Tensor:
        of_samples = part.of(samples)
        out = _checks.out(None, part.shape, of_samples.like) if out is None else out
        if part.block_diagonal:
            out.zero_()
        _write(of_samples, out, part.shape[1], axes, direct, mirror)
        return out

    return part.data.sum(write, _checks.out(out, part.shape, part.like, part.data.results))


def dense_hessian(data: Data, term: Term, out: Tensor | None) -> Tensor:
    """All parts in one matrix, in torch's parameter order, into `out` if given."""
    network = data.network
    shape = (network.numel,) * 2
    groups = sorted(network.whole, key=lambda group: group.layer)  # the core takes the earlier layer first

    def write(samples: Samples, out: Tensor | None) -> Tensor:
        out = _checks.out(None, shape, samples.network.like) if out is None else out
        for row, col in pairs_of_groups(groups):
            part = Part(samples, term, row, col)
            if part.block_diagonal:
                first = min(row.start, row.start_bias)
                own = slice(first, first + row.blocks * row.size)
                out[own, own].zero_()
            axes = [n for group in (row, col) for n in (group.start, group.cols, group.start_bias, 1, group.cols)]
            _write(part, out, network.numel, axes, True, True)
        return out

    return data.sum(write, _checks.out(out, shape, network.like, data.results))


def _write(part: Part, out: Tensor, ld: int, axes: list[int], direct: bool, mirror: bool) -> None:
    """Write the entries of a part, and their mirror images, to the places that `axes` of `_ops.dense_` says."""
    with shares(1 + part.residual_far) as begin:
        begin(1)
        for call in Assemblies(part, far=False)(None):
            _ops.dense_(out, ld, axes, direct, mirror, call.pairs, *call.arguments)
        if part.residual_far:
            begin(1)
            add_far_residual(part, out, ld, axes, direct, mirror)


def pairs_of_groups(groups: Iterable[ParameterGroup]) -> Iterable[tuple[ParameterGroup, ParameterGroup]]:
    """All pairs, the earlier group first: steps of what is done part by part."""
    return steps(list(combinations_with_replacement(groups, 2)), lambda pair: pair[0].numel * pair[1].numel)


def trace(part: Part) -> Tensor:
    """Trace of one layer's matrix: sum_n (sum_i Q_n[i, i]) ||phi_n||^2, float64; of data in memory."""
    group, features = part.row, part.features(part.row)
    part.samples.check_unchanged()
    total = torch.zeros(len(features), dtype=torch.float64, device=part.device)
    if not (part.of_output and part.term == "residual"):
        for _, Q in _diagonal_entries(part, max(1, _ENTRIES // len(features))):
            total += Q.sum(0, dtype=torch.float64)
    found = total @ squared_lengths(features, group.bias)
    return part.ranks.class_sum(found) if part.samples.network.split else found


def diagonal(part: Part) -> Tensor:
    """Diagonal of one layer's matrix: sum_n Q_n[i, i] phi_n[a]^2, block by block; of data in memory."""
    found = _diagonal(part)
    return (part.samples.all_classes(found, 0) if part.samples.network.split else found).view(-1)


def _diagonal_entries(part: Part, step: int) -> Iterator[tuple[Tensor | slice, Tensor]]:
    """Rows that are here, some at a time, and Q_n[i, i] of them (rows, N)."""
    if part.samples.network.split:
        for first in steps(range(0, len(part.like), step)):
            some = slice(first, min(len(part.like), first + step))
            yield some, part.samples.own_diagonal(some)
        return
    assemblies = Assemblies(part)
    for first in steps(range(0, part.row.blocks, step)):
        for call in assemblies(diagonal_pairs(first, min(part.row.blocks, first + step), part.device)):
            yield call.pairs[:, 0], call.entries()


def _diagonal(part: Part) -> Tensor:
    """The same (rows that are here, s)."""
    group, features = part.row, part.features(part.row)
    part.samples.check_unchanged()
    rows = len(part.like) if part.samples.network.split else group.blocks
    if part.of_output and part.term == "residual":
        return features.new_zeros(rows, group.size)
    result = torch.empty(rows, group.size, dtype=part.dtype, device=part.device)
    step = max(1, _ENTRIES // len(features))
    few = min(_SAMPLES, max(1, _PIECE // (features.element_size() * max(1, group.cols))))  # samples squared at once
    for some, Q in _diagonal_entries(part, step):
        total = torch.zeros(len(Q), group.size, dtype=torch.float64, device=part.device)
        for n in range(0, len(features), few):
            samples = slice(n, n + few)
            if group.cols:
                total[:, : group.cols] += Q[:, samples] @ features[samples].square()
            if group.bias:
                total[:, -1] += Q[:, samples].sum(1, dtype=torch.float64)
        result[some] = total.to(part.dtype)
    return result
