"""Limiting spectra of H = (1/N) X^T diag(tau) X, d / N -> gamma: the generalized Marchenko-Pastur law of (37).

For Im z > 0, its Stieltjes transform s(z) = int (x - z)^{-1} dmu(x) is the solution with Im s > 0 of

    s = 1 / (-z + E[tau / (1 + gamma tau s)]).

s is also the stationary point of z s + log s - E log(1 + gamma tau s) / gamma. The derivative of this in z is s, so
that its imaginary part over pi is the distribution function, without an integral.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from hessext import _checks

from . import _arguments

Array = np.ndarray

_MOMENTS = 200  # highest moment; the work grows as its cube
_BINS = 1000  # for the normal score of tau, from -8 to 8
_STEPS = 100  # most steps of Newton's method at one height above the real axis; few are needed except near edges
_TOLERANCE = 1e-10
_ENTRIES = 1 << 16  # of a work array that stays in cache


class MarchenkoPastur(NamedTuple):
    """The law MP(gamma, s2) of (97), of constant tau = s2: the spectrum of (s2 / n) Z^T Z, Z (n, p), p / n -> gamma.

    The density is sqrt((b - x)(x - a)) / (2 pi gamma s2 x) on [a, b] = s2 (1 -+ sqrt(gamma))^2. The atom at 0 has the
    mass (1 - 1/gamma)_+.
    """

    gamma: float
    s2: float = 1.0

    @property
    def support(self) -> tuple[float, float]:
        """(a, b), the ends of the continuous part."""
        root = math.sqrt(self.gamma)
        return self.s2 * (1 - root) ** 2, self.s2 * (1 + root) ** 2

    @property
    def atom(self) -> float:
        """Mass at 0."""
        return max(0.0, 1 - 1 / self.gamma)

    def moment(self, k: int) -> float:
        """int x^k dmu."""
        return _moment(k, self.gamma, lambda n: np.float64(self.s2) ** n)

    def stieltjes(self, z: Any) -> Array:
        """s(z), Im z >= 0: the root of s2 gamma z s^2 + (z - s2 (1 - gamma)) s + 1 = 0 with Im s >= 0."""
        z = _arguments.numbers("z", z, complex)
        (a, b), square = self.support, self.s2 * self.gamma * z
        root = np.sqrt(z - a) * np.sqrt(z - b)  # ~ z at infinity, with the branch cut [a, b]
        linear = z - self.s2 * (1 - self.gamma)
        adds = (root * linear.conj()).real > 0  # whether the first form of the solution does not cancel
        s = np.where(adds, -2 / np.where(adds, root + linear, 1), (root - linear) / np.where(adds, 1, 2 * square))
        return s.real + 1j * np.abs(s.imag)

    def density(self, x: Any) -> Array:
        """Density of the continuous part."""
        x = _arguments.numbers("x", x)
        inside = x > 0
        return np.where(inside, self.stieltjes(np.where(inside, x, 1.0)).imag / math.pi, 0.0)

    def cdf(self, x: Any) -> Array:
        """mu((-inf, x]), the atom included."""
        x = _arguments.numbers("x", x)
        positive = np.where(x > 0, x, 1.0)
        below = _below(positive, self.stieltjes(positive), self.gamma, np.full(1, self.s2), np.ones(1))
        return np.where(x > 0, below, np.where(x == 0, self.atom, 0.0))


class Spectrum:
    """Law mu of the eigenvalues of (1/N) X^T diag(tau) X as d / N -> gamma, X (N, d) iid standardized; (37).

    More than 1000 atoms of tau are first put into bins, which resolve the tails.

    Args:
        gamma: limit of d / N.
        tau: samples or atoms of the law of the tau_n, of any sign.
        weights: their probabilities >= 0, which are normalized. None for equal ones.

    Raises:
        TypeError, ValueError: gamma is not positive; tau is not a finite vector with a nonzero entry; weights do not
            fit tau.
    """

    def __init__(self, gamma: float, tau: Any, weights: Any = None) -> None:
        self.gamma = _arguments.positive("gamma", gamma)
        tau = _arguments.vector("tau", tau)
        if not (np.abs(tau) >= 1 / _arguments.LARGEST).any():
            raise ValueError(f"tau: expected a value that is not 0; got none of at least {1 / _arguments.LARGEST:g}")
        weights = np.ones(len(tau)) if weights is None else _arguments.vector("weights", weights)
        if len(weights) != len(tau) or (weights < 0).any() or not weights.sum() > 0:
            raise ValueError(f"weights: expected {len(tau)} numbers >= 0, not all 0; got {weights}")
        weights = weights / weights.sum()
        self._all = tau, weights
        self._zero = float(weights[tau == 0].sum())
        self.tau, self.weights = _binned(tau[tau != 0], weights[tau != 0])
        self._scale = float(np.abs(self.tau) @ self.weights)

    @property
    def atom(self) -> float:
        """Mass at 0: (1 - P(tau != 0) / gamma)_+."""
        return max(0.0, 1 - (1 - self._zero) / self.gamma)

    def moment(self, k: int) -> float:
        """int x^k dmu: E tau for k = 1, (E tau)^2 + gamma E tau^2 for k = 2; (36)."""
        tau, weights = self._all
        return _moment(k, self.gamma, lambda n: float(tau**n @ weights))

    def stieltjes(self, z: Any) -> Array:
        """s(z) at complex z, Im z > 0.

        Raises:
            ValueError: Im z is not positive.
        """
        z = _arguments.numbers("z", z, complex)
        if not (z.imag > 0).all():
            raise ValueError(f"z: expected a positive imaginary part; got {z}")
        flat = z.ravel()
        s = np.empty_like(flat)
        step = max(1, _ENTRIES // len(self.tau))
        for start in range(0, len(flat), step):
            s[start : start + step] = self._solve(flat[start : start + step])
        return s.reshape(z.shape)

    def density(self, x: Any) -> Array:
        """Density of the continuous part, smoothed over a distance of max(1e-8 |x|, 1e-12 E|tau|)."""
        z = self._above(x)
        atom = self.atom * z.imag / np.abs(z) ** 2
        return np.maximum(self.stieltjes(z).imag - atom, 0) / math.pi

    def cdf(self, x: Any) -> Array:
        """mu((-inf, x]), the atom included, with the same smoothing."""
        z = self._above(x)
        below = _below(z, self.stieltjes(z), self.gamma, self.tau, self.weights)
        atom = self.atom * ((z.real >= 0) - 0.5 - np.arctan(z.real / z.imag) / math.pi)
        return np.clip(below + atom, 0, 1)

    def _above(self, x: Any) -> Array:
        x = _arguments.numbers("x", x)
        return x + 1e-8j * np.maximum(np.abs(x), 1e-4 * self._scale)

    def _solve(self, z: Array) -> Array:
        """Newton's method, from far above the real axis down to z."""
        height = np.maximum(np.abs(z), 4 * (1 + self.gamma) * np.abs(self.tau).max())
        s = -1 / (z + 1j * height)
        while (height > 0).any():
            height = np.where(height > z.imag, height / 4, 0)
            s = self._newton(z + 1j * height, s)
        return s

    def _newton(self, z: Array, s: Array) -> Array:
        """Solve s (A - z) = 1 for A = E[tau / (1 + gamma tau s)], from s."""
        s, todo = s.copy(), np.arange(len(z))
        for _ in range(_STEPS):
            at, here = s[todo], z[todo]
            ratio = self.tau / (1 + self.gamma * at[:, None] * self.tau)
            A, A2 = ratio @ self.weights, (ratio * ratio) @ self.weights
            new = at - (at * (A - here) - 1) / (A - here - self.gamma * at * A2)
            # Where Newton leaves the half-plane, take half a step of fixed-point iteration, which maps it into itself.
            new = np.where(new.imag > 0, new, (at + 1 / (A - here)) / 2)
            s[todo] = new
            todo = todo[np.abs(new - at) > _TOLERANCE * np.abs(new)]
            if not len(todo):
                break
        return s


