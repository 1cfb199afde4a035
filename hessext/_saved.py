"""What torch.load(path) takes, which runs no code of the file: a Hessian of samples in memory, and results.

A Hessian of `layer` has the user's model in it, and one of batches their loader: weights_only=False loads these.
"""

from __future__ import annotations

import torch

from .data.samples import Samples
from .matrix.block_matrix import BlockMatrix
from .matrix.hessian import Hessian
from .matrix.part import Divisors, Part
from .matrix.results import (
    Approximation,
    Approximations,
    BlockRatio,
    CurvatureParts,
    PreconditionedSpectrum,
    RowNorms,
)
from .model import activations
from .model.losses import BinaryCrossEntropy, CrossEntropy, SquaredError
from .model.network import Layer, Network, ParameterGroup

_DATA = Samples, Network, Layer, ParameterGroup, CrossEntropy, BinaryCrossEntropy, SquaredError, activations.named
_RESULTS = Approximation, Approximations, BlockRatio, CurvatureParts, PreconditionedSpectrum, RowNorms


def allow() -> None:
    """Let torch.load(path, weights_only=True) make these."""
    torch.serialization.add_safe_globals([Hessian, BlockMatrix, Part, Divisors, *_DATA, *_RESULTS])
