"""The results of the functions of theory."""

from __future__ import annotations

from typing import NamedTuple

from hessext.matrix.results import BlockRatio


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


class CrossEstimate(CrossNorms):
    """CrossNorms as means over random draws; `error` has their standard errors."""

    error: CrossNorms

    @classmethod
    def of(cls, value: CrossNorms, error: CrossNorms) -> CrossEstimate:
        """Return the value with its error."""
        result = cls(*value)
        result.error = error
        return result
