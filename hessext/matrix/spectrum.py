"""Extreme eigenvalues of a layer's matrix H as a preconditioned step feels it: of P^{-1/2} H P^{-1/2}.

They are those of R^T H R with any R R^T = P^{-1}; H comes in by products alone.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from itertools import count

import numpy as np
import torch
from torch import Tensor

from hessext._memory import require
from hessext._progress import counted
from hessext._random import generator

from .part import Part
from .preconditioner import NOISE, Preconditioner
from .product import part_product
from .results import PreconditionedSpectrum

_DENSE = 512  # parameters up to which all products are formed, which are fewer than Lanczos may need
_VECTORS, _FEWEST, _BYTES = 64, 20, 1 << 30  # Lanczos vectors, fewer where these are more bytes

Apply = Callable[[Tensor], Tensor]


def extreme_eigenvalues(
    part: Part, P: Preconditioner, damped: bool, tol: float, maxiter: int
) -> PreconditionedSpectrum:
    """Of a part within a layer, or of the part + damping I where it is `damped`."""
    eps = torch.finfo(part.dtype).eps

    def apply(v: Tensor) -> Tensor:
        u = P.times(v.view(P.scale.shape))
        size = u.abs().max().clamp(min=torch.finfo(u.dtype).tiny)  # which the data's dtype may not hold
        w = (u / size).to(part.dtype).reshape(-1)
        moved = size * part.data.sum(lambda samples, _: part_product(part.of(samples), w)).double().view(u.shape)
        if not moved.isfinite().all():
            raise ValueError(
                f"expected products within the range of {part.dtype}; H.to(torch.float64) has a larger one"
            )
        return P.transpose_times(moved + P.damping * u if damped else moved).reshape(-1)

    start = torch.randn(part.shape[0], generator=generator("lanczos", 0), dtype=torch.float64).to(part.device)
    vectors = _dense(apply, start) if len(start) <= _DENSE else _lanczos(apply, start, tol, maxiter)
    (low, low_error), (high, high_error) = sorted(_rayleigh(apply, v) for v in vectors)
    return PreconditionedSpectrum.of(high, low, (high_error, low_error), P.damping, NOISE * eps)


def _rayleigh(apply: Apply, v: Tensor) -> tuple[float, float]:
    """v^T A v and ||A v - (v^T A v) v|| of a unit vector."""
    moved = apply(v)
    value = v @ moved
    return value.item(), (moved - value * v).norm().item()


def _dense(apply: Apply, like: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors of the largest and of the smallest eigenvalue."""
    A = torch.stack([apply(v) for v in torch.eye(len(like)).to(like)])
    vectors = torch.linalg.eigh((A + A.T) / 2).eigenvectors
    return vectors[:, -1], vectors[:, 0]


def _lanczos(apply: Apply, start: Tensor, tol: float, maxiter: int) -> tuple[Tensor, Tensor]:
    """The same by Lanczos iterations, first of the eigenvalue c of largest magnitude, then of the other end.

    The other end is the largest eigenvalue, of at most 3 |c|, of 2 |c| -+ A: residuals of both are compared with |c|.
    """
    if not apply(start).any():
        return start / start.norm(), start / start.norm()
    first = _leading(apply, start, tol, maxiter)
    value = _rayleigh(apply, first)[0]
    sign = 1.0 if value > 0 else -1.0
    second = _leading(lambda v: 2 * abs(value) * v - sign * apply(v), start, tol / 3, maxiter)
    return (first, second) if value > 0 else (second, first)


def _leading(apply: Apply, start: Tensor, tol: float, maxiter: int) -> Tensor:
    """The unit eigenvector of the eigenvalue of largest magnitude, or what is best after `maxiter` restarts."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh  # takes a second, and few need it

    def product(v: np.ndarray) -> np.ndarray:
        next(products)
        return apply(torch.from_numpy(np.ascontiguousarray(v).reshape(-1)).to(start)).cpu().numpy()

    products = iter(counted(count(), "products"))
    n = len(start)
    vectors = max(_FEWEST, min(_VECTORS, _BYTES // (8 * n)))
    require(8 * n * (vectors + 6), f"{vectors} Lanczos vectors")
    operator = LinearOperator((n, n), product, dtype=np.float64)
    seeded = {"rng": 0} if "rng" in signature(eigsh).parameters else {}  # drawn from where a space is invariant
    # what has not converged is not handed out: the same iterations, stopped where a larger tolerance is met, are
    for bound in (tol, max(tol, 1e-15) ** 0.5, 1.0):
        try:
            found = eigsh(operator, 1, v0=start.cpu().numpy(), ncv=vectors, maxiter=maxiter, tol=bound, **seeded)[1]
        except ArpackNoConvergence:
            continue
        v = torch.from_numpy(found[:, 0].copy()).to(start)
        return v / v.norm()
    raise RuntimeError(f"maxiter: expected enough restarts for an eigenvector; got {maxiter}")
