"""One hidden layer under cross-entropy as C -> inf: the constants of Theorem 2 and their finite-N corrections.

C p_c is asymptotically exp(v_c.a - |a|^2 / (2 m)). Every limit is therefore an expectation that contains e^{t a.a'} or
e^{s |a|^2}, a = relu(g), g ~ N(0, I_m), and it factorizes over the neurons.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from hessext.matrix.results import BlockRatio

from . import _arguments
from ._results import CrossNorms


class Kernel(NamedTuple):
    """M(t) = E e^{t a a'} of one neuron, a and a' = relu(N(0, 1)) independent; Q, its part with both active; Q', ..."""

    growth: float  # M - 1, from which powers of M are formed
    Q: float
    Q1: float
    Q2: float
    Q3: float


def kernel(t: float) -> Kernel:
    """Q(t) = (pi/2 + asin t) / (2 pi sqrt(1 - t^2)), its derivatives, and M = 3/4 + Q, for 0 <= t < 1."""
    rest = 1 - t * t
    root = math.sqrt(rest)
    growth = (math.asin(t) / (2 * math.pi) + t * t / (4 * (1 + root))) / root  # Q - 1/4
    Q = 0.25 + growth
    Q1 = (t * Q + 1 / (2 * math.pi)) / rest
    Q2 = (Q + 3 * t * Q1) / rest
    return Kernel(growth, Q, Q1, Q2, (4 * Q1 + 5 * t * Q2) / rest)


def power(growth: float, n: int) -> float:
    """(1 + growth)^n without rounding 1 + growth, which is close to 1 for large n; inf on overflow."""
    try:
        return math.exp(n * math.log1p(growth))
    except OverflowError:
        return math.inf


def root_growth(s: float) -> float:
    """E e^{s a^2} - 1 = ((1 - 2 s)^-1/2 - 1) / 2 of one neuron, for 0 <= s < 1/2."""
    return math.expm1(-math.log1p(-2 * s) / 2) / 2


def h0(m: int) -> float:
    """E[e^{t a.a'} (1 + t a_i a_i')(1 + t a_j a_j') 1_i 1_j 1_i' 1_j'], t = 1/m; finite for m >= 2, (c).

    Raises:
        TypeError, ValueError: m is not an integer >= 2, as the formula is of two neurons.
    """
    m = _arguments.count("m", m, 2)
    k = kernel(1 / m)
    return power(k.growth, m - 2) * (k.Q + k.Q1 / m) ** 2


def h1(m: int) -> float:
    """E[e^{t |a|^2} (1 + t a_i^2)(1 + t a_j^2) 1_i 1_j], t = 1/m; finite for m >= 3, else inf, (c).

    Raises:
        TypeError, ValueError: m is not an integer >= 2, as the formula is of two neurons.
    """
    m = _arguments.count("m", m, 2)
    if m < 3:
        return math.inf
    r = (1 - 2 / m) ** -0.5
    return power(root_growth(1 / m), m - 2) * ((r + r**3 / m) / 2) ** 2


def F(t: float, m: int) -> float:
    """E[e^{t a.a'} (a.a')^2] = (M^m)''(t); finite for |t| < 1, else inf, (c).

    Raises:
        TypeError, ValueError: t is not a finite number >= 0, or m not a positive integer.
    """
    t, m = _arguments.nonnegative("t", t), _arguments.count("m", m)
    if t >= 1:
        return math.inf
    k = kernel(t)
    return m * (m - 1) * power(k.growth, m - 2) * k.Q1**2 + m * power(k.growth, m - 1) * k.Q2


def fourth_moment(s: float, m: int) -> float:
    """E[e^{s |a|^2} |a|^4]; finite for s < 1/2, else inf, (c).

    Raises:
        TypeError, ValueError: s is not a finite number >= 0, or m not a positive integer.
    """
    s, m = _arguments.nonnegative("s", s), _arguments.count("m", m)
    if s >= 0.5:
        return math.inf
    r = (1 - 2 * s) ** -0.5
    B, D, growth = r**3 / 2, 3 * r**5 / 2, root_growth(s)
    return m * D * power(growth, m - 1) + m * (m - 1) * B**2 * power(growth, m - 2)


def hidden_ce_limit(gamma: float, m: int) -> BlockRatio:
    """Limits C -> inf of (1/d) E||H_ii||_F^2 and (C/d) E||H_ij||_F^2 of the hidden layer; Theorem 2, (91)-(92).

        (1/4 + gamma/2) / m^2   and   h(m, gamma) = (h0 + gamma h1) / m^2

    The ratio is the limit of C times the ratio of hidden_ce. For m = 2 the off-diagonal limit is +inf, as E[lam_ij^2]
    decays slower than 1/C. For m = 1 there is no off-diagonal block, and its norm is 0.

    Raises:
        TypeError, ValueError: gamma is not positive, or m not a positive integer.
    """
    gamma, m = _arguments.positive("gamma", gamma), _arguments.count("m", m)
    off = (h0(m) + gamma * h1(m)) / m**2 if m > 1 else 0.0
    return BlockRatio.of((0.25 + gamma / 2) / m**2, off)


def output_ce_limit(m: int, *, N: int | None = None) -> BlockRatio:
    """Limits C -> inf of C^2 E||H_ii||_F^2 and C^4 E||H_ij||_F^2 of the output layer; Theorem 2, (103)-(104).

        F(1/m, m) and F(2/m, m), at N samples (1 - 1/N) F(k/m, m) + E[e^{k |a|^2 / m} |a|^4] / N, k = 1, 2

    The ratio is the limit of C^2 times the ratio of output_ce. The two limits are finite for m >= 2 and for m >= 3; at
    finite N, for m >= 3 and for m >= 5. Below they are +inf.

    Args:
        m: hidden neurons.
        N: samples; None for N -> inf.

    Raises:
        TypeError, ValueError: m or N is not a positive integer.
    """
    m = _arguments.count("m", m)
    squares = [F(k / m, m) for k in (1, 2)]
    if N is not None:
        N = _arguments.count("N", N)
        fourth = [fourth_moment(k / m, m) for k in (1, 2)]  # infinite wherever F is
        squares = [q if math.isinf(q) else (1 - 1 / N) * f + q / N for f, q in zip(squares, fourth, strict=True)]
    return BlockRatio.of(*squares)


def cross_ce_limit(gamma: float, m: int) -> CrossNorms:
    """Limits C -> inf of C E||.||_F^2 and C^2 E||.||_F^2 of the residual and Gauss-Newton terms of H_{w_i v_j} in (18).

        residual = gamma / 2,   gauss_newton = (A + gamma B) / m, finite for m >= 3, else inf

    The second limit is approached slowly. For m = 8 it is 2.7 times `cross_ce` at C = 10 and 1.35 times at C = 100; for
    m = 3 the factors are larger.

    Raises:
        TypeError, ValueError: an argument is out of range.
    """
    gamma, m = _arguments.positive("gamma", gamma), _arguments.count("m", m)
    if m < 3:
        return CrossNorms(gamma / 2, math.inf)
    t = 1 / m
    r = (1 - 2 * t) ** -0.5
    growth, Q, Q1, Q2, Q3 = kernel(t)
    Z = Q1 - 1 / (2 * math.pi)
    I0, I1, I2 = Q + t * Q1, Q1 + t * Q2, Q2 + t * Q3
    A = I2 * power(growth, m - 1) + (m - 1) * power(growth, m - 2) * (I1 * Z + I1 * Q1 + I0 * Q2)
    A += (m - 1) * (m - 2) * I0 * Q1 * Z * power(growth, m - 3)
    rise, P1 = root_growth(t), r**3 / 2
    J0, J1 = (r + t * r**3) / 2, (r**3 + 3 * t * r**5) / 2
    B = J1 * power(rise, m - 1) + (m - 1) * J0 * P1 * power(rise, m - 2)
    return CrossNorms(gamma / 2, (A + gamma * B) / m)
