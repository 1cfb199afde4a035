"""Spectra of hessext.theory: the solver against closed forms and eigenvalues, the laws against exact moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import hessext
from hessext import theory


def distance(spectrum, eigenvalues):
    """Kolmogorov-Smirnov distance; eigenvalues that are 0 to rounding count as 0."""
    eigenvalues = np.where(np.abs(eigenvalues) < 1e-12 * np.abs(eigenvalues).max(), 0.0, eigenvalues)
    points, counts = np.unique(eigenvalues, return_counts=True)
    above = np.cumsum(counts) / len(eigenvalues)
    below = above - counts / len(eigenvalues)
    cdf = spectrum.cdf(points)
    return max(np.abs(cdf - above).max(), np.abs(cdf - spectrum.atom * (points == 0) - below).max())


@pytest.mark.parametrize(("gamma", "s2"), [(0.5, 1.0), (2.0, 0.5), (1.0, 2.0), (8.0, 0.25)])
def test_marchenko_pastur(gamma, s2):
    law = theory.marchenko_pastur(gamma, s2)
    a, b = law.support
    mass = quad(law.density, a, b, limit=200)[0]
    assert law.atom == max(0, 1 - 1 / gamma) and mass + law.atom == pytest.approx(1, abs=1e-7)
    for k in (1, 2, 3):
        assert quad(lambda x, k=k: x**k * law.density(x), a, b, limit=200)[0] == pytest.approx(law.moment(k), rel=1e-7)
    x = a + (b - a) * np.array([0.2, 0.5, 0.9])
    part = [quad(law.density, a, t, limit=200)[0] + law.atom for t in x]
    np.testing.assert_allclose(law.cdf(x), part, atol=1e-7)
    np.testing.assert_allclose(law.density(x), np.sqrt((b - x) * (x - a)) / (2 * np.pi * gamma * s2 * x), rtol=1e-10)
    np.testing.assert_allclose(law.cdf([-1.0, 0.0, b, 2 * b]), [0, law.atom, 1, 1], atol=1e-12)
    assert law.density(-1.0) == law.density(2 * b) == 0


@pytest.mark.parametrize(("gamma", "s2"), [(0.5, 1.0), (2.0, 0.5), (4.0, 0.25)])
def test_solver_at_one_atom_is_the_closed_form(gamma, s2):
    law, spectrum = theory.marchenko_pastur(gamma, s2), theory.Spectrum(gamma, [s2])
    z = np.array([[0.3 + 0.1j, -1 + 2j], [5 + 1e-3j, 1e3j]])
    np.testing.assert_allclose(spectrum.stieltjes(z), law.stieltjes(z), rtol=1e-9)
    x = law.support[1] * np.array([-1, 0.01, 0.3, 0.6, 0.95, 2])
    np.testing.assert_allclose(spectrum.density(x), law.density(x), atol=1e-6)
    np.testing.assert_allclose(spectrum.cdf(x), law.cdf(x), atol=1e-6)
    assert spectrum.cdf(0.0) == pytest.approx(law.atom, abs=1e-6)
    assert spectrum.atom == law.atom and spectrum.moment(5) == pytest.approx(law.moment(5), rel=1e-12)


def test_solver_with_both_signs_and_zeros():
    rng = np.random.default_rng(0)
    tau, weights = np.array([-2.0, -0.3, 0.0, 1.0, 1.7]), np.array([1.0, 2.0, 3.0, 3.0, 1.0])
    spectrum = theory.Spectrum(1.5, tau, weights)
    assert spectrum.atom == pytest.approx(1 - 0.7 / 1.5)
    z = np.array([0.2 + 1e-3j, -3 + 0.5j, 1j])
    s = spectrum.stieltjes(z)
    np.testing.assert_allclose(s * (spectrum_sum(tau, weights, 1.5, s) - z), 1, rtol=1e-9)
    assert (s.imag > 0).all()
    x = np.linspace(-12, 12, 4801)
    mass = np.trapezoid(spectrum.density(x), x)
    assert mass + spectrum.atom == pytest.approx(1, abs=5e-3)
    d, N = 600, 400
    X = rng.standard_normal((N, d))
    values = rng.permutation(np.repeat(tau, (weights / weights.sum() * N).astype(int)))
    assert distance(spectrum, np.linalg.eigvalsh((X.T * values) @ X / N)) < 0.012


def spectrum_sum(tau, weights, gamma, s):
    """E[tau / (1 + gamma tau s)]."""
    return (tau / (1 + gamma * tau * s[:, None])) @ (weights / weights.sum())


@pytest.mark.parametrize("block", ["diagonal", "off_diagonal"])
@pytest.mark.parametrize("C", [2, 10, 66, 1000, 10**6])
def test_linear_law(C, block):
    spectrum = theory.linear_spectrum(0.5, C, block)
    squares = theory.linear_ce(0.5, C)
    mean = theory.softmax_moment(C, 1, 1) * (C - 1 if block == "diagonal" else 1)
    assert spectrum.moment(1) == pytest.approx(mean, rel=1e-10)
    assert spectrum.moment(2) == pytest.approx(getattr(squares, block), rel=1e-10)
    tau, weights = spectrum.tau, spectrum.weights
    half = np.sqrt(tau) @ weights  # E sqrt(tau) is not put in
    if block == "off_diagonal":
        assert half == pytest.approx(theory.softmax_moment(C, 0.5, 0.5), rel=2e-3)
    x = np.geomspace(1e-4 * mean, 40 * mean * (4 if C == 2 else 10), 300)
    density = spectrum.density(x)
    assert np.trapezoid(density, x) + spectrum.cdf(x[0]) == pytest.approx(1, abs=5e-3)
    assert (np.diff(spectrum.cdf(x)) > -1e-7).all()
    # density is the derivative of cdf
    middle = np.sqrt(x[150] * x[151])
    slope = np.diff(spectrum.cdf([0.999 * middle, 1.001 * middle]))[0] / (0.002 * middle)
    assert slope == pytest.approx(float(spectrum.density(middle)), rel=1e-3)


@pytest.mark.parametrize(("block", "square"), [("diagonal", math.e), ("off_diagonal", math.e**2)])
def test_lognormal_limits(block, square):
    limit = theory.linear_spectrum(2.0, math.inf, block)
    assert limit.moment(1) == pytest.approx(1, rel=1e-10) and limit.moment(2) == pytest.approx(1 + 2 * square, rel=1e-8)
    near, scale = theory.linear_spectrum(2.0, 10**6, block), 10.0 ** (6 if block == "diagonal" else 12)
    x = np.geomspace(0.01, 20, 40)
    np.testing.assert_allclose(near.cdf(x / scale), limit.cdf(x), atol=2e-3)


@pytest.mark.parametrize("C", [3, 50])
def test_linear_eigenvalues(C):
    rng, d, N = np.random.default_rng(0), 400, 800
    X, W = rng.standard_normal((N, d)), np.linalg.qr(rng.standard_normal((d, C)))[0].T
    H = hessext.linear(torch.from_numpy(W), torch.from_numpy(X))["output"]
    p = np.exp(X @ W.T)
    p /= p.sum(1, keepdims=True)
    for block, sign, j, tau in (
        ("diagonal", 1, 0, p[:, 0] * (1 - p[:, 0])),
        ("off_diagonal", -1, 1, p[:, 0] * p[:, 1]),
    ):
        eigenvalues = np.linalg.eigvalsh(sign * H.block(0, j).numpy())
        assert distance(theory.Spectrum(0.5, tau), eigenvalues) < 0.01  # the solver
        assert distance(theory.linear_spectrum(0.5, C, block), eigenvalues) < 0.05  # and a draw's own fluctuation


def test_hidden_eigenvalues():
    generator, d, m, C = torch.Generator().manual_seed(3), 300, 4, 20
    W = torch.randn(m, d, generator=generator, dtype=torch.float64) / d**0.5
    V = torch.randn(C, m, generator=generator, dtype=torch.float64) / m**0.5
    X = torch.randn(600, d, generator=generator, dtype=torch.float64)
    H = hessext.one_hidden(W, V, X, torch.zeros(600, dtype=torch.int64))["hidden"]
    for i, j in ((0, 0), (1, 0)):
        spectrum = theory.hidden_spectrum(0.5, V, i, j, W=W)
        eigenvalues = np.linalg.eigvalsh(H.block(i, j).numpy())
        assert distance(spectrum, eigenvalues) < 0.08  # nearly all of it the realized share of active samples
        assert abs(spectrum.moment(1) - eigenvalues.mean()) < 0.1 * np.abs(eigenvalues).mean()
    wide = theory.hidden_spectrum(3.0, V, 0, 0)
    assert wide.atom == pytest.approx(1 - 0.5 / 3, abs=1e-3) and wide.cdf(-1e-9) < 1e-6
    signed = theory.hidden_spectrum(3.0, V, 0, 1)
    assert signed.atom == pytest.approx(1 - 0.25 / 3, abs=1e-3) and 0 < signed.cdf(-1e-6) < 1 - signed.atom


def test_hidden_mse_eigenvalues():
    rng, d, N = np.random.default_rng(0), 400, 1000
    X, w = rng.standard_normal((N, d)), rng.standard_normal((2, d))
    active = (X @ w.T > 0).all(1)
    q = active.mean()
    eigenvalues = np.linalg.eigvalsh(2 * X[active].T @ X[active] / N)
    assert distance(theory.marchenko_pastur(d / N / q, 2 * q), eigenvalues) < 0.01


OPPOSITE = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [0.0, 1.0]])

BAD = [
    (lambda: theory.marchenko_pastur(0), ValueError, "gamma: expected a finite number > 0"),
    (lambda: theory.marchenko_pastur(1, -1), ValueError, "s2"),
    (lambda: theory.Spectrum(1, []), ValueError, "tau: expected a vector with at least one element"),
    (lambda: theory.Spectrum(1, [0.0, 0.0]), ValueError, "tau: expected a value that is not 0"),
    (lambda: theory.Spectrum(1, [math.nan]), ValueError, "tau: expected finite"),
    (lambda: theory.Spectrum(1, "tau"), TypeError, "tau: expected numbers"),
    (lambda: theory.Spectrum(1, [1.0, 2.0], [1.0]), ValueError, "weights: expected 2 numbers"),
    (lambda: theory.Spectrum(1, [1.0, 2.0], [1.0, -1.0]), ValueError, "weights"),
    (lambda: theory.Spectrum(1, [1.0]).stieltjes([1.0 + 0j]), ValueError, "z: expected a positive imaginary part"),
    (lambda: theory.Spectrum(1, [1.0]).moment(-1), ValueError, "k: expected at least 0"),
    (lambda: theory.linear_spectrum(1, 1), ValueError, "C: expected at least 2"),
    (lambda: theory.linear_spectrum(1, 3, "both"), ValueError, "block: expected 'diagonal' or 'off_diagonal'"),
    (lambda: theory.hidden_spectrum(1, torch.eye(3), 0, 3), IndexError, "block: expected a pair"),
    (lambda: theory.hidden_spectrum(1, torch.ones(1, 3), 0, 1), ValueError, "V: expected at least 2 rows"),
    (lambda: theory.hidden_spectrum(1, torch.ones(3, 4), 0, 1), ValueError, "V: expected columns 0 and 1 not"),
    (lambda: theory.hidden_spectrum(1, torch.eye(3), 0, 1, W=OPPOSITE), ValueError, "W, points: expected neurons 0"),
    (lambda: theory.hidden_spectrum(1, torch.eye(3), 0, 1, W=torch.ones(2, 5)), ValueError, "W: expected shape"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
