"""Norms, ratios and diagonals of a block matrix, without its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from . import _checks, _ops
from ._ops import Part

if TYPE_CHECKING:
    from ._blocks import BlockMatrix

_SAMPLES = 8192  # summed in the tensors' own dtype; chunks are added in float64
_ENTRIES = 1 << 22  # of a work tensor
_PAIRS = 1 << 17  # of blocks whose norms are taken at once


class BlockRatio(NamedTuple):
    """Mean squared Frobenius norms of diagonal and off-diagonal blocks, and ratio = off_diagonal / diagonal."""

    diagonal: float
    off_diagonal: float
    ratio: float


def block_norms(B: BlockMatrix, pairs: Tensor | None) -> Tensor:
    """||H_ij||_F for the listed pairs (P,), or for all of the grid."""
    if pairs is not None:
        return _squares(B, pairs).sqrt_().to(B.dtype)
    rows, cols = B.grid
    _checks.memory(rows * cols * (B._problem.x.element_size() + 8), f"norms of {rows} x {cols} blocks", B.device)
    result = torch.zeros(rows, cols, dtype=B.dtype, device=B.device)
    if B._replicated:
        return result.fill_diagonal_(_first_square(B) ** 0.5)
    mirrored = B._row.kind == B._col.kind  # Q_n is symmetric, whatever the features
    for pairs in _grid_pairs(rows, cols, mirrored):
        norms = _squares(B, pairs).sqrt_().to(B.dtype)
        i, j = pairs.unbind(1)
        result[i, j] = norms
        if mirrored:
            result[j, i] = norms
    return result


def block_ratio(B: BlockMatrix) -> BlockRatio:
    """BlockRatio of one layer, by blocks or by the Gram form, whichever costs less."""
    count = B.grid[0]
    if B._replicated or (B._row.kind == "output" and B._term == "residual"):  # equal blocks, zero blocks
        return _ratio(count, count * _first_square(B), 0.0)
    samples, size = len(B._problem.x), B._row.size
    by_blocks = count * (count + 1) / 2 * size * (size + 1) / 2 * samples
    by_gram = samples**2 * (3 * count + size) / 2
    if B._row.kind == "output" and by_gram < by_blocks:
        return _ratio(count, *_gram_sums(B))
    diagonal = off_diagonal = 0.0
    for pairs in _grid_pairs(count, count, True):
        squares = _squares(B, pairs)
        on = pairs[:, 0] == pairs[:, 1]
        diagonal += squares[on].sum().item()
        off_diagonal += 2 * squares[~on].sum().item()
    return _ratio(count, diagonal, off_diagonal)


def _ratio(count: int, diagonal: float, off_diagonal: float) -> BlockRatio:
    diagonal /= count
    off_diagonal /= max(1, count * (count - 1))
    ratio = off_diagonal / diagonal if diagonal else float("nan") if off_diagonal == 0 else float("inf")
    return BlockRatio(diagonal, off_diagonal, ratio)


def _squares(B: BlockMatrix, pairs: Tensor) -> Tensor:
    """Squared norms (P,) float64."""
    if B._replicated:
        square = _ops.block_squares(pairs.new_zeros(1, 2), *B._arguments())
        return square * (pairs[:, 0] == pairs[:, 1])
    return _ops.block_squares((pairs.flip(1) if B._swapped else pairs).contiguous(), *B._arguments())


def _first_square(B: BlockMatrix) -> float:
    """||H_00||_F^2, where it stands for all diagonal blocks."""
    return _squares(B, torch.zeros(1, 2, dtype=torch.int64)).item()


def _grid_pairs(rows: int, cols: int, upper: bool):
    """All pairs of the grid, or those with i <= j, in pieces."""
    i, more = 0, max(1, _PAIRS // cols)
    while i < rows:
        block = torch.arange(i, min(rows, i + more))
        pairs = torch.cartesian_prod(block, torch.arange(i if upper else 0, cols))
        yield pairs[pairs[:, 0] <= pairs[:, 1]] if upper else pairs
        i += more


def _gram_sums(B: BlockMatrix) -> tuple[float, float]:
    """Sums of ||H_jj||_F^2 and of ||H_jk||_F^2, j != k, over a softmax layer in float64.

    sum_nn' c_n c_n' (phi_n . phi_n')^2 sum_jk Q_n[j, k] Q_n'[j, k]; off the diagonal the inner sum is
    (sum_j r_j)^2 - sum_j r_j^2 with r_j = p_nj p_n'j, which cancels where a class dominates: the top classes of both
    samples are split off, and only what is left of r goes through the difference.
    """
    problem, c = B._problem, B._problem.curvature
    samples, classes = c.probs.shape
    features = problem.features_of(B._row)
    step = max(1, min(samples, 1024))
    diagonal = off_diagonal = 0.0
    for n in range(0, samples, step):
        for k in range(0, n + step, step):
            if k > n:
                break
            a, b = slice(n, n + step), slice(k, k + step)
            gram = features[a].double() @ features[b].double().T + (1.0 if B._row.ones else 0.0)
            weight = gram.square_().mul_(torch.outer(c.scale[a].double(), c.scale[b].double()))
            on, off = _curvature_products(c, a, b, classes)
            twice = 1.0 if n == k else 2.0
            diagonal += twice * torch.sum(weight * on).item()
            off_diagonal += twice * torch.sum(weight * off).item()
    return diagonal, off_diagonal


def _curvature_products(c, a: slice, b: slice, classes: int) -> tuple[Tensor, Tensor]:
    """For every two samples: sum_j q_nj q_n'j with q = p (1 - p), and sum_{j != k} r_j r_k."""
    samples = len(c.scale[a]), len(c.scale[b])
    on, rest, squares = (torch.zeros(samples, dtype=torch.float64, device=c.scale.device) for _ in range(3))
    step = max(1, _ENTRIES // max(samples))
    for j in range(0, classes, step):
        P, Q = (_deflated(c, rows, j, j + step) for rows in (a, b))
        on.addmm_(P * (1 - P), (Q * (1 - Q)).T)
        rest.addmm_(P, Q.T)
        squares.addmm_(P.square(), Q.square().T)
    # The top classes t of n and u of n', which P and Q leave out.
    t, u = c.top[a], c.top[b]
    p, q = c.probs[a], c.probs[b]
    p_t, q_u = p.gather(1, t[:, None]).double(), q.gather(1, u[:, None]).double()  # (n, 1), (n', 1)
    r_t, r_u = p_t * q[:, t].T.double(), p[:, u].double() * q_u.T
    same = t[:, None] == u[None, :]
    s_t, s_u = p_t * c.rest[a, None].double(), q_u * c.rest[b, None].double()
    other_t, other_u = q[:, t].T.double(), p[:, u].double()
    on += torch.where(same, s_t * s_u.T, s_t * other_t * (1 - other_t) + s_u.T * other_u * (1 - other_u))
    tops = torch.where(same, r_t, r_t + r_u)
    both = torch.where(same, 0.0, 2 * r_t * r_u)
    return on, both + 2 * tops * rest + (rest.square() - squares)


def _deflated(c, rows: slice, start: int, stop: int) -> Tensor:
    """Probabilities of some classes in float64, zero at each sample's top class."""
    P = c.probs[rows, start:stop].to(torch.float64, copy=True)
    top = c.top[rows] - start
    inside = ((top >= 0) & (top < P.shape[1])).nonzero().squeeze(1)
    P[inside, top[inside]] = 0
    return P


def diagonal_entries(B: BlockMatrix) -> Tensor:
    """Diagonal of one layer's matrix: sum_n Q_n[i, i] phi_n[a]^2, block by block."""
    problem, count = B._problem, B.grid[0]
    part, features = problem.part(B._row, B._col), problem.features_of(B._row)
    curvature = problem.curvature_of(part, B._term)
    samples, classes = len(features), problem.output[0].shape[0]
    if part == Part.OUTPUT and not curvature.gauss_newton:
        return features.new_zeros(B.shape[0])
    result = torch.empty(count, B._row.size, dtype=B.dtype, device=B.device)
    step = max(1, _ENTRIES // samples)
    for i in range(0, count, step):
        pairs = torch.arange(i, min(count, i + step), device=B.device)[:, None].expand(-1, 2).contiguous()
        Q = _ops.curvature_entries(int(part), pairs, classes, *curvature)
        total = torch.zeros(len(Q), B._row.size, dtype=torch.float64, device=B.device)
        for n in range(0, samples, _SAMPLES):
            rows = slice(n, n + _SAMPLES)
            if B._row.cols:
                total[:, : B._row.cols] += Q[:, rows] @ features[rows].square()
            if B._row.ones:
                total[:, -1] += Q[:, rows].sum(1, dtype=torch.float64)
        result[i : i + step] = total
    return result.view(-1)
