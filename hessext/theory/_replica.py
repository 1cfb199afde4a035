"""One hidden layer under cross-entropy at finite C: the moments of a single input, to about 10 digits.

Given a = relu(W x), the logits are beta x_c with beta = |a| / sqrt(m) and x_c iid N(0, 1). Every expectation over V is
therefore one over a softmax of logits of variance beta^2. With k of the m neurons active, |a|^2 ~ chi^2_k.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.stats import binom, chi2

from hessext._memory import require

from . import _arguments
from ._softmax import Factor, Softmax, curvature_moments

_RADII = 64  # Gauss-Legendre nodes over |a|

# --- sums over classes --------------------------------------------------------------------------------------
# A polynomial in sums sum_c p_c^a f(y_c), y = x - beta: {sorted factors (a, f): coefficient}.

Polynomial = dict[tuple[Factor, ...], float]


def _sum(a: int, *f: float) -> Polynomial:
    return {((a, f),): 1.0}


def _add(*terms: tuple[float, Polynomial]) -> Polynomial:
    total: Counter = Counter()
    for scale, polynomial in terms:
        for factors, coefficient in polynomial.items():
            total[factors] += scale * coefficient
    return dict(total)


def _times(P: Polynomial, Q: Polynomial) -> Polynomial:
    total: Counter = Counter()
    for left, a in P.items():
        for right, b in Q.items():
            total[tuple(sorted(left + right))] += a * b
    return dict(total)


def _partitions(items: tuple) -> Iterator[list[tuple]]:
    """Yield all set partitions."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for parts in _partitions(rest):
        yield [(first,), *parts]
        for k, part in enumerate(parts):
            yield [*parts[:k], (first, *part), *parts[k + 1 :]]


@cache
def _class_terms(factors: tuple[Factor, ...]) -> dict[tuple[Factor, ...], int]:
    """Write a product of sums over classes as sums over distinct classes, in which factors of one class multiply."""
    terms: Counter = Counter()
    for partition in _partitions(factors):
        classes = []
        for part in partition:
            f = np.ones(1)
            for _, g in part:
                f = np.polynomial.polynomial.polymul(f, g)
            classes.append((sum(a for a, _ in part), tuple(f.tolist())))
        terms[tuple(sorted(classes))] += 1
    return dict(terms)


def _expectation(P: Polynomial, p: Softmax) -> float:
    total = 0.0
    for factors, coefficient in P.items():
        for classes, times in _class_terms(factors).items():
            distinct = math.perm(p.C, len(classes))
            if distinct and coefficient:
                total += coefficient * times * distinct * p.moment(*classes)
    return total


_ONE: Polynomial = {(): 1.0}
_Q2, _Q3 = _sum(2, 1.0), _sum(3, 1.0)
_MEAN = _sum(1, 0.0, 1.0)  # of y under p
_ACTIVE = _add((1, _ONE), (-1, _Q2))  # 1 - q2
_DELTA = _add((1, _sum(1, -1.0, 0.0, 1.0)), (-1, _times(_MEAN, _MEAN)), (1, _Q2))  # Var_p x - (1 - q2)
_KAPPA = _add(  # sum p^2 (y - mean)^2
    (1, _sum(2, 0.0, 0.0, 1.0)),
    (-2, _times(_MEAN, _sum(2, 0.0, 1.0))),
    (1, _times(_times(_MEAN, _MEAN), _Q2)),
)
_T = _add((1, _Q2), (-2, _Q3), (1, _times(_Q2, _Q2)))


_FUNCTIONALS = {
    "active": _ACTIVE,
    "delta": _DELTA,
    "active2": _times(_ACTIVE, _ACTIVE),
    "active delta": _times(_ACTIVE, _DELTA),
    "delta2": _times(_DELTA, _DELTA),
    "kappa": _KAPPA,
    "T": _T,
}

# --- over inputs --------------------------------------------------------------------------------------------


class ReplicaMoments(NamedTuple):
    """D0 = E lam_ii, D2 = E lam_ii^2, O2 = E lam_ij^2, U1n = E[s_ii^2 |a|^4], U2n = E[s_ij^2 |a|^4], i != j.

    lam_ij = Cov_p(v_i, v_j) 1_i 1_j is the hidden layer's curvature, s_ii = p_i (1 - p_i) and s_ij = p_i p_j the output
    layer's.
    """

    D0: float
    D2: float
    O2: float
    U1n: float
    U2n: float


