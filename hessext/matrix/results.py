"""What norms are returned as."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


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
