"""What the functions of theory return."""

from __future__ import annotations

import math
from typing import NamedTuple

from hessext._norms import BlockRatio


class Layers(NamedTuple):
    """BlockRatio of each layer."""

    hidden: BlockRatio
    output: BlockRatio


class Estimate(NamedTuple):
    """Mean over random draws, and its standard error field by field."""

    value: BlockRatio
    error: BlockRatio


class CrossNorms(NamedTuple):
    """Mean squared Frobenius norms of the two terms of a block H_{w_i v_j}; (11), (18)."""

    residual: float
    gauss_newton: float


def block_ratio(diagonal: float, off_diagonal: float) -> BlockRatio:
    """BlockRatio of two squared norms; 0 / 0 and inf / inf are nan, and x / 0 is inf."""
    diagonal, off_diagonal = float(diagonal), float(off_diagonal)
    empty = math.inf if off_diagonal else math.nan
    return BlockRatio(diagonal, off_diagonal, off_diagonal / diagonal if diagonal else empty)
