"""Linear models: Theorem 1, and its form at finite N and d, exact or with the O(1/d) correction."""

from __future__ import annotations

import math

import numpy as np

from hessext.matrix.results import BlockRatio

from . import _arguments
from ._softmax import Softmax, curvature_moments


def linear_mse(gamma: float | None, *, N: int | None = None, d: int | None = None) -> BlockRatio:
    """Limit 4 (1 + gamma) of (1/d) ||H_ii||_F^2, where H_ij = 0; (3). With N and d its mean, 4 (1 + (d + 1) / N).

    Raises:
        TypeError, ValueError: gamma is not positive, or not d / N.
    """
    gamma, N, d = _arguments.aspect_ratio(gamma, N, d)
    return BlockRatio.of(4 * (1 + (gamma if N is None else (d + 1) / N)), 0.0)


def linear_ce_limit(gamma: float) -> BlockRatio:
    """Limits C -> inf of (C^2/d) ||H_ii||_F^2, 1 + gamma e, and of (C^4/d) ||H_ij||_F^2, 1 + gamma e^2; (24)-(26).

    The ratio is the limit of C^2 times the ratio of linear_ce.

    Raises:
        TypeError, ValueError: gamma is not positive.
    """
    gamma = _arguments.positive("gamma", gamma)
    return BlockRatio.of(1 + gamma * math.e, 1 + gamma * math.e**2)


def linear_ce(gamma: float | None, C: int, *, N: int | None = None, d: int | None = None) -> BlockRatio:
    """Limits of (1/d) ||H_ii||_F^2 and (1/d) ||H_ij||_F^2 as d / N -> gamma, at C classes; Theorem 1, (22)-(23).

        (E lam)^2 + gamma E[lam^2],   lam = p_1 (1 - p_1) or p_1 p_2,   p = softmax(z), z iid N(0, 1)

    Given N and d, the result is their expectation over X and W at these sizes instead: exact for C = 2, else F3, whose
    error is O(d^-2).

    Args:
        gamma: d / N; None with N and d.
        C: number of classes, >= 2.
        N: samples.
        d: inputs.

    Raises:
        TypeError, ValueError: an argument is out of range, or gamma is not d / N.
    """
    gamma, N, d = _arguments.aspect_ratio(gamma, N, d)
    C = _arguments.count("C", C, 2)
    if N is not None and C == 2:
        square = _two_classes(N, d)
        return BlockRatio.of(square, square)
    if N is not None:
        return _finite_size(N, d, C)
    lam = curvature_moments(Softmax(C, 1.0))
    return BlockRatio.of(lam.on**2 + gamma * lam.on_square, lam.off**2 + gamma * lam.off_square)


def _finite_size(N: int, d: int, C: int) -> BlockRatio:
    """F3: E[r^2 G2] / (N d) + (1 - 1/N) ((E[r G / d])^2 + 3 / (2 (d + 2)) ||E Hess_z lam||_F^2), r ~ chi^2_d."""
    r, weights = _chi_square_rule(d)
    on, off, on_square, off_square = np.array([curvature_moments(Softmax(C, math.sqrt(v))) for v in r / d]).T
    results = []
    for mean, square, curvature in zip((on, off), (on_square, off_square), _hessian_squares(C), strict=True):
        first = (weights @ (r / d * mean)) ** 2 + 1.5 / (d + 2) * curvature
        results.append((1 - 1 / N) * first + weights @ (r**2 * square) / (N * d))
    return BlockRatio.of(*results)


def _hessian_squares(C: int) -> tuple[float, float]:
    """||E Hess_z lam||_F^2 for lam = p_1 (1 - p_1) and for lam = p_1 p_2, z iid N(0, 1), C >= 3.

    For p_1 p_2 the entries are a (11, 22), b (12), c (1k, 2k), f (kk), g (kl), k, l > 2. Rows sum to 0, as p does not
    change when all logits are shifted together. The Hessian of p_1 (1 - p_1) is the sum of those of p_1 p_k over k > 1.
    """
    p = Softmax(C, 1.0)
    p12, p112 = p.moment(1, 1), p.moment(2, 1)
    a = p12 - 6 * p112 + 6 * p.moment(3, 1)
    b = p12 - 4 * p112 + 6 * p.moment(2, 2)
    f = 6 * p.moment(2, 1, 1) - 2 * p.moment(1, 1, 1)
    c = -(a + b) / (C - 2)
    g = -(2 * c + f) / (C - 3) if C > 3 else 0.0
    off = 2 * a**2 + 2 * b**2 + 4 * (C - 2) * c**2 + (C - 2) * f**2 + (C - 2) * (C - 3) * g**2
    # 11: (C-1) a, 1k: -a, kk: a + (C-2) f, kl: 2 c + (C-3) g = -f
    on = (C - 1) * (((C - 1) + 2) * a**2 + (a + (C - 2) * f) ** 2 + (C - 2) * f**2)
    return on, off


def _two_classes(N: int, d: int) -> float:
    """(1/d) E||H_11||_F^2 at C = 2, where lam = s(z) = 1 / (4 cosh^2(z/2)) and z = (w_1 - w_2).x.

    Given rho = |w_1 - w_2|, rho^2 ~ (2/d) chi^2_d, z = rho g and E[lam x x^T] has the eigenvalues E s and E[g^2 s].
    """
    r, weights = _chi_square_rule(d)
    step = 0.02
    g = np.arange(-10, 10, step)
    normal = np.exp(-(g**2) / 2) * (step / math.sqrt(2 * math.pi))
    s = 0.25 / np.cosh(np.sqrt(2 * r / d)[:, None] * g / 2) ** 2
    across, along = s @ normal, s @ (normal * g**2)
    fourth = s**2 @ (normal * (g**4 + 2 * g**2 * (d - 1) + (d - 1) * (d + 1)))  # E[s^2 |x|^4]
    return float(weights @ ((1 - 1 / N) * ((d - 1) * across**2 + along**2) + fourth / N) / d)


def _chi_square_rule(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes r and weights for means over r ~ chi^2_d: an equidistant sum in log(r / d), where the law is analytic."""
    width = math.sqrt(2 / d)
    x = np.arange(-80 / d - 9 * width, 9 * width, min(0.25, 0.3 * width))
    weights = np.exp(d / 2 * (x - np.expm1(x)))
    x, weights = x[weights > 1e-18], weights[weights > 1e-18]
    return d * np.exp(x), weights / weights.sum()
