"""Limiting spectra of the paper's blocks: the laws of tau in (55), (56), (81), (82), for the equation (37)."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from hessext import _checks
from hessext.matrix import requests

from . import _arguments
from ._given_weights import Hidden, normal_points, probabilities, stretched
from ._softmax import Softmax, curvature_moments
from ._spectra import MarchenkoPastur, Spectrum

Array = np.ndarray

_POINTS = 1 << 14
_SUMMED = 64  # exponentials: a sum of more is replaced by a lognormal of the same mean and variance
_BLOCKS = ("diagonal", "off_diagonal")


def marchenko_pastur(gamma: float, s2: float = 1.0) -> MarchenkoPastur:
    """The Marchenko-Pastur law MP(gamma, s2) of (97).

    Proposition 6: (1/N) X^T D_i X -> MP(2 gamma, 1/2) and (1/N) X^T D_i D_j X -> MP(4 gamma, 1/4). With the factor 2 of
    the loss, the hidden MSE blocks H_ii and H_ij tend to MP(2 gamma, 1) sum_c v_ci^2 and MP(4 gamma, 1/2)
    sum_c v_ci v_cj. At finite N, where a fraction q of the samples is active, MP(gamma / q, 2 q) takes their place.

    Raises:
        TypeError, ValueError: gamma or s2 is not positive.
    """
    return MarchenkoPastur(_arguments.positive("gamma", gamma), _arguments.positive("s2", s2))


def linear_spectrum(gamma: float, C: float, block: str = "diagonal", *, seed: int = 0) -> Spectrum:
    """Limiting spectrum of H_11 (55) or of -H_12 (56) of a linear model under cross entropy.

    For C = math.inf it is that of C H_11, with tau = e^{z - 1/2}, or of -C^2 H_12, with tau = e^{z_1 + z_2 - 1}.

    Args:
        gamma: limit of d / N.
        C: number of classes, an integer >= 2 or math.inf.
        block: "diagonal" for H_11 or "off_diagonal" for -H_12.
        seed: of the samples of tau.

    Raises:
        TypeError, ValueError: an argument is out of range.
    """
    diagonal = _arguments.choice("block", block, _BLOCKS) == "diagonal"
    if isinstance(C, float) and C > 0 and math.isinf(C):
        deviation = 1.0 if diagonal else math.sqrt(2)
        z = np.linspace(-11, 11, 1000)
        # For an analytic function times a normal density, a sum over a grid converges faster than any power.
        return Spectrum(gamma, np.exp(deviation * z - deviation**2 / 2), np.exp(-(z**2) / 2))
    C = _arguments.count("C", C, 2)
    sampled = C - 2 <= _SUMMED
    g = normal_points(_POINTS, C if sampled else 3, _arguments.generator(seed))
    logits, weights = stretched(g[:, :2])
    top = np.exp(logits)
    others = np.exp(g[:, 2:]).sum(1) if sampled else _exponential_sum(C - 2, g[:, 2])
    total = top.sum(1) + others
    lam = curvature_moments(Softmax(C, 1.0))
    if diagonal:
        tau, moments = top[:, 0] * (top[:, 1] + others) / total**2, (lam.on, lam.on_square)
    else:
        tau, moments = top[:, 0] * top[:, 1] / total**2, (lam.off, lam.off_square)
    return Spectrum(gamma, tau, _calibrated(tau, weights, *moments))


def hidden_spectrum(
    gamma: float, V: Tensor, i: int, j: int, *, W: Tensor | None = None, points: int = 1 << 13, seed: int = 0
) -> Spectrum:
    """Limiting spectrum of the hidden block H_ij under cross entropy at fixed weights; (81), (82).

    tau = lam_ij = Cov_p(v_i, v_j) 1_i 1_j. It is 0 for half of the inputs if i = j. If i != j, it is 0 for about 3/4 of
    them and has both signs.

    Args:
        gamma: limit of d / N.
        V: output weight (C, m), C >= 2.
        i: block row.
        j: block column.
        W: hidden weight (m, d), whose rows' angles and lengths count; None for orthonormal rows, their limit.
        points: of the integral over inputs, a power of 2.
        seed: of the points.

    Raises:
        TypeError, ValueError: an argument is of a wrong type, shape or range.
        IndexError: (i, j) is not in the (m, m) grid.
    """
    V = _checks.matrix("V", V)
    C, m = V.shape
    i, j = requests.block_index(i, j, (m, m))
    if C < 2:
        raise ValueError(f"V: expected at least 2 rows, one per class; got {C}")
    R = np.eye(m)
    if W is not None:
        W = _checks.matrix("W", W, rows=m, like=V)
        R = np.linalg.qr(W.double().cpu().numpy().T, mode="r")
    outputs, pair = V.double().cpu().numpy(), sorted({i, j})
    if not np.ptp(outputs[:, pair], axis=0).all():
        raise ValueError(f"V: expected columns {i} and {j} not to be constant; there Cov_p(v_i, v_j) = 0 for every p")
    g = normal_points(_arguments.power_of_two("points", points), len(R), _arguments.generator(seed))
    u, weights = stretched(g)
    z = u @ R
    sums = Hidden(u, z[:, pair], weights, outputs[:, pair])
    for rows, p in probabilities(np.maximum(z, 0), outputs):
        sums.add(rows, p)
    # The columns are the pairs (0, 0), (0, 1), (1, 1) of two neurons, or (0, 0) alone.
    tau = sums.curvature()[:, len(pair) - 1]
    if not tau.any():
        raise ValueError(f"W, points: expected neurons {i} and {j} active together; at all {points} points tau is 0")
    return Spectrum(gamma, tau, weights)


def _calibrated(tau: Array, weights: Array, mean: float, square: float) -> Array:
    """Weights times e^{a tau + b tau^2}; Newton's method finds a and b for which E tau and E tau^2 are exact."""
    powers, wanted = np.stack([tau / mean, (tau / mean) ** 2]), np.array([1, square / mean**2])
    tilt = np.zeros(2)
    for _ in range(8):
        tilted = weights * np.exp(tilt @ powers)
        tilted /= tilted.sum()
        found = powers @ tilted
        tilt += np.linalg.solve((powers * tilted) @ powers.T - np.outer(found, found), wanted - found)
    return tilted


def _exponential_sum(terms: int, g: Array) -> Array:
    """A lognormal function of g ~ N(0, 1) with the mean and variance of sum_{k <= terms} e^{z_k}, z_k iid N(0, 1)."""
    variance = math.log1p((math.e - 1) / terms)
    return np.exp(math.log(terms) + (1 - variance) / 2 + math.sqrt(variance) * g)
