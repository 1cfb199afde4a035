"""hessext.theory against known values and against exact Hessians at small sizes."""

from __future__ import annotations

import math
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import torch
from helpers.agreement import close, within
from hypothesis import given, settings
from hypothesis import strategies as st

import hessext
from hessext import theory
from hessext.theory import _replica

# --- softmax and Theorem 1 ----------------------------------------------------------------------------------

SOFTMAX = [  # C, E lam11, E lam11^2, E lam12, E lam12^2
    (2, 1.8158092302e-01, 3.7026612086e-02, 1.8158092302e-01, 3.7026612086e-02),
    (10, 8.0531260631e-02, 1.0121421137e-02, 8.9479178478e-03, 2.2311220877e-04),
    (1000, 9.9730179811e-04, 2.6600837182e-06, 9.9830009821e-07, 7.1528186689e-12),
    (1000000, 9.9999728174e-07, 2.7182209382e-12, 9.9999828174e-13, 7.3888054072e-24),
]


@pytest.mark.parametrize(("C", "on", "on2", "off", "off2"), SOFTMAX)
def test_softmax_moments(C, on, on2, off, off2):
    a1, a2, a3, a4 = (theory.softmax_moment(C, k) for k in (1, 2, 3, 4))
    close((a1, a1 - a2, theory.softmax_moment(C, 1, 1)), (1 / C, on, off), 2e-10)
    close((a2 - 2 * a3 + a4, theory.softmax_moment(C, 2, 2)), (on2, off2), 2e-10)


@pytest.mark.parametrize("variance", [0.0, 1e-3, 0.7, 30.0, 400.0])
@pytest.mark.parametrize("C", [2, 7, 10**6, 10**12])
def test_softmax_moments_sum_to_one(C, variance):
    p1 = theory.softmax_moment(C, 1, variance=variance)
    p2, p11 = theory.softmax_moment(C, 2, variance=variance), theory.softmax_moment(C, 1, 1, variance=variance)
    close((C * p1, C * (p2 + (C - 1) * p11)), (1, 1), 1e-12)


@pytest.mark.parametrize(
    ("a", "b", "variance"), [(7, 3, 1.0), (1, 0, 2.0), (2, 2, 50.0), (1.5, 0.5, 1.0), (40, 0, 9.0)]
)
def test_two_classes_are_a_sigmoid(a, b, variance):
    def integrand(g):
        p = 1 / (1 + mpmath.exp(-mpmath.sqrt(2 * variance) * g))
        return p**a * (1 - p) ** b * mpmath.npdf(g)

    close(
        theory.softmax_moment(2, a, b, variance=variance), mpmath.quad(integrand, mpmath.linspace(-10, 10, 41)), 1e-12
    )


@settings(max_examples=15)
@given(st.integers(2, 10**7), st.floats(0.0, 30.0), st.integers(1, 5), st.integers(0, 4))
def test_softmax_moments_are_consistent(C, variance, a, b):
    # p1^a p2^b = sum over the classes that a further factor 1 = sum_k p_k can come from
    first = theory.softmax_moment(C, a, b, variance=variance)
    split = theory.softmax_moment(C, a + 1, b, variance=variance) + theory.softmax_moment(
        C, a, b + 1, variance=variance
    )
    if C > 2:
        split += (C - 2) * theory.softmax_moment(C, a, b, 1, variance=variance)
    if b == 0:  # class 2 is one of the others then
        split = theory.softmax_moment(C, a + 1, variance=variance)
        split += (C - 1) * theory.softmax_moment(C, a, 1, variance=variance)
    close(split, first, 1e-10)


LINEAR = [  # gamma, C, C^2 g11, C^4 g12
    (0.5, 2, 0.20593975, 0.82375900),
    (1, 5, 1.02184643, 2.04501466),
    (2, 100, 5.49868714, 12.42034333),
    (0.5, 1000000, 2.35910503, 4.69439927),
]


