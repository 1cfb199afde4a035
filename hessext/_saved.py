"""What torch.load(path) takes by default: results, which are numbers and tensors.

A Hessian is not among them. The core reads its tensors by their sizes, and a file that was changed may lie about these.
"""

from __future__ import annotations

import torch

from .matrix.results import (
    Approximation,
    Approximations,
    BlockRatio,
    CurvatureParts,
    PreconditionedSpectrum,
    RowNorms,
)


def allow() -> None:
    """Let torch.load(path, weights_only=True) make these."""
    results = [Approximation, Approximations, BlockRatio, CurvatureParts, PreconditionedSpectrum, RowNorms]
    torch.serialization.add_safe_globals(results)