def _below(z: Array, s: Array, gamma: float, tau: Array, weights: Array) -> Array:
    """mu((-inf, Re z]) = Im[z s + log s - E log(1 + gamma tau s) / gamma] / pi, for z next to the real axis."""
    logarithms = [np.angle(1 + gamma * tau * one) @ weights for one in s.flat]
    return ((z * s + np.log(s)).imag - np.reshape(logarithms, s.shape) / gamma) / math.pi


def _moment(k: int, gamma: float, power: Callable[[int], float]) -> float:
    """m_k = int x^k dmu = sum_n kappa_n [x^{k-n}] (sum_j m_j x^j)^n, with free cumulants gamma^{n-1} E tau^n."""
    k, moments = _checks.count("k", k, 0, _MOMENTS), [1.0]
    for top in range(1, k + 1):
        product, total = np.ones(1), 0.0
        for n in range(1, top + 1):
            product = np.convolve(product, moments)[:top]
            total += _cumulant(n, gamma, power) * product[top - n]
        if not math.isfinite(total):
            raise ValueError(f"k: expected a moment that a float can hold; got {k}")
        moments.append(total)
    return float(moments[k])


def _cumulant(n: int, gamma: float, power: Callable[[int], float]) -> float:
    with np.errstate(over="ignore"):
        return float(np.float64(gamma) ** (n - 1) * power(n))


def _binned(tau: Array, weights: Array) -> tuple[Array, Array]:
    """Mean and mass of tau in bins of equal width in the normal score of its rank, which resolve the tails."""
    order = np.argsort(tau)
    tau, weights = tau[order], weights[order]
    if len(tau) <= _BINS:
        return tau, weights
    rank = (np.cumsum(weights) - weights / 2) / weights.sum()
    bins = np.floor((ndtri(np.clip(rank, 1e-15, 1 - 1e-15)) + 8) * (_BINS / 16)).astype(int)
    mass = np.bincount(bins, weights)
    kept = mass > 0
    return np.bincount(bins, weights * tau)[kept] / mass[kept], mass[kept]