@pytest.mark.parametrize(("gamma", "C", "on", "off"), LINEAR)
def test_linear_ce(gamma, C, on, off):
    found = theory.linear_ce(gamma, C)
    close((C**2 * found.diagonal, C**4 * found.off_diagonal), (on, off), 1e-8)
    assert found.ratio == found.off_diagonal / found.diagonal


def test_linear_ce_limit():
    close(theory.linear_ce_limit(2), (6.4365636569, 15.7781121979, 15.7781121979 / 6.4365636569))
    far, limit = theory.linear_ce(1.0, 10**10), theory.linear_ce_limit(1.0)
    close((1e20 * far.diagonal, 1e40 * far.off_diagonal, 1e20 * far.ratio), limit, 1e-7)


@pytest.mark.parametrize(
    ("N", "d", "square"), [(60, 30, 0.05128410021), (2000, 1000, 0.05147889571), (2000, 4000, 0.1070254579)]
)
def test_two_classes_at_finite_size(N, d, square):
    close(theory.linear_ce(None, 2, N=N, d=d), (square, square, 1), 5e-10)
    assert theory.linear_ce(d / N, 2, N=N, d=d) == theory.linear_ce(None, 2, N=N, d=d)


def test_two_classes_in_one_dimension():
    """With N = 1 and d = 1: E[x^4 s(w x)^2], w ~ N(0, 2)."""
    x = np.linspace(-10, 10, 1001)
    normal = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    s = 0.25 / np.cosh(np.outer(x, x) / np.sqrt(2)) ** 2
    close(theory.linear_ce(None, 2, N=1, d=1).diagonal, normal @ s**2 @ (x**4 * normal), 1e-11)


def test_finite_size_meets_the_limit():
    close(theory.linear_ce(None, 7, N=2 * 10**7, d=10**7), theory.linear_ce(0.5, 7), 1e-6)
    close(theory.linear_mse(None, N=2 * 10**7, d=10**7), theory.linear_mse(0.5), 1e-6)
    close(theory.hidden_mse(None, 5, 3, N=2 * 10**7, d=10**7), theory.hidden_mse(0.5, 5, 3), 1e-6)
    close(theory.output_mse(5, N=2 * 10**8, d=10**8), theory.output_mse(5), 1e-6)


@pytest.mark.parametrize(("N", "d", "C"), [(30, 15, 5), (20, 30, 3)])
def test_linear_against_hessians(N, d, C):
    generator, samples = torch.Generator().manual_seed(0), []
    for _ in range(600):
        W = torch.randn(C, d, generator=generator, dtype=torch.float64) / d**0.5
        x = torch.randn(N, d, generator=generator, dtype=torch.float64)
        on, off, _ = hessext.linear(W, x)["output"].ratio()
        samples.append((on / d, off / d, hessext.linear(W, x, loss="mse")["output"].ratio()[0] / d))
    ce = theory.linear_ce(None, C, N=N, d=d)
    within(np.array(samples), (ce.diagonal, ce.off_diagonal, theory.linear_mse(None, N=N, d=d).diagonal))


# --- Theorem 2: MSE and the limits of C ---------------------------------------------------------------------


@pytest.mark.parametrize(("N", "d", "on", "off"), [(40, 20, 0.51875, 0.20208237), (30, 6, 0.375, 0.13872016)])
def test_hidden_mse_brackets(N, d, on, off):
    found = theory.hidden_mse(None, 3, 5, N=N, d=d)
    close((found.diagonal * 9 / (4 * 35), found.off_diagonal * 9 / (4 * 5)), (on, off), 5e-8)


