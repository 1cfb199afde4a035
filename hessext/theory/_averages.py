"""One hidden layer under cross-entropy at finite C: means over random weights, with their standard errors.

E_V of a squared expectation over x is of two inputs that share one V. It has no cheap deterministic form.
"""

from __future__ import annotations

import math

import numpy as np

from hessext._memory import require
from hessext._progress import as_call, steps
from hessext.matrix.results import BlockRatio

from . import _arguments
from ._given_weights import Cross, Hidden, Output, cross_entropy_squares
from ._replica import cross_moments, replica_moments
from ._results import CrossEstimate, CrossNorms, Estimate


@as_call
def hidden_ce(
    gamma: float | None,
    m: int,
    C: int,
    *,
    N: int | None = None,
    d: int | None = None,
    draws: int = 1024,
    points: int = 128,
    seed: int = 0,
) -> Estimate:
    """(1/d) E||H_ii||_F^2 and (1/d) E||H_ij||_F^2 of the hidden layer over W, V and x; (91)-(92).

        E_V[(E_x lam_ij)^2] + gamma E[lam_ij^2],   lam_ij = Cov_p(v_i, v_j) 1_i 1_j,   as d / N -> gamma

    The first term is a mean over draws of V, and the second comes from replica_moments. Given N and d, the result is
    the expectation at these sizes instead: a mean of given_weights over draws of W and V. The standard deviation of a
    draw is about 1 (m = 3) or 0.3 (m = 8) times the first term. With few draws the error is underestimated as well.

    Args:
        gamma: d / N; None with N and d.
        m: hidden neurons; for m = 1 there is no off-diagonal block, and its norm is 0.
        C: number of classes, >= 2.
        N: samples.
        d: inputs.
        draws: of the weights, >= 2; the error decreases as draws^-1/2.
        points: of each of the two point sets of a draw, a power of 2.
        seed: of the draws.

    Raises:
        TypeError, ValueError: an argument is out of range, or gamma is not d / N.
    """
    gamma, N, d = _arguments.aspect_ratio(gamma, N, d)
    squares = _draws(Hidden, m, C, N, d, draws, points, seed)
    if N is not None:
        return estimate(squares)
    moments = replica_moments(m, C)
    return estimate(squares + gamma * np.array([moments.D2, moments.O2]))


@as_call
def output_ce(
    m: int,
    C: int,
    *,
    N: int | None = None,
    d: int | None = None,
    draws: int = 1024,
    points: int = 128,
    seed: int = 0,
) -> Estimate:
    """E||H_ii||_F^2 and E||H_ij||_F^2 of the output layer over W, V and x; (103)-(104), F4.

        (1 - 1/N) E[s s' (a.a')^2] + (1/N) E[s^2 |a|^4],   s = p_i (1 - p_i) or p_i p_j,   as d -> inf

    The first term is a mean over draws of V, and the second comes from replica_moments. Given d, the result is the
    expectation at N and d instead: a mean of given_weights over draws of W and V.

    Args:
        m: hidden neurons.
        C: number of classes, >= 2.
        N: samples; None for N -> inf.
        d: inputs, with N; None for d -> inf.
        draws: of the weights, >= 2; the error decreases as draws^-1/2.
        points: of each of the two point sets of a draw, a power of 2.
        seed: of the draws.

    Raises:
        TypeError, ValueError: an argument is out of range, or d comes without N.
    """
    if d is not None:
        _, N, d = _arguments.aspect_ratio(None, N, d)
    N = None if N is None else _arguments.count("N", N)
    squares = _draws(Output, m, C, N, d, draws, points, seed)
    if N is None or d is not None:
        return estimate(squares)
    moments = replica_moments(m, C)
    return estimate((1 - 1 / N) * squares + np.array([moments.U1n, moments.U2n]) / N)


@as_call
def cross_ce(gamma: float, m: int, C: int, *, draws: int = 256, points: int = 128, seed: int = 0) -> CrossEstimate:
    """E||.||_F^2 of the two terms of `H_{w_i v_j}` in (18) as N, d -> inf, labels uniform.

        residual = E_V||E_x[r_j 1_i u]||^2 + gamma E[(p_j - Y_j)^2 1_i],   r_j = p_j - 1/C
        gauss_newton = E_V||E_x[q_ij u a^T]||_F^2 + gamma E[q_ij^2 |a|^2],   q_ij = 1_i p_j (v_ji - E_p v_i)

    with u = W x and a = relu(u). The first term of each is a mean over draws of V; the second has about 10 digits.
    `cross_ce_limit` is the limit C -> inf.

    Args:
        gamma: d / N.
        m: hidden neurons.
        C: number of classes, >= 2.
        draws: of the weights, >= 2; the error decreases as draws^-1/2.
        points: of each of the two point sets of a draw, a power of 2.
        seed: of the draws.

    Raises:
        TypeError, ValueError: an argument is out of range.
    """
    gamma = _arguments.positive("gamma", gamma)
    squares = _draws(Cross, m, C, None, None, draws, points, seed)
    means, errors = squares.mean(0), squares.std(0, ddof=1) / math.sqrt(len(squares))
    square, spread = cross_moments(m, C)
    terms = means + gamma * np.array([(1 / C - 2 / C**2) / 2 + square, spread])
    return CrossEstimate.of(*(CrossNorms(*pair.tolist()) for pair in (terms, errors)))


def _draws(layer: type, m: int, C: int, N: int | None, d: int | None, draws: int, points: int, seed: int) -> np.ndarray:
    """(draws, 2) squares of one layer at random weights; d = None stands for N, d -> inf."""
    m, C = _arguments.count("m", m), _arguments.count("C", C, 2)
    draws, points = _arguments.count("draws", draws, 2), _arguments.power_of_two("points", points)
    rng = _arguments.generator(seed)
    require(8 * (3 * m * (d or m) + 2 * C * m + 2 * draws), f"weights of {m} neurons and {C} classes")
    sizes = (math.inf, math.inf) if d is None else (N, d)
    squares = np.empty((draws, 2))
    for k in steps(range(draws)):
        W = np.eye(m) if d is None else rng.standard_normal((m, d)) / math.sqrt(d)
        V = rng.standard_normal((C, m)) / math.sqrt(m)
        squares[k] = cross_entropy_squares(W, V, *sizes, points, rng, (layer,))[0]
    return squares


def estimate(squares: np.ndarray) -> Estimate:
    """Mean of (draws, 2) squares with its standard error; that of the ratio is to first order."""
    value = BlockRatio.of(*squares.mean(0).tolist())
    on, off = squares.T
    deviations = (on, off, (off - value.ratio * on) / (value.diagonal or math.nan))
    return Estimate(value, BlockRatio(*(float(x.std(ddof=1)) / math.sqrt(len(squares)) for x in deviations)))
