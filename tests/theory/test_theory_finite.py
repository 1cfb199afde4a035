"""Theorem 2 of hessext.theory at finite C, and at given weights, against known values and exact Hessians."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from helpers.agreement import close, within

import hessext
from hessext import theory
from hessext.theory import _given_weights, _replica

REPLICA = [  # m, C, D0, D2, O2, U1n, U2n
    (3, 2, 0.05931027136, 0.02085007849, 0.003353825507, 0.1860146741, 0.1860146741),
    (3, 1000, 0.1657563809, 0.05545343587, 0.000143582873, 4.876550571e-05, 8.395323195e-10),
    (3, 10**12, 0.1666666667, 0.05555555556, 4.480542687e-13, 1.828726315e-22, 4.701634152e-41),
    (8, 10, 0.05151768932, 0.006966096183, 0.0004236525959, 0.2590777612, 0.005845570747),
    (8, 10**6, 0.06249983791, 0.007812501256, 1.108143676e-08, 9.335112267e-11, 5.942127754e-22),
]


@pytest.mark.parametrize(("m", "C", "D0", "D2", "O2", "U1n", "U2n"), REPLICA)
def test_replica_moments(m, C, D0, D2, O2, U1n, U2n):
    close(theory.replica_moments(m, C), (D0, D2, O2, U1n, U2n), 1.5e-9)


def test_replica_moments_meet_the_limit():
    moments, m, C = theory.replica_moments(16, 10**9), 16, 10**9
    close((moments.D2, C * moments.O2), (0.5 / m**2, theory.h1(m) / m**2), 1e-6)
    close((C**2 * moments.U1n, C**4 * moments.U2n), [theory.fourth_moment(k / m, m) for k in (1, 2)], 1e-5)


@pytest.mark.parametrize("C", [2, 10**12])
@pytest.mark.parametrize("m", [1, 2, 8, 60, 1000, 10**4])
def test_radii_cover_the_law_of_the_length(m, C):
    nodes = list(_replica._radii(m, C))
    found = [[at.any, at.one.sum(), at.two.sum(), at.any * m * at.beta**2] for at in nodes]
    close(np.sum(found, 0), (1 - 0.5**m, 0.5, 0.25 * (m > 1), m / 2), 1e-10)


def test_replica_moments_of_many_neurons():
    """As m grows m D0 is a smooth function of 1/m: a parabola fits four of its values."""
    sizes = np.array([500, 1000, 2000, 4000])
    values = [m * theory.replica_moments(int(m), 100).D0 for m in sizes]
    parabola = np.polynomial.Polynomial.fit(1 / sizes, values, 2)
    close(parabola(1 / sizes), values, 1e-8)
    close(values[0], values[-1], 1e-3)


TWO_REPLICAS = [  # m, C, D1, O1, U1, U2 and their standard errors
    (3, 10, (0.0211935, 0.00057497, 0.0079644, 0.00016398), (5e-5, 6e-6, 6e-6, 3e-7)),
    (8, 100, (0.00383233, 1.36357e-5, 0.00050816, 8.62986e-8), (1e-6, 1e-7, 6e-7, 2e-10)),
]


@pytest.mark.parametrize(("m", "C", "means", "errors"), TWO_REPLICAS)
def test_two_replicas(m, C, means, errors):
    moments = theory.replica_moments(m, C)
    hidden, output = theory.hidden_ce(1e-9, m, C, draws=512), theory.output_ce(m, C, draws=512)
    found, own = (*hidden.value[:2], *output.value[:2]), (*hidden.error[:2], *output.error[:2])
    within_errors = np.abs(np.subtract(found, means)) / np.hypot(own, errors)
    assert (within_errors < 3.5).all() and (np.divide(own, means) < 0.1).all()
    close(
        theory.hidden_ce(2.0, m, C, draws=2).value.diagonal - theory.hidden_ce(1.0, m, C, draws=2).value.diagonal,
        moments.D2,
    )
    at_9, wide = theory.output_ce(m, C, N=9, draws=2).value, theory.output_ce(m, C, draws=2).value
    close(at_9.off_diagonal, 8 / 9 * wide.off_diagonal + moments.U2n / 9)


def test_estimates_repeat_and_improve():
    first, again, other = (theory.hidden_ce(1, 4, 5, draws=64, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert theory.hidden_ce(1, 4, 5, draws=1024).error.diagonal < 0.6 * first.error.diagonal
    # the ratio of two classes' norms is 1 in every draw
    assert theory.output_ce(4, 2, draws=64).error.ratio < 1e-12


SIZES = [(20, 6, 4, 5), (15, 3, 5, 4), (40, 12, 3, 20), (12, 1, 2, 3), (10, 5, 1, 4)]  # N, d, m, C


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize(("N", "d", "m", "C"), SIZES)
def test_given_weights_against_hessians(N, d, m, C, loss):
    generator = torch.Generator().manual_seed(N)
    W = torch.randn(m, d, generator=generator, dtype=torch.float64) / d**0.5
    V = 1.5 * torch.randn(C, m, generator=generator, dtype=torch.float64) / m**0.5
    samples = []
    for _ in range(400):
        x = torch.randn(N, d, generator=generator, dtype=torch.float64)
        H = hessext.one_hidden(W, V, x, torch.zeros(N, dtype=torch.int64), loss=loss)
        hidden, output = H["hidden"].ratio(), H["output"].ratio()
        samples.append((hidden.diagonal / d, hidden.off_diagonal / d, output.diagonal, output.off_diagonal))
    hidden, output = theory.given_weights(W, V, N, loss=loss, points=8192)
    within(np.array(samples), (*hidden[:2], *output[:2]))


def test_given_weights_both_ways_of_the_output_layer():
    """Class by class and points x points agree, and neither depends on the chunk."""
    rng = np.random.default_rng(0)
    W, V = torch.from_numpy(rng.standard_normal((3, 9)) / 3), torch.from_numpy(rng.standard_normal((30, 3)))
    results = []
    for by_class, entries, gram in ((1024, 1 << 18, 4096), (0, 1 << 18, 4096), (0, 1 << 12, 4096)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_given_weights, "_BY_CLASS", by_class)
            patch.setattr(_given_weights, "_ENTRIES", entries)
            patch.setattr(_given_weights, "_GRAM_POINTS", gram)
            results.append(np.array(theory.given_weights(W, V, 10, points=512)))
    close(results[1], results[0], 1e-10)
    close(results[2], results[0], 1e-10)


def test_given_weights_is_unbiased_in_points():
    rng = np.random.default_rng(0)
    W, V = torch.from_numpy(rng.standard_normal((2, 4)) / 2), torch.from_numpy(rng.standard_normal((40, 2)))
    few = np.array(
        [[*h[:2], *o[:2]] for h, o in (theory.given_weights(W, V, 10, points=16, seed=s) for s in range(400))]
    )
    hidden, output = theory.given_weights(W, V, 10, points=16384)
    within(few, (*hidden[:2], *output[:2]))


def test_averages_at_finite_size_are_means_of_given_weights():
    hidden = theory.hidden_ce(None, 3, 4, N=20, d=10, draws=400)
    output = theory.output_ce(3, 4, N=20, d=10, draws=400)
    generator, samples = torch.Generator().manual_seed(3), []
    for _ in range(600):
        W = torch.randn(3, 10, generator=generator, dtype=torch.float64) / 10**0.5
        V = torch.randn(4, 3, generator=generator, dtype=torch.float64) / 3**0.5
        H = hessext.one_hidden(
            W, V, torch.randn(20, 10, generator=generator, dtype=torch.float64), torch.zeros(20).long()
        )
        on, off = H["hidden"].ratio()[:2]
        samples.append((on / 10, off / 10, *H["output"].ratio()[:2]))
    samples = np.array(samples)
    error = np.hypot(samples.std(0) / 600**0.5, (*hidden.error[:2], *output.error[:2]))
    assert (np.abs(samples.mean(0) - (*hidden.value[:2], *output.value[:2])) < 4 * error).all()


@pytest.mark.parametrize("m", [10**9, 10**15, 2**53])
def test_digits_are_kept_where_there_are_many_neurons(m):
    """m -> inf of (1 + O(1/m))^m, by mpmath at that m."""
    with mpmath.workdps(60):
        t = mpmath.mpf(1) / m
        rest = 1 - t * t
        Q = (mpmath.pi / 2 + mpmath.asin(t)) / (2 * mpmath.pi * mpmath.sqrt(rest))
        Q1 = (t * Q + 1 / (2 * mpmath.pi)) / rest
        r = (1 - 2 * t) ** mpmath.mpf(-0.5)
        h0 = (mpmath.mpf(3) / 4 + Q) ** (m - 2) * (Q + Q1 / m) ** 2
        h1 = ((1 + r) / 2) ** (m - 2) * ((r + r**3 / m) / 2) ** 2
    assert theory.h0(m) == pytest.approx(float(h0), rel=1e-14)
    assert theory.h1(m) == pytest.approx(float(h1), rel=1e-14)


def test_what_overflows_is_infinite():
    assert theory.F(0.5, 10**6) == theory.fourth_moment(0.2, 10**6) == math.inf


def test_units_without_weights_are_off():
    W, V = torch.eye(3, 4), torch.ones(2, 3)
    W[1] = 0
    for loss in ("mse", "cross_entropy"):
        hidden = theory.given_weights(W, V + torch.eye(2, 3), 10, loss=loss).hidden
        without = theory.given_weights(W[::2], (V + torch.eye(2, 3))[:, ::2], 10, loss=loss).hidden
        assert hidden.diagonal == pytest.approx(without.diagonal * 2 / 3, rel=0.2 if loss == "cross_entropy" else 1e-12)
        assert hidden.off_diagonal == pytest.approx(without.off_diagonal / 3, rel=0.5 if loss != "mse" else 1e-12)
