"""Frobenius norms of blocks: all, row by row, or as the ratio of their means, in the form that `cost` chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hessext import _ops
from hessext._memory import require

from . import cost, gram, softmax_gram
from .assemble import diagonal_pairs
from .cost import Form
from .curvature import Assemblies, grid_pairs
from .part import Part
from .results import BlockRatio, RowNorms

_PAIRS = 1 << 17  # blocks whose norms are taken at once


def block_norms(part: Part, pairs: Tensor | None) -> Tensor:
    """||H_ij||_F for the listed pairs (P,), or for all of the grid."""
    if pairs is not None:
        return _squares(part, cost.form_of_squares(part, len(pairs)))(pairs).sqrt_().to(part.dtype)
    rows, cols = part.grid
    require(rows * cols * (part.dtype.itemsize + 8), f"norms of {rows} x {cols} blocks", part.device)
    result = torch.zeros(rows, cols, dtype=part.dtype, device=part.device)
    if part.replicated:
        norm = torch.tensor(_first_square(part) ** 0.5, dtype=torch.float64, device="cpu")
        result.diagonal().copy_(norm)  # inf, if that overflows
        return result
    if part.within:
        for i, j, norms in _norm_tiles(part):
            some, others = (slice(first, first + size) for first, size in zip((i, j), norms.shape, strict=True))
            result[some, others] = norms
            result[others, some] = norms.T
        return result
    squares = _squares(part, cost.form_of_squares(part, rows * cols))
    for _, pairs in grid_pairs(rows, cols, False, _PAIRS, part.device):
        i, j = pairs.unbind(1)
        result[i, j] = squares(pairs).sqrt_().to(part.dtype)
    return result


def row_norms(part: Part) -> RowNorms:
    """RowNorms of one layer, a few rows of norms at a time."""
    count = part.grid[0]
    diagonal, total = (torch.zeros(count, dtype=torch.float64, device=part.device) for _ in range(2))
    largest, at = torch.full_like(total, -1), torch.full((count,), -1, device=part.device)

    def merge(rows: slice, norms: Tensor, first: int) -> None:  # norms (rows, columns from `first` on)
        most, place = norms.max(1)
        at[rows] = torch.where(most > largest[rows], place + first, at[rows])
        largest[rows] = torch.maximum(largest[rows], most)
        total[rows] += norms.clamp(min=0).sum(1)

    for i, j, norms in () if part.replicated else _norm_tiles(part):
        last = i + len(norms)
        if i == j:
            own = norms[:, : len(norms)].diagonal()
            diagonal[i:last] = own
            own.fill_(-1)  # less than any norm
        merge(slice(i, last), norms, j)
        beyond = norms[:, max(0, last - j) :]
        if beyond.shape[1]:
            merge(slice(max(j, last), j + norms.shape[1]), beyond.T, i)
    if part.replicated:
        diagonal += _first_square(part) ** 0.5
        at.copy_(torch.arange(count, device=part.device) == 0)
    if count == 1:
        at.fill_(-1)
    mean = total / max(1, count - 1)
    return RowNorms(*(t.to(part.dtype) for t in (diagonal, mean, largest.clamp(min=0))), at)


def _norm_tiles(part: Part) -> Iterator[tuple[int, int, Tensor]]:
    """Norms within a layer, float64: first row i, first column j >= i, and what is there, all blocks i <= j in turn.

    What begins on the diagonal begins with a whole square; what does not has no block below the diagonal.
    """
    count, form = part.grid[0], cost.form_of_all(part)
    if form is Form.CLASS_PAIRS:
        own = _squares(part, cost.form_of_squares(part, count))(diagonal_pairs(0, count, part.device))
        for i, j, squares in softmax_gram.class_pair_squares(part):
            if i == j:
                squares.diagonal().copy_(own[i : i + len(squares)])
            yield i, j, squares.sqrt_()
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
    count = part.grid[0]
    if part.replicated or (part.of_output and part.term == "residual"):  # equal blocks, zero blocks
        return _ratio(count, count * _first_square(part), 0.0)
    form = cost.form_of_ratio(part)
    if form is Form.SUMS:
        return _ratio(count, *softmax_gram.softmax_sums(part))
    squares = block_squares(part)

    def sums(pairs: Tensor) -> tuple[float, float]:
        found = squares(pairs)
        on = pairs[:, 0] == pairs[:, 1]
        return found[on].sum().item(), found[~on].sum().item()

    return _ratio(count, *pair_sums(part, gram.PairSquares(part, squares).sums if form is Form.PAIRS else sums))


def norm(part: Part) -> float:
    """||B||_F, no block being kept."""
    rows, cols = part.grid
    if part.same:
        ratio = block_ratio(part)
        return (rows * ratio.diagonal + rows * (rows - 1) * ratio.off_diagonal) ** 0.5
    squares = _squares(part, cost.form_of_squares(part, rows * cols))
    pieces = grid_pairs(rows, cols, False, _PAIRS, part.device)
    return sum(squares(pairs).sum().item() for _, pairs in pieces) ** 0.5


def pair_sums(part: Part, sums: Callable[[Tensor], tuple[float, float]]) -> tuple[float, float]:
    """Sums over the diagonal and over all other blocks, of what gives them for some pairs i <= j."""
    count = part.grid[0]
    diagonal = off_diagonal = 0.0
    for _, pairs in grid_pairs(count, count, True, _PAIRS, part.device):
        on, off = sums(pairs)
        diagonal, off_diagonal = diagonal + on, off_diagonal + 2 * off
    return diagonal, off_diagonal


def _ratio(count: int, diagonal: float, off_diagonal: float) -> BlockRatio:
    return BlockRatio.of(diagonal / count, off_diagonal / max(1, count * (count - 1)))


# ------------------------------------------------------------------------------------------------ squared norms


def _squares(part: Part, form: Form) -> Callable[[Tensor], Tensor]:
    """What gives squared norms (P,) float64 of pairs (P, 2) in one of the two forms that take them one by one."""
    if form is Form.BLOCKS:
        return block_squares(part)
    return gram.PairSquares(part, block_squares(part)).each


def block_squares(part: Part) -> Callable[[Tensor], Tensor]:
    """What gives squared norms (P,) float64 of pairs (P, 2) by forming their blocks."""
    assemblies = Assemblies(part)

    def squares(pairs: Tensor) -> Tensor:
        if part.replicated:
            return squares_of_all(pairs.new_zeros(1, 2)) * (pairs[:, 0] == pairs[:, 1])
        return squares_of_all(pairs)

    def squares_of_all(pairs: Tensor) -> Tensor:
        result = torch.empty(len(pairs), dtype=torch.float64, device=part.device)
        for call in assemblies(pairs):
            result[call.where] = _ops.block_squares(call.pairs, *call.arguments)
        return result

    return squares


def _first_square(part: Part) -> float:
    """||H_00||_F^2, where it stands for all diagonal blocks."""
    return block_squares(part)(torch.zeros(1, 2, dtype=torch.int64, device=part.device)).item()
