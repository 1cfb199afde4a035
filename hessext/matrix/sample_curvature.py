"""The curvature Q_n (K, K) of each sample within a layer, for what is asked of all of them at once.

Three kinds of it: of a softmax, c_n (diag p_n - p_n p_n^T), with many classes never formed; of other losses, c_n I or
diag c_n; and entries that are formed some at a time. Sums are in float64, and keep their digits where one class
dominates.
"""

from __future__ import annotations

from torch import Tensor

from hessext._memory import require

from .closed_curvature import DiagonalCurvature, SoftmaxCurvature
from .curvature_tiles import SampleCurvature
from .given_curvature import GivenCurvature
from .part import Part
from .results import CurvatureParts

_TENSOR = 1 << 30  # bytes of Q_n as matrices, where it has a closed form


def sample_curvature(part: Part) -> SampleCurvature:
    """Q_n of a part within a layer, in the form of its kind."""
    if part.block_diagonal or (part.of_output and part.term == "residual"):
        return DiagonalCurvature(part)
    return SoftmaxCurvature(part) if part.of_output else GivenCurvature(part)


def curvature(part: Part, samples: Tensor) -> Tensor | CurvatureParts:
    """Q_n (n, K, K) of some samples; its parts where these are more than `_TENSOR` bytes and have a closed form."""
    K, closed = part.grid[0], part.of_output and part.term != "residual"
    if closed and len(samples) * K * K * part.dtype.itemsize > _TENSOR:
        o = part.samples.output
        return CurvatureParts(*(None if t is None else t[samples] for t in (o.scale, o.probs, o.top, o.rest)))
    require(len(samples) * K * K * part.dtype.itemsize, f"curvature of {len(samples)} samples", part.device)
    result = part.like.new_zeros(len(samples), K, K)
    if not part.of_output or closed:
        for i, j, q in GivenCurvature(part).pieces():
            some = q[:, samples].T.to(part.dtype)
            result[:, i, j], result[:, j, i] = some, some
    return result
