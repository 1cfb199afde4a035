"""Moments of a softmax over iid Gaussian logits.

Let p = softmax(beta x), x_1..x_C iid N(0, 1), S the sum of the exponentials, and G the gamma function. The identity
1 / S^K = int e^{K u} exp(-e^u S) du / G(K) separates the classes. For powers a_i > 0, K = sum a_i, and functions f_i,

    E prod_i p_i^{a_i} f_i(x_i) = (1 / G(K)) int prod_{i <= n} psi_i(u) phi_0(u)^{C - n} du,
    psi_i(u) = E[y^{a_i} e^{-y} f_i(x)],   phi_0(u) = E[e^{-y}],   y = e^{u + beta x}.

Every integrand is analytic and decays, so that equidistant sums are accurate to rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln

from hessext._memory import require

from . import _arguments

Array = np.ndarray
Factor = tuple[float, tuple[float, ...]]  # one class's p^a f: (a, coefficients of f in powers of x - beta)

_TAIL = 9.0  # standard deviations; the normal density there is 1e-18
_DECAY = 40.0  # exponent at which a tail is dropped
_STEP = 0.25  # of sums over functions that vary over a distance of 1
_NORMAL_MOMENTS = (1.0, 0.0, 1.0, 0.0, 3.0)


class Softmax:
    """p = softmax(beta x) over C classes, for sums K of powers from `least` to `total`.

    The functions f are polynomials in x - beta. Under the tilt by p, x has mean beta, so that Var_p x is computed
    without cancellation at any C. Raises MemoryError.
    """

    def __init__(self, C: int, beta: float, total: float = 4.0, least: float = 1.0) -> None:
        self.C, self.beta = C, beta
        # In u, y^K e^{-y} varies on the scale K^-1/2, psi on beta if that is larger, phi_0^C on beta (2 log C)^-1/2.
        step = min(_STEP, 0.7 / math.sqrt(total))
        self._step = step * max(1.0, beta / math.sqrt(4 + 2 * math.log(C)))
        largest = min(beta**2 / 2, beta * math.sqrt(2 * (math.log(C) + _DECAY)))  # log S - log C, to all purposes
        start, end = -(math.log(C) + largest + _DECAY / min(1.0, least)), _TAIL * beta + 4
        # Beyond y = e^4 integrands vanish. A tilt by y^a, a <= total, moves the mean of x to a beta.
        right = (4 - start) / max(beta, 1e-9)
        right = min(_TAIL + total * beta, max(right, _TAIL + beta) if start < -(beta**2) else right)
        spacing = min(0.4, step / max(beta, 1e-9))
        entries = int((end - start) / self._step + 2) * int((_TAIL + right) / spacing + 2)
        require(6 * 8 * entries, f"the grid of {entries} nodes for logits of deviation {beta:g}")
        u = np.arange(start, end, self._step)
        self._small = u < -(beta**2)  # y < 1 at x = beta
        x = np.arange(-_TAIL, right + spacing, spacing)
        self._normal = np.exp(-(x**2) / 2) * (spacing / math.sqrt(2 * math.pi))
        self._centred = x - beta
        self._log_y = np.minimum(u[:, None] + beta * x, 700.0)
        self._y = np.exp(self._log_y)
        self._less = np.expm1(-self._y)
        lost, kept = self._less @ self._normal, np.exp(-self._y) @ self._normal
        self._log_phi0 = np.where(lost > -0.5, np.log1p(np.maximum(lost, -0.5)), np.log(kept + 1e-300))
        self._powers: dict[float, Array] = {}
        self._psi: dict[Factor, Array] = {}

    def moment(self, *factors: float | Factor) -> float:
        """E prod_i p_i^{a_i} f_i(x_i - beta) over distinct classes i = 1..n, n <= C; a number a stands for p^a."""
        if not factors:
            return 1.0
        pairs = [one if isinstance(one, tuple) else (one, (1.0,)) for one in factors]
        integrand = np.exp((self.C - len(pairs)) * self._log_phi0)
        for pair in pairs:
            integrand = integrand * self._function(pair)
        powers = np.array([a for a, _ in pairs])
        scale = gammaln(powers).sum() - gammaln(powers.sum())
        return float(integrand.sum() * self._step * math.exp(scale))

    def _function(self, factor: Factor) -> Array:
        """psi(u) / G(a) on the grid of u."""
        if factor not in self._psi:
            a, f = factor
            weights = self._normal * np.polynomial.polynomial.polyval(self._centred, f)
            if a not in self._powers:
                self._powers[a] = np.exp(a * self._log_y - self._y - gammaln(a))
            psi = self._powers[a] @ weights
            if a == 1 and sum(c * m for c, m in zip(f, _NORMAL_MOMENTS, strict=False)) == 0:
                # As E[y f] = 0, e^{-y} - 1 may replace e^{-y}. Where e^{-y} is near 1 this avoids cancellation.
                rows = self._small
                psi[rows] = (self._y[rows] * self._less[rows]) @ weights
            self._psi[factor] = psi
        return self._psi[factor]


class CurvatureMoments(NamedTuple):
    """First and second moments of p_1 (1 - p_1) (on) and of p_1 p_2 (off)."""

    on: float
    off: float
    on_square: float
    off_square: float


def curvature_moments(p: Softmax) -> CurvatureMoments:
    """Moments of the entries of diag p - p p^T. 1 - p_1 is formed as the sum of the others, so that nothing cancels."""
    C, off, off_square = p.C, p.moment(1, 1), p.moment(2, 2)
    mixed = (C - 2) * p.moment(2, 1, 1) if C > 2 else 0.0
    return CurvatureMoments((C - 1) * off, off, (C - 1) * (off_square + mixed), off_square)


def softmax_moment(C: int, *powers: float, variance: float = 1.0) -> float:
    """E[p_1^a p_2^b ...] for p = softmax(z), z_1..z_C iid N(0, variance), to 12 digits.

    Args:
        C: number of classes, >= 2.
        *powers: a, b, ... >= 0, at most C of them.
        variance: of the logits, >= 0.

    Raises:
        TypeError, ValueError: an argument is out of range, or there are more powers than classes. MemoryError: the
            variance or the powers need too fine a grid.
    """
    C = _arguments.count("C", C, 2)
    beta = math.sqrt(_arguments.nonnegative("variance", variance))
    exponents = [_arguments.positive("powers", a) for a in powers if _arguments.nonnegative("powers", a)]
    if len(exponents) > C:
        raise ValueError(f"powers: expected at most C = {C}; got {len(exponents)}")
    total = _arguments.nonnegative("powers", sum(exponents))
    return Softmax(C, beta, max(total, 1.0), total).moment(*exponents) if exponents else 1.0
