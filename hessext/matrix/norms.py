"""Frobenius norms of blocks: all, row by row, or as the ratio of their means, in the form that `cost` chooses.

What is squared is brought into float64's range first, `in_range`: norms are then in a unit, a power of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from hessext import _ops
from hessext._memory import require
from hessext._ops import Kind
from hessext._progress import shares, steps
from hessext.data.samples import LEAST, MOST
from hessext.model.network import ParameterGroup

from . import cost, dense_norms, gram, softmax_gram
from .assemble import blocks
from .cost import Form
from .curvature import Assemblies, diagonal_pairs, grid_pairs
from .part import Divisors, Part
from .results import BlockRatio, RowNorms

_PAIRS = 1 << 17  # blocks whose norms are taken at once
_LEAST, _MOST = 2.0**-200, 2.0**200  # features and curvature whose fourth powers are far inside float64's range
_PIECE = 64 << 20  # bytes of blocks in float64 of all ranks together
_WORK = 1 << 36  # multiply-adds of one call of the core: a second or two, which cannot tell how far it is


def block_norms(part: Part, pairs: Tensor | None) -> Tensor:
    """||H_ij||_F for the listed pairs (P,), or for all of the grid."""
    dtype, (part, unit) = part.dtype, in_range(part)
    if pairs is not None:
        return _squares(part, cost.form_of_squares(part, len(pairs)))(pairs).sqrt_().mul_(unit).to(dtype)
    rows, cols = part.grid
    require(rows * cols * (dtype.itemsize + 8), f"norms of {rows} x {cols} blocks", part.device)
    result = torch.zeros(rows, cols, dtype=dtype, device=part.device)
    if part.block_diagonal:
        result.diagonal().copy_(_diagonal_squares(part).sqrt_().mul_(unit))  # inf, if that overflows
        return result
    if part.within:
        for i, j, norms in _norm_tiles(part):
            some, others = (slice(first, first + size) for first, size in zip((i, j), norms.shape, strict=True))
            result[some, others] = norms.mul_(unit)
            result[others, some] = norms.T
        return result
    form = cost.form_of_all(part)
    if form is Form.DENSE:
        norms = dense_norms.dense_squares(part.upright).sqrt_().mul_(unit)
        return result.copy_(norms.T if part.transposed else norms)
    squares = _squares(part, form)
    for _, pairs in grid_pairs(rows, cols, False, _PAIRS, part.device):
        i, j = pairs.unbind(1)
        result[i, j] = squares(pairs).sqrt_().mul_(unit).to(dtype)
    return result


def row_norms(part: Part) -> RowNorms:
    """RowNorms of one layer, a few rows of norms at a time."""
    dtype, (part, unit) = part.dtype, in_range(part)
    count = part.grid[0]
    diagonal, total = (torch.zeros(count, dtype=torch.float64, device=part.device) for _ in range(2))
    largest, at = torch.full_like(total, -1), torch.full((count,), -1, device=part.device)

    def merge(rows: slice, norms: Tensor, first: int) -> None:  # norms (rows, columns from `first` on)
        most, place = norms.max(1)
        at[rows] = torch.where(most > largest[rows], place + first, at[rows])
        largest[rows] = torch.maximum(largest[rows], most)
        total[rows] += norms.clamp(min=0).sum(1)

    for i, j, norms in () if part.block_diagonal else _norm_tiles(part):
        last = i + len(norms)
        if i == j:
            own = norms[:, : len(norms)].diagonal()
            diagonal[i:last] = own
            own.fill_(-1)  # less than any norm
        merge(slice(i, last), norms, j)
        beyond = norms[:, max(0, last - j) :]
        if beyond.shape[1]:
            merge(slice(max(j, last), j + norms.shape[1]), beyond.T, i)
    if part.block_diagonal:
        diagonal += _diagonal_squares(part).sqrt_()
        at.copy_(torch.arange(count, device=part.device) == 0)
    if count == 1:
        at.fill_(-1)
    mean = total / max(1, count - 1)
    return RowNorms(*(t.mul_(unit).to(dtype) for t in (diagonal, mean, largest.clamp_(min=0))), at)


def _norm_tiles(part: Part) -> Iterator[tuple[int, int, Tensor]]:
    """Norms within a layer, float64: first row i, first column j >= i, and what is there, all blocks i <= j in turn.

    What begins on the diagonal begins with a whole square; what does not has no block below the diagonal.
    """
    count, form = part.grid[0], cost.form_of_all(part)
    if form is Form.CLASS_PAIRS:
        with shares(count + 1) as begin:
            begin(1)
            own = _squares(part, cost.form_of_squares(part, count))(diagonal_pairs(0, count, part.device))
            begin(count)
            for i, j, norms in softmax_gram.class_pair_norms(part):
                if i == j:
                    norms.diagonal().copy_(own[i : i + len(norms)].sqrt())
                yield i, j, norms
        return
    if form is Form.DENSE:
        yield 0, 0, dense_norms.dense_squares(part).sqrt_()
        return
    squares = _squares(part, form)
    for rows, pairs in grid_pairs(count, count, True, _PAIRS, part.device):
        i, j = pairs.unbind(1)
        first, last = rows.start, rows.stop
        norms = torch.zeros(last - first, count - first, dtype=torch.float64, device=part.device)
        norms[i - first, j - first] = squares(pairs).sqrt_()
        square = norms[:, : last - first]
        square += square.triu(1).T
        yield first, first, norms


def block_ratio(part: Part) -> BlockRatio:
    """BlockRatio of one layer."""
    diagonal, off_diagonal, unit = _means(part)
    ratio = BlockRatio.of(diagonal, off_diagonal).ratio  # in which the unit, whose square may be no float, cancels
    return BlockRatio(*(mean and mean * unit * unit for mean in (diagonal, off_diagonal)), ratio)  # 0 where it is 0


def norm(part: Part) -> float:
    """||B||_F, no block being kept."""
    rows, cols = part.grid
    if part.same:
        diagonal, off_diagonal, unit = _means(part)
        return (rows * diagonal + rows * (rows - 1) * off_diagonal) ** 0.5 * unit
    part, unit = in_range(part)
    form = cost.form_of_all(part)
    if form is Form.DENSE:
        return dense_norms.dense_squares(part.upright).sum().item() ** 0.5 * unit
    squares = _squares(part, form)
    pieces = grid_pairs(rows, cols, False, _PAIRS, part.device)
    return sum(squares(pairs).sum().item() for _, pairs in pieces) ** 0.5 * unit


def _means(part: Part) -> tuple[float, float, float]:
    """Means of ||H_ii||_F^2 and of ||H_ij||_F^2, i != j, of one layer, and the unit that norms are in."""
    diagonal, off_diagonal, unit = _sums(part)
    count = part.grid[0]
    return diagonal / count, off_diagonal / max(1, count * (count - 1)), unit


def _sums(part: Part) -> tuple[float, float, float]:
    """Sums of ||H_ii||_F^2 and of ||H_ij||_F^2, i != j, of one layer, and the unit that norms are in."""
    part, unit = in_range(part)
    if part.block_diagonal or (part.of_output and part.term == "residual"):
        return _diagonal_squares(part).sum().item(), 0.0, unit
    form = cost.form_of_ratio(part)
    if form is Form.SUMS:
        diagonal, off_diagonal, own_unit = softmax_gram.softmax_sums(part)
        return diagonal, off_diagonal, unit * own_unit
    squares = block_squares(part)

    def sums(pairs: Tensor) -> tuple[float, float]:
        found = squares(pairs)
        on = pairs[:, 0] == pairs[:, 1]
        return found[on].sum().item(), found[~on].sum().item()

    return *pair_sums(part, gram.PairSquares(part, squares).sums if form is Form.PAIRS else sums), unit


def pair_sums(part: Part, sums: Callable[[Tensor], tuple[float, float]]) -> tuple[float, float]:
    """Sums over the diagonal and over all other blocks, of what gives them for some pairs i <= j."""
    count = part.grid[0]
    diagonal = off_diagonal = 0.0
    for _, pairs in grid_pairs(count, count, True, _PAIRS, part.device):
        on, off = sums(pairs)
        diagonal, off_diagonal = diagonal + on, off_diagonal + 2 * off
    return diagonal, off_diagonal


# ------------------------------------------------------------------------------------------------ squared norms


def _squares(part: Part, form: Form) -> Callable[[Tensor], Tensor]:
    """What gives squared norms (P,) float64 of pairs (P, 2) in one of the two forms that take them one by one."""
    if form is Form.BLOCKS:
        return block_squares(part)
    return gram.PairSquares(part, block_squares(part)).each


def block_squares(part: Part) -> Callable[[Tensor], Tensor]:
    """What gives squared norms (P,) float64 of pairs (P, 2) by forming their blocks."""
    assemblies = Assemblies(part)
    together = max(16 * torch.get_num_threads(), _WORK // (part.largest * math.prod(part.block_shape)))

    def squares(pairs: Tensor) -> Tensor:
        if part.replicated:
            return squares_of_all(pairs.new_zeros(1, 2)) * (pairs[:, 0] == pairs[:, 1])
        return squares_of_all(pairs)

    def squares_of_all(pairs: Tensor) -> Tensor:
        if not part.ranks.alone:  # a block is a sum over all samples before it is squared
            some = pairs.split(max(1, _PIECE // (8 * part.block_shape[0] * part.block_shape[1])))
            return torch.cat([blocks(part, piece).double().square_().sum((1, 2)) for piece in steps(some, len)])
        result = torch.empty(len(pairs), dtype=torch.float64, device=part.device)
        for call in assemblies.some(pairs, together):
            result[call.where] = _ops.block_squares(call.pairs, *call.arguments)
        return result

    return squares


def _diagonal_squares(part: Part) -> Tensor:
    """||H_ii||_F^2 (K,) float64 of the output layer, where they are equal, from the first."""
    count = part.grid[0]
    if part.replicated or part.term == "residual":
        return block_squares(part)(diagonal_pairs(0, 1, part.device)).expand(count).clone()
    return _squares(part, cost.form_of_squares(part, count))(diagonal_pairs(0, count, part.device))


# -------------------------------------------------------------------------------------------------------- range


def in_range(part: Part) -> tuple[Part, float]:
    """The part over powers of two, so that squares of its blocks are floats; and the unit that its norms are in.

    It is float64 where float32 does not hold its blocks. In the ordinary range nothing is divided. Where samples or
    classes are split over ranks, features beyond that range raise ValueError.
    """
    if not part.ranks.alone:
        _check_range(part)
        return part, 1.0
    samples = part.samples.in_range
    if samples is not part.samples:
        part = part.of(samples)
    if part.dtype != torch.float64 or not part.like.is_cpu or part.residual_far:
        return part, 1.0
    powers = [_power(samples.largest(g.layer), lambda g=g: part.features(g)) if g.cols else 1.0 for g in _sides(part)]
    powers = [1.0 if g.bias and power < 1 else power for g, power in zip(_sides(part), powers, strict=True)]
    # beside features that are divided by so much, the bias's 1 is nothing
    row, col = (g._replace(bias=g.bias and power == 1) for g, power in zip(_sides(part), powers, strict=True))
    curvature = _curvature_power(part)
    if (*powers, curvature) == (1, 1, 1):
        return part, 1.0
    return replace(part, row=row, col=col, divided=Divisors(*powers, curvature)), math.prod((*powers, curvature))


def _check_range(part: Part) -> None:
    """Raise ValueError where blocks of ranks may have no norms, which one process would take in another unit."""
    if not part.like.is_cpu:
        return
    least, most = (LEAST, MOST) if part.dtype == torch.float32 else (_LEAST, _MOST)
    sizes = [max(part.samples.largest(g.layer), float(g.bias)) if g.cols else 1.0 for g in _sides(part)]
    for size in part.ranks.largest(torch.tensor(sizes, dtype=torch.float64)).tolist():
        if size and not least <= size <= most:
            raise ValueError(
                f"x: expected features whose largest is between 2^{math.log2(least):.0f} and 2^{math.log2(most):.0f} "
                f"for norms in {str(part.dtype).removeprefix('torch.')} over several ranks; got {size:.2g}; "
                f"scale them{' or give float64' if part.dtype == torch.float32 else ''}"
            )


def _sides(part: Part) -> tuple[ParameterGroup, ParameterGroup]:
    return part.row, part.col


def _power(size: float, entries: Callable[[], Tensor]) -> float:
    """The power of two at the largest entry, if `size` is unusual, of which that is a bound; else 1."""
    if _LEAST <= size <= _MOST or not size:
        return 1.0
    return gram.power_of_two(entries()).item()


def _curvature_power(part: Part) -> float:
    """The same of Q_n with a softmax, c_n (1 - p_top), and of the residuals that stand beside it."""
    o = part.samples.output if part.in_closed_form and part.term != "residual" else None
    if o is None or o.rest is None or (part.kind is Kind.HIDDEN and part.samples.bends(part.row.layer)):
        return 1.0
    size = (o.scale * o.rest).abs().max().item()
    if size < _LEAST and part.kind is Kind.CROSS and part.term == "full":
        size = max(size, part.samples.residual.abs().max().item())
    return 2.0 ** math.ceil(math.log2(size)) if 0 < size < _LEAST else 1.0
