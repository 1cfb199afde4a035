"""One hidden layer under MSE = (1/N) sum_n ||f(x_n) - y_n||^2: Theorem 2, exact at finite N, d, m and C.

W_kl ~ N(0, 1/d), V_ck ~ N(0, 1/m), x ~ N(0, I_d). The angle between two rows of W is pi/2 - u, where the density of u
is proportional to cos^{d-2} u on (-pi/2, pi/2). Their angles are all that finite d changes.
"""

from __future__ import annotations

import math

import numpy as np

from hessext.matrix.results import BlockRatio

from . import _arguments
from ._results import CrossNorms

_ANGLES = 80  # Gauss-Legendre nodes


def hidden_mse(gamma: float | None, m: int, C: int, *, N: int | None = None, d: int | None = None) -> BlockRatio:
    """Limits of (1/d) E||H_ii||_F^2 and (1/d) E||H_ij||_F^2 of the hidden layer; Theorem 2, (100)-(101).

        (C^2 + 2 C)/m^2 (1 + 2 gamma)   and   (C/m^2) (1/4 + gamma)

    Given N and d, the result is the expectation at these sizes instead, F1 and F2.

    Args:
        gamma: d / N; None with N and d.
        m: hidden neurons; for m = 1 there is no off-diagonal block, and its norm is 0.
        C: outputs, >= 1.
        N: samples.
        d: inputs.

    Raises:
        TypeError, ValueError: an argument is out of range, or gamma is not d / N.
    """
    gamma, N, d = _arguments.aspect_ratio(gamma, N, d)
    m, C = _arguments.count("m", m), _arguments.count("C", C)
    on, off = 0.25 + gamma / 2, 1 / 16 + gamma / 4
    if N is not None:
        u, weights = angles(d)
        bend = d * float(weights @ (u**2 * np.sin(u) ** 2))
        on = (1 - 1 / N) / 4 + (d + 2) / (2 * N)
        off = (1 - 1 / N) * (1 / 16 + bend / (4 * math.pi**2)) + (d + 2) / (4 * N)
    return BlockRatio.of(4 * (C**2 + 2 * C) / m**2 * on, 4 * C / m**2 * off if m > 1 else 0.0)


def hidden_mse_limit(gamma: float, m: int) -> BlockRatio:
    """Limits C -> inf of (1/(d C^2)) E||H_ii||_F^2 and (1/(d C)) E||H_ij||_F^2 of the hidden layer; (100)-(101).

        (1 + 2 gamma) / m^2   and   (1/4 + gamma) / m^2

    The ratio is the limit of C times the ratio of hidden_mse. For m = 1 there is no off-diagonal block, and its norm is
    0. The limits are those of Theorem 2.

    Raises:
        TypeError, ValueError: gamma is not positive, or m not a positive integer.
    """
    gamma, m = _arguments.positive("gamma", gamma), _arguments.count("m", m)
    return BlockRatio.of((1 + 2 * gamma) / m**2, (0.25 + gamma) / m**2 if m > 1 else 0.0)


def output_mse(m: int, *, N: int | None = None, d: int | None = None) -> BlockRatio:
    """Limit 4 (m/4 + m (m - 1) / (4 pi^2)) of E||H_ii||_F^2 of the output layer, where H_ij = 0; (9).

    Given N and d, the result is the expectation at these sizes: 4 ((1 - 1/N) E||E[a a^T | W]||_F^2 + E|a|^4 / N).

    Raises:
        TypeError, ValueError: m, N or d is not a positive integer, or one of N and d is missing.
    """
    m = _arguments.count("m", m)
    first, second = m / 4 + m * (m - 1) / (4 * math.pi**2), 0.0
    if N is not None or d is not None:
        _, N, d = _arguments.aspect_ratio(None, N, d)
        u, weights = angles(d)
        # E[a_i a_j | W] = |w_i| |w_j| (cos u + (pi/2 + u) sin u) / (2 pi); odd powers of u average to 0
        kernel = np.cos(u) ** 2 + u * np.sin(2 * u) + (math.pi**2 / 4 + u**2) * np.sin(u) ** 2
        first = m * (1 + 2 / d) / 4 + m * (m - 1) * float(weights @ kernel) / (4 * math.pi**2)
        second = (1 + 2 / d) * (3 * m / 2 + m * (m - 1) / 4)
        first, second = (1 - 1 / N) * first, second / N
    return BlockRatio.of(4 * (first + second), 0.0)