@pytest.mark.parametrize(("N", "d", "m", "C"), [(12, 5, 3, 4), (7, 1, 2, 2), (9, 2, 4, 1)])
def test_mse_is_the_mean_over_weights(N, d, m, C):
    rng, samples = np.random.default_rng(1), []
    for _ in range(2000):
        W = torch.from_numpy(rng.standard_normal((m, d)) / d**0.5)
        V = torch.from_numpy(rng.standard_normal((C, m)) / m**0.5)
        hidden, output = theory.given_weights(W, V, N, loss="mse")
        samples.append((*hidden[:2], *output[:2]))
    within(np.array(samples), (*theory.hidden_mse(None, m, C, N=N, d=d)[:2], *theory.output_mse(m, N=N, d=d)[:2]))


@pytest.mark.parametrize(("gamma", "m"), [(0.5, 3), (2.0, 8)])
def test_hidden_mse_limit(gamma, m):
    on, off, ratio = theory.hidden_mse(gamma, m, 10**10)
    close(theory.hidden_mse_limit(gamma, m), (on / 1e20, off / 1e10, ratio * 1e10))
    assert theory.hidden_mse_limit(gamma, 1).off_diagonal == 0


CONSTANTS = [  # m, out diag, out off, h0/m^2, h1/m^2, h(m, 1/2), h(m, 2)
    (2, 3.73261683, math.inf, 0.09588421702, math.inf, math.inf, math.inf),
    (3, 2.996051018, 24.37604527, 0.02127590217, 0.4553418013, 0.2489468028, 0.9319595047),
    (8, 5.731580121, 10.50891219, 0.001567114261, 0.01108495406, 0.007109591291, 0.02373702238),
    (64, 144.9289235, 178.5702192, 1.856331691e-5, 0.0001066185142, 7.187257399e-5, 0.0002318003452),
]


@pytest.mark.parametrize(("m", "on", "off", "h0", "h1", "h_half", "h_two"), CONSTANTS)
def test_constants(m, on, off, h0, h1, h_half, h_two):
    close(theory.output_ce_limit(m)[:2], (on, off))
    close((theory.F(1 / m, m), theory.F(2 / m, m)), (on, off))
    close((theory.h0(m) / m**2, theory.h1(m) / m**2), (h0, h1))
    half, two = theory.hidden_ce_limit(0.5, m), theory.hidden_ce_limit(2, m)
    close((half.off_diagonal, two.off_diagonal), (h_half, h_two))
    close((half.diagonal, two.diagonal), (0.5 / m**2, 1.25 / m**2))
    close(two.ratio, h_two * m**2 / 1.25)


def test_constants_next_to_where_they_diverge():
    assert theory.output_ce_limit(1)[:2] == (math.inf, math.inf) and math.isnan(theory.output_ce_limit(1).ratio)
    assert theory.output_ce_limit(4, N=1).off_diagonal == math.inf > theory.output_ce_limit(4, N=9).diagonal
    assert theory.hidden_ce_limit(1, 1).off_diagonal == 0 == theory.hidden_mse(1, 1, 3).off_diagonal
    assert theory.cross_ce_limit(1, 2).gauss_newton == math.inf
    close((theory.fourth_moment(1 / 8, 8), theory.fourth_moment(2 / 8, 8)), (93.3881955, 599.9900519))
    close((theory.fourth_moment(1 / 5, 5), theory.fourth_moment(2 / 5, 5)), (81.10187, 5521.212), 1e-7)
    close(theory.output_ce_limit(8, N=1)[:2], (93.3881955, 599.9900519))


@pytest.mark.parametrize(("m", "gamma", "limit"), [(3, 0.5, 6.28166061), (4, 0.25, 1.350893328), (8, 0.5, 0.71843288)])
def test_cross_ce_limit(m, gamma, limit):
    close(theory.cross_ce_limit(gamma, m), (gamma / 2, limit), 1e-8)


def test_cross_ce_tends_to_its_limit():
    """Slowly: at C = 10 the limit's formula is 2.7 times too large."""
    limit = theory.cross_ce_limit(0.5, 8).gauss_newton
    found = [C**2 * theory.cross_ce(0.5, 8, C, draws=64).gauss_newton / limit for C in (10, 100, 1000)]
    close(found[0], 1 / 2.74, 0.05)
    assert found[0] < found[1] < found[2] < 1


