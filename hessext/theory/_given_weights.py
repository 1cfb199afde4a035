"""One hidden layer given its weights, exact in N and d.

Given W and V the samples are independent. For a block H = (1/N) sum_n lam_n phi_n phi_n^T,

    E||H||_F^2 = (1 - 1/N) ||E[lam phi phi^T]||_F^2 + (1/N) E[lam^2 |phi|^4].

lam depends on x only through z = W x. Therefore x splits into u, its part in the row span of W, and d - r independent
normals, r = min(m, d). What remains is an integral over u in r dimensions, by quasi-Monte Carlo. The square of an
expectation is estimated without bias, as the product of the means over two independent point sets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, lru_cache

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc
from torch import Tensor

from hessext import _checks
from hessext._memory import require
from hessext._progress import as_call, steps
from hessext.matrix.results import BlockRatio

from . import _arguments
from ._mse import given_weights_mse
from ._results import Layers

Array = np.ndarray

_ENTRIES = 1 << 18  # of a work array that stays in cache
_BY_CLASS = 1024  # distinct entries of a a^T times C: up to here, output blocks i != j are summed class by class
_GRAM_POINTS = 128  # beyond, a points x points Gram form takes so many of each set, or a quarter if that is more


@as_call
def given_weights(
    W: Tensor, V: Tensor, N: int, *, loss: str = "cross_entropy", points: int = 1024, seed: int = 0
) -> Layers:
    """(1/d) E||H_ij||_F^2 of the hidden and E||H_ij||_F^2 of the output layer over N samples x ~ N(0, I_d).

    They are means over all i and over all i != j, as in BlockMatrix.ratio(). MSE is exact. Cross-entropy has the error
    of the integral over u, whose mean over seeds is 0. With 1024 points it is about 1%, and 2-6% for output blocks
    i != j from C = 100 on; it decreases as points^-1/2 or faster.

    Args:
        W: hidden weight (m, d).
        V: output weight (C, m), C >= 2 for cross-entropy.
        N: samples.
        loss: "cross_entropy" or "mse" as in hessext.one_hidden.
        points: of each of the two point sets, a power of 2.
        seed: of the point sets.

    Raises:
        TypeError, ValueError: an argument is of a wrong type, shape or range.
    """
    W = _checks.matrix("W", W)
    V = _checks.matrix("V", V, cols=len(W), like=W)
    N = _arguments.count("N", N)
    _arguments.choice("loss", loss, ("cross_entropy", "mse"))
    points, rng = _arguments.power_of_two("points", points), _arguments.generator(seed)
    weights, outputs = (t.double().cpu().numpy() for t in (W, V))
    if loss == "mse":
        return Layers(*given_weights_mse(weights, outputs, N))
    if len(outputs) < 2:
        raise ValueError(f"V: expected at least 2 rows, one per class; got {len(outputs)}")
    squares = cross_entropy_squares(weights, outputs, N, weights.shape[1], points, rng, (Hidden, Output))
    return Layers(*(BlockRatio.of(*pair) for pair in squares))


def cross_entropy_squares(
    W: Array, V: Array, N: float, d: float, points: int, rng: np.random.Generator, layers: tuple[type, ...]
) -> list[tuple[float, float]]:
    """Return (diagonal, off-diagonal) squares of each layer. d = N = inf with W = I (m, m) is the limit N, d -> inf."""
    R = np.linalg.qr(W.T, mode="r")  # W^T = Q R: z = u R for u = Q^T x
    sets = []
    for _ in steps(range(2)):
        u, weights = stretched(normal_points(points, len(R), rng))
        z = u @ R
        sums = [layer(u, z, weights, V) for layer in layers]
        for rows, p in probabilities(np.maximum(z, 0), V):
            for one in sums:
                one.add(rows, p)
        sets.append(sums)
    return [left.squares(right, N, d) for left, right in zip(*sets, strict=True)]


class Hidden:
    """Sums over one point set for the hidden layer: lam_ij = Cov_p(v_i, v_j) 1_i 1_j for the pairs i <= j."""

    def __init__(self, u: Array, z: Array, weights: Array, V: Array) -> None:
        self.u, self.active, self.weights = u, z > 0, weights
        self.m, (i, j) = V.shape[1], _pairs(V.shape[1])
        V = V - V.mean(0)  # keeps the covariance from cancelling
        self.features = np.concatenate([V, V[:, i] * V[:, j]], 1)
        self.means = np.empty((len(z), self.features.shape[1]))

    def add(self, rows: slice, p: Array) -> None:
        """Take the points' probabilities (rows, C)."""
        np.matmul(p, self.features, out=self.means[rows])

    def squares(self, other: Hidden, N: float, d: float) -> tuple[float, float]:
        """Means over i and over i != j of (1/d) E||H_ij||_F^2."""
        i, j = _pairs(self.m)
        pair = self, other
        lams = [s.curvature() for s in pair]
        squares = math.prod(s.weights @ lam for s, lam in zip(pair, lams, strict=True))
        if math.isfinite(d):
            rest = d - self.u.shape[1]
            inner = math.prod(lam.T @ _outer(s.u, s.weights) for s, lam in zip(pair, lams, strict=True)).sum(1)
            fourth = sum(s._fourth(rest) @ lam**2 for s, lam in zip(pair, lams, strict=True)) / 2
            squares = ((1 - 1 / N) * (rest * squares + inner) + fourth / N) / d
        return float(squares[i == j].mean()), float(squares[i != j].sum() / max(1, np.count_nonzero(i != j)))

    def curvature(self) -> Array:
        """lam_ij of the points, (n, pairs)."""
        i, j = _pairs(self.m)
        mean, second = self.means[:, : self.m], self.means[:, self.m :]
        return (second - mean[:, i] * mean[:, j]) * (self.active[:, i] & self.active[:, j])

    def _fourth(self, rest: float) -> Array:
        """E[|x|^4 | u] of every point, times its weight."""
        length2 = (self.u**2).sum(1)
        return (length2**2 + 2 * rest * length2 + rest * (rest + 2)) * self.weights