def cross_mse(gamma: float, m: int, C: int) -> CrossNorms:
    """Limits of E||.||_F^2 of the two terms of H_{w_i v_j} in (11), for one-hot targets of uniform labels.

        gauss_newton = 4 (core + gamma core_g),   residual = gauss_newton + 4 (1/(2 pi C^2) + gamma/(2 C)),
        core = (1/4 + (m - 1)(1/(4 pi^2) + 1/16)) / m,   core_g = (1/2 + (m - 1)/4) / m

    Raises:
        TypeError, ValueError: an argument is out of range.
    """
    gamma, m, C = _arguments.positive("gamma", gamma), _arguments.count("m", m), _arguments.count("C", C)
    core = (0.25 + (m - 1) * (1 / (4 * math.pi**2) + 1 / 16)) / m
    core_g = (0.5 + (m - 1) / 4) / m
    gauss_newton = 4 * (core + gamma * core_g)
    return CrossNorms(gauss_newton + 4 * (1 / (2 * math.pi * C**2) + gamma / (2 * C)), gauss_newton)


def given_weights_mse(W: np.ndarray, V: np.ndarray, N: int) -> tuple[BlockRatio, BlockRatio]:
    """(1/d) E||H_ij||_F^2 of the hidden and E||H_ij||_F^2 of the output layer over x ~ N(0, I_d), given the weights.

    Both neurons are active in a wedge of the angle alpha_ij = pi - angle(w_i, w_j), so that E[1_i 1_j] = alpha / (2 pi)
    and ||E[1_i 1_j x x^T]||_F^2 = (d alpha^2 + 2 sin^2 alpha) / (4 pi^2). |x| is independent of being in the wedge.
    """
    m, d = W.shape
    norms = np.linalg.norm(W, axis=1)
    cosine = np.clip(W @ W.T / np.where(norms > 0, norms, 1) / np.where(norms > 0, norms, 1)[:, None], -1, 1)
    np.fill_diagonal(cosine, 1)
    angle = np.arccos(cosine)
    alpha, sine = math.pi - angle, np.sin(angle)
    # A hidden unit whose weights are all 0 is never active.
    alpha, sine = (np.where(np.outer(norms, norms) > 0, t, 0) for t in (alpha, sine))
    wedge = (1 - 1 / N) * (d * alpha**2 + 2 * sine**2) / (4 * math.pi**2) + d * (d + 2) * alpha / (2 * math.pi * N)
    hidden = 4 * (V.T @ V) ** 2 * wedge / d
    scale = np.outer(norms, norms)
    mean = scale * (sine + alpha * cosine) / (2 * math.pi)  # E[a_i a_j]
    fourth = scale**2 * (3 * sine * cosine + alpha * (1 + 2 * cosine**2)) / (2 * math.pi)  # E[a_i^2 a_j^2]
    output = 4 * ((1 - 1 / N) * (mean**2).sum() + fourth.sum() / N)
    off = (hidden.sum() - np.trace(hidden)) / max(1, m * (m - 1))
    return BlockRatio.of(np.trace(hidden) / m, off), BlockRatio.of(output, 0.0)


def angles(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes u > 0 and weights for means of even functions of u, whose density is proportional to cos^{d-2} u."""
    if d == 1:  # parallel or antiparallel
        return np.array([math.pi / 2]), np.ones(1)
    end = min(math.pi / 2, 10 / math.sqrt(d))
    nodes, weights = np.polynomial.legendre.leggauss(_ANGLES)
    u = end * (1 + nodes) / 2
    weights = weights * np.cos(u) ** (d - 2)
    return u, weights / weights.sum()