def replica_moments(m: int, C: int) -> ReplicaMoments:
    """Moments of one input's curvature over W, V and x as d -> inf, to about 10 digits.

    gamma D2 and gamma O2 are the gamma terms of (91)-(92). U1n / N and U2n / N are the 1/N terms of (103)-(104).

    Args:
        m: hidden neurons; O2 is 0 for m = 1.
        C: number of classes, >= 2.

    Raises:
        TypeError, ValueError: m or C is not such an integer. MemoryError: m is too large.
    """
    return _replica_moments(_arguments.count("m", m), _arguments.count("C", C, 2))


@cache
def _replica_moments(m: int, C: int) -> ReplicaMoments:
    one, two = np.arange(1, m + 1), np.arange(2, m + 1)  # active neurons k, of which i is one, i and j are two
    s, s2, ss = 1 / one, 3 / (one * (one + 2)), 1 / (two * (two + 2))  # E of a_i^2, a_i^4, a_i^2 a_j^2 at |a| = 1
    D0, D2, O2, U1n, U2n = 0.0, 0.0, 0.0, 0.0, 0.0
    for at in _radii(m, C):
        p = Softmax(C, at.beta)
        E = {name: _expectation(P, p) for name, P in _FUNCTIONALS.items()}
        D0 += at.one @ (E["active"] + s * E["delta"]) / m
        squares = E["active2"] + 2 * s * E["active delta"] + s2 * E["delta2"]
        D2 += at.one @ (squares + 4 * (s - s2) * E["kappa"] + 2 * (1 - 2 * s + s2) * E["T"]) / m**2
        crossed = ss * (E["delta2"] - 4 * E["kappa"] + 2 * E["T"])
        O2 += at.two @ (crossed + 2 / two * (E["kappa"] - E["T"]) + E["T"]) / m**2
        curvature, fourth = curvature_moments(p), (m * at.beta**2) ** 2
        U1n += at.any * fourth * curvature.on_square
        U2n += at.any * fourth * curvature.off_square
    return ReplicaMoments(*map(float, (D0, D2, O2, U1n, U2n)))


@cache
def cross_moments(m: int, C: int) -> tuple[float, float]:
    """E[p_j^2 1_i] and E[(p_j (v_ji - E_p v_i) 1_i)^2 |a|^2] over W, V and x.

    Let b = a / |a|. Given a and the x_c, v_ci sqrt(m) is b_i x_c plus an independent normal of variance 1 - b_i^2.
    Hence the mean of sum_j p_j^2 (v_ji - E_p v_i)^2 is (b_i^2 kappa + (1 - b_i^2) T) / m.
    """
    square = spread = 0.0
    for at in _radii(m, C):
        p, s = Softmax(C, at.beta), 1 / np.arange(1, m + 1)
        kappa, T = (_expectation(_FUNCTIONALS[name], p) for name in ("kappa", "T"))
        square += at.one.sum() * p.moment(2)
        spread += at.beta**2 * (at.one @ (s * kappa + (1 - s) * T)) / C
    return float(square), float(spread)


class _Radius(NamedTuple):
    """A node beta = |a| / sqrt(m), with its weights for different sets of active neurons."""

    beta: float
    one: np.ndarray  # i and k - 1 others, k = 1..m
    two: np.ndarray  # i, j and k - 2 others, k = 2..m
    any: float  # at least one neuron


def _radii(m: int, C: int) -> Iterator[_Radius]:
    """Yield the nodes of a Gauss-Legendre rule over |a|, on an interval that holds all but a negligible probability.

    No moment is much below C^-4. The probability to be cut off is therefore 1e-16 C^-4, divided by that of k.
    """
    require(160 * m, f"densities of {m} active neurons")
    k = np.arange(1, m + 1)
    any_of, one_of, two_of = (binom.pmf(k - n, m - n, 0.5) * 0.5**n for n in (0, 1, 2))
    tail = np.minimum(1, 1e-16 / float(C) ** 4 / np.maximum(any_of, 1e-300))  # 1 where k is too rare to count
    start, end = math.sqrt(chi2.ppf(tail, k).min()), math.sqrt(chi2.isf(tail, k).max())
    nodes, weights = np.polynomial.legendre.leggauss(_RADII)
    for r, weight in zip((start + end + (end - start) * nodes) / 2, (end - start) * weights / 2, strict=True):
        density = 2 * r * chi2.pdf(r**2, k) * weight
        yield _Radius(r / math.sqrt(m), one_of * density, (two_of * density)[1:], any_of @ density)
