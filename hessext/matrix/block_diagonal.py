"""What second-order methods do with the diagonal blocks of a layer, on torch.linalg."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hessext._memory import require
from hessext._progress import steps

from .assemble import blocks
from .curvature import diagonal_pairs
from .part import Part

_PIECE = 1 << 26  # bytes of blocks taken at once


def solve(part: Part, v: Tensor, damping: float) -> Tensor:
    """u with (H_ii + damping I) u_i = v_i for all i, like v, (K s,) or (K s, k)."""
    given = v.reshape(part.grid[0], part.block_shape[0], v.shape[1] if v.ndim == 2 else 1)
    require(given.numel() * given.element_size(), "the solution", part.device)
    result = torch.empty_like(given, memory_format=torch.contiguous_format)
    for rows, of_rows in pieces(part):
        of_rows.diagonal(dim1=1, dim2=2).add_(damping)
        factors, pivots, info = torch.linalg.lu_factor_ex(of_rows)
        if info.any():
            i = rows.start + int(info.nonzero()[0])
            raise torch.linalg.LinAlgError(
                f"damping: expected a number with which all blocks are invertible; got {damping}, with which block "
                f"({i}, {i}) is singular"
            )
        result[rows] = torch.linalg.lu_solve(factors, pivots, given[rows])
    return result.view(v.shape)


def eigh(part: Part, dtype: torch.dtype | None = None) -> torch.return_types.linalg_eigh:
    """Eigenvalues (K, s) in ascending order and eigenvectors (K, s, s), in columns, of all diagonal blocks."""
    (K, _), (s, _), like = part.grid, part.block_shape, part.like.new_empty(0, dtype=dtype)
    require(K * s * (s + 1) * like.element_size(), f"eigenvectors of {K} blocks", part.device)
    values, vectors = like.new_empty(K, s), like.new_empty(K, s, s)
    for rows, of_rows in pieces(part):
        values[rows], vectors[rows] = torch.linalg.eigh(of_rows.to(like.dtype))
    return torch.return_types.linalg_eigh((values, vectors))


def pieces(part: Part) -> Iterator[tuple[slice, Tensor]]:
    """Some block rows and their diagonal blocks (k, s, s), which may be changed; where all are equal, one for all."""
    K, size = part.grid[0], part.block_shape[0] ** 2 * part.dtype.itemsize
    step = max(1, _PIECE // size)
    require(3 * size * min(step, K), "diagonal blocks and their factors", part.device)
    if part.replicated:
        yield slice(0, K), blocks(part, diagonal_pairs(0, 1, part.device))
        return
    for start in steps(range(0, K, step)):
        rows = slice(start, min(start + step, K))
        yield rows, blocks(part, diagonal_pairs(rows.start, rows.stop, part.device))