@pytest.mark.parametrize("gamma", [0.1, 2.0])
def test_cross_ce_of_one_neuron_and_two_classes(gamma):
    """Then p = sigmoid(a delta) with delta = v_1 - v_2 ~ N(0, 2), and all is an integral over u and delta."""
    delta = np.arange(-14, 14, 0.02)  # sums over grids are accurate to rounding
    weights = np.exp(-(delta**2) / 4) * (0.02 / (4 * math.pi) ** 0.5)
    u, w = np.polynomial.legendre.leggauss(200)
    u, w = 5 * (1 + u), 5 * w
    w = w * np.exp(-(u**2) / 2) / (2 * math.pi) ** 0.5  # of u > 0, where the neuron is active
    p = 1 / (1 + np.exp(-delta[:, None] * u))
    q, r = p * (1 - p) * delta[:, None], p - 0.5
    gauss_newton = weights @ ((q * u**2) @ w) ** 2 + gamma * weights @ (q**2 * u**2) @ w
    residual = weights @ ((r * u) @ w) ** 2 + gamma * weights @ (p**2 - p + 0.5) @ w
    found = theory.cross_ce(gamma, 1, 2, draws=2048)
    close(found, (residual, gauss_newton), 0.02)
    assert abs(found.residual - residual) < 4 * found.error.residual
    assert abs(found.gauss_newton - gauss_newton) < 4 * found.error.gauss_newton
    exact = weights @ (q**2 * u**2) @ w
    close(_replica.cross_moments(1, 2)[1], exact, 1e-7)


def test_cross_residual():
    assert theory.cross_ce(0.5, 8, 1000).residual == pytest.approx(0.5 / 2000, rel=2e-3)  # ~ gamma / (2 C)
    close(theory.cross_mse(0.5, 8, 10), (1.1013, 0.9949), 1e-4)
    close(theory.cross_mse(0.5, 8, 500), (0.9969, 0.9949), 1e-4)


def test_cross_ce_against_hessians():
    """At d = 150 the Gauss-Newton term is 2 to 4% larger than in the limit; one draw deviates by 15%."""
    N, d, m, C = 300, 150, 8, 10
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(40):
        W = torch.randn(m, d, generator=generator, dtype=torch.float64) / d**0.5
        V = torch.randn(C, m, generator=generator, dtype=torch.float64) / m**0.5
        x = torch.randn(N, d, generator=generator, dtype=torch.float64)
        H = hessext.one_hidden(W, V, x, torch.randint(C, (N,), generator=generator))
        terms = H.residual()["hidden", "output"], H.gauss_newton()["hidden", "output"]
        found.append([term.norms().square().mean().item() for term in terms])
    expected = theory.cross_ce(0.5, m, C)
    residual, gauss_newton = np.mean(found, 0)
    close(residual, expected.residual, 0.05)
    close(gauss_newton, expected.gauss_newton, 0.1)


def test_cross_mse_against_hessians():
    """At orthogonal weights V adds no noise and d only as (d + 2) / N: 4 standard errors are 3.5%."""
    N, d, m, C = 80, 40, 4, 20
    generator, samples, orthogonal = torch.Generator().manual_seed(0), [], torch.nn.init.orthogonal_
    for _ in range(800):
        W = orthogonal(torch.empty(m, d, dtype=torch.float64), generator=generator)
        V = orthogonal(torch.empty(C, m, dtype=torch.float64), (C / m) ** 0.5, generator)
        x = torch.randn(N, d, generator=generator, dtype=torch.float64)
        H = hessext.one_hidden(W, V, x, torch.randint(C, (N,), generator=generator), loss="mse")
        terms = H.residual(), H.gauss_newton()
        samples.append([t["hidden", "output"].norms().square().mean().item() for t in terms])
    within(np.array(samples), (1 - 1 / N) * np.array(theory.cross_mse((d + 2) / (N - 1), m, C)))