class Output:
    """Sums over one point set for the output layer: s_ii = p_i (1 - p_i) and s_ij = p_i p_j; phi = a."""

    def __init__(self, u: Array, z: Array, weights: Array, V: Array) -> None:
        self.a, self.weights = np.maximum(z, 0), weights
        self.outer = _outer(self.a, weights)
        self.length4 = (self.a**2).sum(1) ** 2 * weights
        C, q = len(V), self.outer.shape[1]
        self.by_class = C * q <= _BY_CLASS
        self.on = np.zeros((q, C))  # E[s_ii a a^T]
        gram = min(len(z), max(_GRAM_POINTS, len(z) // 4))
        self.off = np.zeros((q * C, C)) if self.by_class else np.empty((gram, C))  # E[p_i p_j a a^T], or p
        self.fourth = np.zeros(2)  # sum_i E[s_ii^2 |a|^4], sum_{i != j} E[s_ij^2 |a|^4]

    def add(self, rows: slice, p: Array) -> None:
        """Take the points' probabilities (rows, C)."""
        outer, length4, squares = self.outer[rows], self.length4[rows], p * p
        if self.by_class:
            self.off += (outer[:, :, None] * p[:, None, :]).reshape(len(p), -1).T @ p
        elif rows.start < len(self.off):
            self.off[rows] = p[: len(self.off) - rows.start]
        off = squares.sum(1) ** 2 - np.vecdot(squares, squares)
        s = np.subtract(p, squares, out=squares)
        self.on += outer.T @ s
        self.fourth += np.vecdot(s, s) @ length4, off @ length4

    def squares(self, other: Output, N: float, d: float) -> tuple[float, float]:
        """Means over i and over i != j of E||H_ij||_F^2."""
        C = self.on.shape[1]
        if self.by_class:
            products = (self.off * other.off).reshape(-1, C, C).sum(0)
            off = products.sum() - np.trace(products)
        else:
            off = self._gram(other)
        fourth = (self.fourth + other.fourth) / 2
        on, off = ((1 - 1 / N) * np.array([(self.on * other.on).sum(), off]) + fourth / N) / (C, C * (C - 1))
        return float(on), float(off)

    def _gram(self, other: Output) -> float:
        """sum_{i != j} E[p_i p_j p'_i p'_j (a.a')^2] over the first points of both sets."""
        rows, C = self.off.shape
        products, squares = np.zeros((2, rows, rows))
        step = max(1, _ENTRIES // rows)
        for start in range(0, C, step):
            p, q = (s.off[:, start : start + step] for s in (self, other))
            products += p @ q.T
            squares += (p * p) @ (q * q).T
        left, right = (s.weights[:rows] * (len(s.weights) / rows) for s in (self, other))
        kernel = (self.a[:rows] @ other.a[:rows].T) ** 2
        return float(left @ (kernel * (products**2 - squares)) @ right)


class Cross:
    """Sums over one point set for the blocks between the layers, both terms of (18); only for W = I and N, d = inf.

    The means over i and j of ||E[r_j 1_i x]||^2, r_j = p_j - 1/C, and of ||E[q_ij x a^T]||_F^2,
    q_ij = 1_i p_j (v_ji - E_p v_i), are sums over pairs of points from both sets. The sums over classes j of r_j r'_j
    and of q_ij q'_ij are products of (points, classes) matrices.
    """

    def __init__(self, u: Array, z: Array, weights: Array, V: Array) -> None:
        self.u, self.active, self.a, self.V = u, z > 0, np.maximum(z, 0), V
        self.weights, self.p = weights, np.empty((len(z), len(V)))

    def add(self, rows: slice, p: Array) -> None:
        """Take the points' probabilities (rows, C)."""
        self.p[rows] = p

    def squares(self, other: Cross, N: float, d: float) -> tuple[float, float]:
        """Means over i and j of the squares of both expectations."""
        C, m = self.V.shape
        residual = (self.p - 1 / C) @ (other.p - 1 / C).T * (self.active @ other.active.T.astype(float))
        gauss_newton = np.zeros_like(residual)
        for i in range(m):
            left, right = (s.p * (s.V[:, i] - (s.p @ s.V[:, i])[:, None]) * s.active[:, i, None] for s in (self, other))
            gauss_newton += left @ right.T
        along = self.u @ other.u.T
        terms = residual * along, gauss_newton * along * (self.a @ other.a.T)
        return tuple(float(self.weights @ term @ other.weights) / (C * m) for term in terms)


def _outer(v: Array, weights: Array) -> Array:
    """Distinct entries (n, q) of w v v^T, scaled so that their dot products are the matrices' inner products."""
    i, j = _pairs(v.shape[1])
    return v[:, i] * v[:, j] * (np.where(i == j, 1, math.sqrt(2)) * weights[:, None])


def probabilities(a: Array, V: Array) -> Iterator[tuple[slice, Array]]:
    """Yield slices of points, and softmax(a V^T) of each."""
    step = max(1, _ENTRIES // max(len(V), _BY_CLASS))
    for start in steps(range(0, len(a), step)):
        rows = slice(start, min(len(a), start + step))
        p = a[rows] @ V.T
        p -= p.max(1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(1, keepdims=True)
        yield rows, p


def normal_points(points: int, dims: int, rng: np.random.Generator) -> Array:
    """Points (points, dims) for means over N(0, I): a Sobol set with a random shift modulo 1.

    Raises ValueError, MemoryError.
    """
    if dims > qmc.Sobol.MAXDIM:
        raise ValueError(f"m, d: expected one of them to be at most {qmc.Sobol.MAXDIM}; got a rank of {dims}")
    require(8 * 8 * points * dims, f"{points} points in {dims} dimensions")
    return ndtri(np.maximum((_sobol(points, dims) + rng.random(dims)) % 1, 2.0**-64))


def stretched(g: Array) -> tuple[Array, Array]:
    """Turn points of N(0, I) into points (n, dims) of larger variance with importance weights (n,) for N(0, I).

    Factors like e^{k |a|^2 / m} give large points much of the integral. With the variance 1 + (2 / dims)^1/2, the
    variance of the weights is about 1/2 in any dimension.
    """
    n, dims = g.shape
    variance = 1 + math.sqrt(2 / dims)
    weights = variance ** (dims / 2) / n * np.exp(-(variance - 1) / 2 * (g**2).sum(1))
    return g * math.sqrt(variance), weights


@lru_cache(maxsize=8)
def _sobol(points: int, dims: int) -> Array:
    return qmc.Sobol(dims, scramble=True, rng=0).random(points)


@cache
def _pairs(size: int) -> tuple[Array, Array]:
    """Indices (i, j) of the pairs i <= j."""
    return np.triu_indices(size)
