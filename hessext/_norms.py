"""Norms, ratios and diagonals of a block matrix, without its blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from . import _checks, _gram, _ops
from ._ops import Kind

if TYPE_CHECKING:
    from ._blocks import BlockMatrix

_SAMPLES = 8192  # summed in the tensors' own dtype; chunks are added in float64
_ENTRIES = 1 << 22  # of a work tensor
_PAIRS = 1 << 17  # of blocks whose norms are taken at once
_CLASSES = 4096  # whose norms are formed all at once
_DOUBLE = {torch.float32: 2, torch.float64: 1}  # what multiply-adds in float64 cost


class BlockRatio(NamedTuple):
    """Mean squared Frobenius norms of diagonal and off-diagonal blocks, and ratio = off_diagonal / diagonal."""

    diagonal: float
    off_diagonal: float
    ratio: float

    @classmethod
    def of(cls, diagonal: float, off_diagonal: float) -> BlockRatio:
        """Return the two and their ratio; 0 / 0 and inf / inf are nan, and x / 0 is inf."""
        diagonal, off_diagonal = float(diagonal), float(off_diagonal)
        empty = math.inf if off_diagonal else math.nan
        return cls(diagonal, off_diagonal, off_diagonal / diagonal if diagonal else empty)


class RowNorms(NamedTuple):
    """For each block row i: ||H_ii||_F, and the mean, largest and place of the largest ||H_ij||_F, j != i."""

    diagonal: Tensor
    mean: Tensor
    max: Tensor
    argmax: Tensor  # -1 where there is no other block

    @property
    def dominance(self) -> Tensor:
        """||H_ii||_F over the mean off-diagonal norm of row i, of norms and not of squares."""
        return self.diagonal / self.mean


def block_norms(B: BlockMatrix, pairs: Tensor | None) -> Tensor:
    """||H_ij||_F for the listed pairs (P,), or for all of the grid."""
    if pairs is not None:
        return _squares_of(B, len(pairs))(pairs).sqrt_().to(B.dtype)
    rows, cols = B.grid
    _checks.memory(rows * cols * (B.dtype.itemsize + 8), f"norms of {rows} x {cols} blocks", B.device)
    result = torch.zeros(rows, cols, dtype=B.dtype, device=B.device)
    if B._replicated:
        norm = torch.tensor(_first_square(B) ** 0.5, dtype=torch.float64, device="cpu")
        result.diagonal().copy_(norm)  # inf, if that overflows
        return result
    if B._row.kind == B._col.kind:
        for first, norms in _norm_rows(B):
            last = first + len(norms)
            result[first:last, first:] = norms
            result[first:, first:last] = norms.T
        return result
    squares = _squares_of(B, rows * cols)
    for _, pairs in _grid_pairs(rows, cols, False, B.device):
        i, j = pairs.unbind(1)
        result[i, j] = squares(pairs).sqrt_().to(B.dtype)
    return result


def row_norms(B: BlockMatrix) -> RowNorms:
    """RowNorms of one layer, a few rows of norms at a time."""
    count = B.grid[0]
    diagonal, total = (torch.zeros(count, dtype=torch.float64, device=B.device) for _ in range(2))
    largest, at = torch.full_like(total, -1), torch.full((count,), -1, device=B.device)

    def merge(rows: slice, norms: Tensor, first: int) -> None:  # norms (rows, columns from `first` on)
        most, place = norms.max(1)
        at[rows] = torch.where(most > largest[rows], place + first, at[rows])
        largest[rows] = torch.maximum(largest[rows], most)
        total[rows] += norms.clamp(min=0).sum(1)

    for first, norms in () if B._replicated else _norm_rows(B):
        last = first + len(norms)
        own = norms[:, : len(norms)].diagonal()
        diagonal[first:last] = own
        own.fill_(-1)  # less than any norm
        merge(slice(first, last), norms, first)
        if last < count:
            merge(slice(last, count), norms[:, len(norms) :].T, first)
    if B._replicated:
        diagonal += _first_square(B) ** 0.5
        at.copy_(torch.arange(count, device=B.device) == 0)
    if count == 1:
        at.fill_(-1)
    mean = total / max(1, count - 1)
    return RowNorms(*(t.to(B.dtype) for t in (diagonal, mean, largest.clamp(min=0))), at)


def _norm_rows(B: BlockMatrix) -> Iterator[tuple[int, Tensor]]:
    """Norms where Q_n is symmetric: first row of some, and they from that column on, (rows, K - first) float64."""
    count = B.grid[0]
    every = count * (count + 1) // 2
    cheapest = min(_block_cost(B, every), _DOUBLE[B.dtype] * _gram_cost(B, every))
    softmax = B.symmetric and B._row.kind == "output" and B._term != "residual" and _one_sign(B)
    if softmax and count <= _CLASSES and _gram.class_pair_cost(B) < cheapest:
        squares = _gram.class_pair_squares(B)
        own = torch.arange(count, device=B.device)[:, None].expand(-1, 2)
        squares.diagonal().copy_(_squares_of(B, count)(own))
        yield 0, squares.sqrt_()
        return
    squares = _squares_of(B, every)
    for rows, pairs in _grid_pairs(count, count, True, B.device):
        i, j = pairs.unbind(1)
        first, last = rows.start, rows.stop
        norms = torch.zeros(last - first, count - first, dtype=torch.float64, device=B.device)
        norms[i - first, j - first] = squares(pairs).sqrt_()
        square = norms[:, : last - first]
        square += square.triu(1).T
        yield first, norms


def _one_sign(B: BlockMatrix) -> bool:
    """Whether no two scales c_n have opposite signs, as class weights or targets below zero bring."""
    least, most = torch.aminmax(B._problem.scale)
    return bool(least >= 0) or bool(most <= 0)


def block_ratio(B: BlockMatrix) -> BlockRatio:
    """BlockRatio of one layer, by blocks or by the Gram form, whichever costs less."""
    count = B.grid[0]
    if B._replicated or (B._row.kind == "output" and B._term == "residual"):  # equal blocks, zero blocks
        return _ratio(count, count * _first_square(B), 0.0)
    softmax = B._row.kind == "output" and _one_sign(B)
    every = count * (count + 1) // 2
    gram = _gram_cost(B, 1.5 * count) if softmax else _DOUBLE[B.dtype] * _gram_cost(B, every / 2)
    if gram < _block_cost(B, every):
        return _ratio(
            count, *(_gram.softmax_sums(B) if softmax else _pair_sums(B, _gram.PairSquares(B, _block_squares(B)).sum))
        )
    squares = _block_squares(B)
    return _ratio(count, *_pair_sums(B, lambda pairs: squares(pairs).sum().item()))


def _pair_sums(B: BlockMatrix, squares: Callable[[Tensor], float]) -> tuple[float, float]:
    """Sums over the diagonal and over all other blocks."""
    count = B.grid[0]
    diagonal = off_diagonal = 0.0
    for _, some in _grid_pairs(count, count, True, B.device):
        for pairs in _gram.chunks(some, B._problem.x):
            on = pairs[:, 0] == pairs[:, 1]
            diagonal += squares(pairs[on]) if on.any() else 0.0
            off_diagonal += 2 * squares(pairs[~on]) if not on.all() else 0.0
    return diagonal, off_diagonal


def _ratio(count: int, diagonal: float, off_diagonal: float) -> BlockRatio:
    return BlockRatio.of(diagonal / count, off_diagonal / max(1, count * (count - 1)))


# ---------------------------------------------------------------------------------------------------- cost model


def _block_cost(B: BlockMatrix, pairs: int) -> float:
    """Multiply-adds to form blocks and square their entries: one outer product a sample, half where it is symmetric."""
    problem, row, col = B._problem, B._row, B._col
    entries = row.size * (row.size + 1) / 2 if B.symmetric else row.size * col.size
    hidden = (row.kind == "hidden") + (col.kind == "hidden")
    return pairs * entries * len(problem.x) * (problem.active**hidden if hidden else 1)


def _gram_cost(B: BlockMatrix, products: float) -> float:
    """Multiply-adds of the Gram form: N^2 for each product of samples, and those of the features."""
    sizes = B._row.size + (0 if B.symmetric else B._col.size)
    return len(B._problem.x) ** 2 * (products + sizes)


def _squares_of(B: BlockMatrix, pairs: int) -> Callable[[Tensor], Tensor]:
    """What gives squared norms (P,) float64 of pairs (P, 2): by blocks or by the Gram form, what is cheaper for all."""
    products = pairs if B._row.kind == B._col.kind else 3 * pairs  # cross-layer blocks have two terms
    if not B._replicated and _DOUBLE[B.dtype] * _gram_cost(B, products) < _block_cost(B, pairs):
        gram = _gram.PairSquares(B, _block_squares(B))
        return lambda some: torch.cat([gram.each(p) for p in _gram.chunks(some, B._problem.x)])
    return _block_squares(B)


def _block_squares(B: BlockMatrix) -> Callable[[Tensor], Tensor]:
    arguments = B._arguments()

    def squares(pairs: Tensor) -> Tensor:
        if B._replicated:
            return _ops.block_squares(pairs.new_zeros(1, 2), *arguments) * (pairs[:, 0] == pairs[:, 1])
        return _ops.block_squares((pairs.flip(1) if B._swapped else pairs).contiguous(), *arguments)

    return squares


def _first_square(B: BlockMatrix) -> float:
    """||H_00||_F^2, where it stands for all diagonal blocks."""
    return _block_squares(B)(torch.zeros(1, 2, dtype=torch.int64, device=B.device)).item()


def _grid_pairs(rows: int, cols: int, upper: bool, device: torch.device) -> Iterator[tuple[range, Tensor]]:
    """All pairs of the grid, or those with i <= j, in pieces of whole rows; the rows of each piece."""
    i, more = 0, max(1, _PAIRS // cols)
    while i < rows:
        some = range(i, min(rows, i + more))
        block = torch.arange(some.start, some.stop, device=device)
        pairs = torch.cartesian_prod(block, torch.arange(i if upper else 0, cols, device=device))
        yield some, pairs[pairs[:, 0] <= pairs[:, 1]] if upper else pairs
        i += more


def diagonal_entries(B: BlockMatrix) -> Tensor:
    """Diagonal of one layer's matrix: sum_n Q_n[i, i] phi_n[a]^2, block by block."""
    problem, count = B._problem, B.grid[0]
    part, features = problem.network.part(B._row, B._col), problem.features_of(B._row)
    curvature = problem.curvature_of(part, B._term)
    samples = len(features)
    if part == Kind.OUTPUT and not curvature.gauss_newton:
        return features.new_zeros(B.shape[0])
    result = torch.empty(count, B._row.size, dtype=B.dtype, device=B.device)
    step = max(1, _ENTRIES // samples)
    for i in range(0, count, step):
        pairs = torch.arange(i, min(count, i + step), device=B.device)[:, None].expand(-1, 2).contiguous()
        Q = _ops.curvature_entries(pairs, *curvature)
        total = torch.zeros(len(Q), B._row.size, dtype=torch.float64, device=B.device)
        for n in range(0, samples, _SAMPLES):
            rows = slice(n, n + _SAMPLES)
            if B._row.cols:
                total[:, : B._row.cols] += Q[:, rows] @ features[rows].square()
            if B._row.ones:
                total[:, -1] += Q[:, rows].sum(1, dtype=torch.float64)
        result[i : i + step] = total
    return result.view(-1)
