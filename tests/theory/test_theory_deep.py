"""Networks of any depth under MSE, beside one hidden layer, wide limits and simulated Hessians."""

import math

import numpy as np
import pytest
import torch
from helpers.agreement import close, within

import hessext
from hessext import theory
from hessext._random import lecun

SIZES = [(64, 32), (20, 3), (5, 1), (1, 7)]  # N, d


@pytest.mark.parametrize(("m", "C"), [(16, 10), (3, 1), (1, 5)])
def test_one_hidden_layer(m, C):
    for N, d in SIZES:
        hidden, output = theory.deep_mse(None, [m, C], N=N, d=d, draws=1024)
        close(hidden.value, theory.hidden_mse(None, m, C, N=N, d=d), 1e-12)
        expected = theory.output_mse(m, N=N, d=d)
        assert abs(output.value.diagonal - expected.diagonal) <= 4 * output.error.diagonal + 1e-12
        assert output.value.off_diagonal == output.error.off_diagonal == 0
    hidden, output = theory.deep_mse(0.3, (m, C), draws=1024)
    close(hidden.value, theory.hidden_mse(0.3, m, C), 1e-12)
    assert hidden.error.diagonal < 1e-12
    assert abs(output.value.diagonal - theory.output_mse(m).diagonal) < 4 * output.error.diagonal


def test_one_layer_is_a_linear_model():
    (layer,) = theory.deep_mse(0.5, [7])
    close(layer.value[:2], theory.linear_mse(0.5)[:2], 1e-12)
    (layer,) = theory.deep_mse(None, [7], N=30, d=12)
    close(layer.value[:2], theory.linear_mse(None, N=30, d=12)[:2], 1e-12)
    assert theory.effective_ranks([7]) == (7,)


@pytest.mark.parametrize("widths", [(12, 8, 16, 5), (10, 5, 40), (24, 24, 1)])
def test_against_hessians(widths):
    N, d = 16, 12
    samples = []
    for seed in range(225):
        weights = lecun(*zip(widths, (d, *widths), strict=False), seed=seed, dtype=torch.float64)
        x, y = hessext.datasets.gaussian(N, d, widths[-1], seed=seed, dtype=torch.float64)
        H = hessext.feed_forward(weights, x, y, loss="mse")
        samples.append([H[layer].ratio()[:2] for layer in H.layers])
    samples = np.array(samples) / np.array([d] + [1] * (len(widths) - 1))[:, None]
    for layer, found in enumerate(theory.deep_mse(None, widths, N=N, d=d, draws=1024)):
        on, off = samples[:, layer].T
        error = np.hypot(samples[:, layer].std(0) / 15, found.error[:2])
        assert (np.abs(samples[:, layer].mean(0) - found.value[:2]) <= 4 * error).all()
        ratio = off.mean() / on.mean()
        error = math.hypot((off - ratio * on).std() / on.mean() / 15, found.error.ratio)
        assert abs(ratio - found.value.ratio) <= 4 * error
        assert layer == len(widths) - 1 or error < 0.1 * found.value.ratio


def test_wide_layers_have_their_limit():
    """ratio = p / (T/F + 2): independent inputs at the first layer, at cos(theta) = 1/pi at the second."""
    K, C = 4096, 10
    first, second, _ = theory.deep_mse(1e-9, [K, K, C], draws=2)
    p = (math.pi - math.acos(1 / math.pi)) / (2 * math.pi)
    rank = (p * (C + 2) + (K - 1) * C / 4) / (p * (C + 2) + (K - 1) * p**2)
    assert second.value.ratio == pytest.approx(p / (C + 2), rel=0.01)
    assert first.value.ratio == pytest.approx(0.25 / (rank + 2), rel=0.01)


@pytest.mark.parametrize("widths", [(6, 4, 9, 3), (5, 8)])
def test_ranks_against_hessians(widths):
    """Of one sample, S is H of the first layer over |x|^2."""
    d, samples = 3, []
    x = torch.eye(1, d, dtype=torch.float64)
    for seed in range(500):
        weights = lecun(*zip(widths, (d, *widths), strict=False), seed=seed, dtype=torch.float64)
        B = hessext.feed_forward(weights, x, torch.zeros(1, dtype=torch.int64), loss="mse")["0"]
        samples.append((float(B.trace()), float(B.norms().square().sum())))
    C, rank = widths[-1], theory.effective_ranks(widths)[0]
    trace = 2 * C / 2 ** (len(widths) - 1)
    within(np.array(samples), (trace, trace**2 / rank))


@pytest.mark.parametrize("widths", [(300, 200, 100, 50), (1000, 30, 1000, 500), (64, 10)])
def test_ranks_combine_like_resistors_in_parallel(widths):
    ranks = []
    for scale in (100, 10**6):
        *hidden, C = widths
        *found, last = theory.effective_ranks([scale * K for K in hidden] + [C])
        expected = [1 / C + 2 * sum(1 / (scale * K) for K in hidden[layer:]) for layer in range(len(hidden))]
        close(1 / np.array(found), expected, 30 / (scale * min(hidden)))
        assert last == C
        ranks.append(found)
    assert (np.array(ranks[0]) < ranks[1]).all() and max(ranks[1]) < C


def test_draws():
    first, again, other = (theory.deep_mse(0.5, [4, 6, 5], draws=64, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    more = theory.deep_mse(0.5, [4, 6, 5], draws=1024)
    assert all(many.error.diagonal < 0.5 * few.error.diagonal for many, few in zip(more, first, strict=True))


def test_units_that_are_all_off_leave_nothing():
    *_, last = theory.deep_mse(0.5, [1] * 60, draws=2)
    assert last.value.diagonal >= 0 and last.value.off_diagonal == 0


@pytest.mark.parametrize(
    ("widths", "error", "message"),
    [
        (3, TypeError, "widths: expected a sequence, the outputs of each layer; got 3"),
        ([], ValueError, "widths: expected the outputs of 1 to 100 layers; got 0"),
        ([2] * 101, ValueError, "widths: expected the outputs of 1 to 100 layers; got 101"),
        ([3, 0], ValueError, r"widths\[1\]: expected .*; got 0"),
        ([2.5, 3], TypeError, r"widths\[0\]: expected an integer; got 2.5"),
    ],
)
def test_bad_widths_are_named(widths, error, message):
    for call in (theory.effective_ranks, lambda widths: theory.deep_mse(0.5, widths)):
        with pytest.raises(error, match=f"^{message}"):
            call(widths)


def test_memory_is_asked_for_first():
    with pytest.raises(MemoryError):
        theory.deep_mse(0.5, [2**50, 3])
