"""What second-order methods do with the diagonal blocks of a layer, on torch.linalg."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessext._memory import memory

if TYPE_CHECKING:
    from .block_matrix import BlockMatrix

_PIECE = 1 << 26  # bytes of blocks taken at once


def solve(B: BlockMatrix, v: Tensor, damping: float) -> Tensor:
    """u with (H_ii + damping I) u_i = v_i for all i, like v, (K s,) or (K s, k)."""
    given = v.reshape(B.grid[0], B.block_shape[0], v.shape[1] if v.ndim == 2 else 1)
    memory(given.numel() * given.element_size(), "the solution", B.device)
    result = torch.empty_like(given, memory_format=torch.contiguous_format)
    for rows, blocks in _pieces(B):
        blocks.diagonal(dim1=1, dim2=2).add_(damping)
        factors, pivots, info = torch.linalg.lu_factor_ex(blocks)
        if info.any():
            i = rows.start + int(info.nonzero()[0])
            raise torch.linalg.LinAlgError(
                f"damping: expected a number with which all blocks are invertible; got {damping}, with which block "
                f"({i}, {i}) is singular"
            )
        result[rows] = torch.linalg.lu_solve(factors, pivots, given[rows])
    return result.view(v.shape)


def eigh(B: BlockMatrix) -> torch.return_types.linalg_eigh:
    """Eigenvalues (K, s) in ascending order and eigenvectors (K, s, s), in columns, of all diagonal blocks."""
    (K, _), (s, _), like = B.grid, B.block_shape, B._data.network.like
    memory(K * s * (s + 1) * like.element_size(), f"eigenvectors of {K} blocks", B.device)
    values, vectors = like.new_empty(K, s), like.new_empty(K, s, s)
    for rows, blocks in _pieces(B):
        values[rows], vectors[rows] = torch.linalg.eigh(blocks)
    return torch.return_types.linalg_eigh((values, vectors))


def _pieces(B: BlockMatrix) -> Iterator[tuple[slice, Tensor]]:
    """Some block rows and their diagonal blocks (k, s, s), which may be changed; where all are equal, one for all."""
    K, size = B.grid[0], B.block_shape[0] ** 2 * B.dtype.itemsize
    step = max(1, _PIECE // size)
    memory(3 * size * min(step, K), "diagonal blocks and their factors", B.device)
    if B._replicated:
        yield slice(0, K), B.block(0, 0)[None]
        return
    for start in range(0, K, step):
        rows = slice(start, min(start + step, K))
        index = torch.arange(rows.start, rows.stop, device=B.device)
        yield rows, B.blocks(torch.stack([index, index], 1))