# --- bad input ----------------------------------------------------------------------------------------------

W32, V32 = torch.ones(3, 4), torch.eye(3)

BAD = [
    (lambda: theory.linear_ce(0, 3), ValueError, r"gamma: expected a finite number > 0; got 0"),
    (lambda: theory.linear_ce("1", 3), TypeError, r"gamma: expected a number; got '1'"),
    (lambda: theory.linear_ce(None, 3), TypeError, r"gamma: expected a number; got None"),
    (lambda: theory.linear_ce(math.nan, 3), ValueError, r"gamma: expected a finite"),
    (lambda: theory.linear_ce(1, 1), ValueError, r"C: expected at least 2; got 1"),
    (lambda: theory.linear_ce(1, 2.0), TypeError, r"C: expected an integer; got 2.0"),
    (lambda: theory.linear_ce(1, True), TypeError, r"C: expected an integer; got True"),
    (lambda: theory.linear_ce(1, 3, N=5), ValueError, r"N, d: expected both or neither; got N=5, d=None"),
    (lambda: theory.linear_ce(1, 3, N=5, d=6), ValueError, r"gamma: expected None or d / N = 1.2; got 1"),
    (lambda: theory.linear_ce_limit(-1), ValueError, "gamma"),
    (lambda: theory.linear_mse(1, N=0, d=3), ValueError, "N: expected at least 1; got 0"),
    (lambda: theory.hidden_mse(1, 0, 3), ValueError, "m: expected at least 1; got 0"),
    (lambda: theory.hidden_mse(1, 1, 0), ValueError, "C: expected at least 1; got 0"),
    (lambda: theory.hidden_mse_limit(0, 3), ValueError, "gamma"),
    (lambda: theory.hidden_ce_limit(math.inf, 3), ValueError, "gamma"),
    (lambda: theory.output_ce_limit(3.5), TypeError, "m: expected an integer"),
    (lambda: theory.output_ce(3, 4, d=5), ValueError, "N, d: expected both"),
    (lambda: theory.hidden_ce(1, 3, 4, draws=1), ValueError, "draws: expected at least 2; got 1"),
    (lambda: theory.hidden_ce(1, 3, 4, points=100), ValueError, "points: expected a power of 2; got 100"),
    (lambda: theory.hidden_ce(1, 3, 4, seed=-1), ValueError, "seed"),
    (lambda: theory.replica_moments(3, 1), ValueError, "C: expected at least 2"),
    (lambda: theory.softmax_moment(3, -1), ValueError, "powers: expected a finite number >= 0; got -1"),
    (lambda: theory.softmax_moment(2, 1, 1, 1), ValueError, "powers: expected at most C = 2; got 3"),
    (lambda: theory.softmax_moment(3, 1, variance=-1.0), ValueError, "variance"),
    (lambda: theory.h0(1), ValueError, "m: expected at least 2"),
    (lambda: theory.F(-0.5, 3), ValueError, "t: expected a finite number >= 0"),
    (lambda: theory.cross_ce(1, 3, 1), ValueError, "C"),
    (lambda: theory.given_weights(W32, V32[:, :2], 5), ValueError, r"V: expected shape \(any, 3\); got \(3, 2\)"),
    (lambda: theory.given_weights(W32, V32[:1], 5), ValueError, "V: expected at least 2 rows"),
    (lambda: theory.given_weights(W32.numpy(), V32, 5), TypeError, "W: expected a torch.Tensor"),
    (lambda: theory.given_weights(W32, V32 * math.nan, 5), ValueError, "V: expected finite"),
    (lambda: theory.given_weights(W32, V32, 5, loss="hinge"), ValueError, "loss: expected 'cross_entropy' or 'mse'"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_import_is_lazy():
    """Importing the package alone does not import scipy."""
    code = (
        "import sys, hessext; assert 'scipy' not in sys.modules; import hessext.theory; assert 'scipy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
