"""Inputs at the edges of float32 and float64: what autograd says, or a number that is the same over a power of two."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.agreement import close

import hessext
from hessext import autograd

F32, F64 = torch.float32, torch.float64


def inputs(N=12, d=5, C=4, dtype=F64):
    g = torch.Generator().manual_seed(3)
    W, x = torch.randn(C, d, generator=g, dtype=F64), torch.randn(N, d, generator=g, dtype=F64)
    return W.to(dtype), x.to(dtype), torch.randint(C, (N,), generator=g)


def network(d=5, C=4, m=3, dtype=F64):
    W, x, y = inputs(d=d, C=C, dtype=dtype)
    V = torch.randn(C, m, generator=torch.Generator().manual_seed(4), dtype=F64).to(dtype)
    return W[:m] if m <= C else W.repeat(m, 1)[:m], V, x, y


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("factor", [1e-19, 1e17], ids=str)
def test_small_and_large_inputs_in_float32(factor, bias):
    """Products of two features are below or above float32, with logits of ordinary size."""
    W, x, _ = inputs()
    x, W = (x * factor).float(), (W / factor).float()
    b = torch.zeros(4) if bias else None
    H = hessext.linear(W, x, bias=b)
    wide = hessext.linear(W.double(), x.double(), bias=None if b is None else b.double())
    exact = wide.dense()
    torch.testing.assert_close(H.dense(), exact.float(), rtol=1e-5, atol=2e-45)
    part = wide["output"].dense()
    torch.testing.assert_close(H["output"].dense(part.float()), part.float(), rtol=1e-5, atol=2e-45)
    torch.testing.assert_close(H.diagonal(), exact.diagonal().float(), rtol=1e-5, atol=2e-45)
    close(H["output"].ratio().ratio, wide["output"].ratio().ratio, 1e-5)
    v = torch.randn(len(exact), generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(H @ v, (exact @ v.double()).float(), rtol=1e-4, atol=2e-45)


@pytest.mark.parametrize("term", ["full", "gauss_newton"])
@pytest.mark.parametrize("power", [-520, 520])
def test_products_of_features_that_no_float_holds(power, term):
    """Activations and inputs of 2^520 and 2^-520 under a curvature that makes their products ordinary."""
    W, V, x, y = network(d=2, C=12, m=6)
    exact, H = (hessext.one_hidden(W, V * 2.0**-p, x * 2.0**p, y) for p in (0, power))
    if term == "gauss_newton":
        exact, H = exact.gauss_newton(), H.gauss_newton()
    expected, found = exact["hidden", "output"], H["hidden", "output"]
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(12))
    torch.testing.assert_close(found.blocks(pairs), expected.blocks(pairs) * 2.0**power, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.dense(), expected.dense() * 2.0**power, rtol=1e-10, atol=0)


@pytest.mark.parametrize("N", [3, 40], ids=["blocks", "pairs of samples"])
@pytest.mark.parametrize("power", [-300, 300])
@pytest.mark.parametrize("key", ["hidden", "output", ("hidden", "output")], ids=str)
def test_norms_of_what_squares_cannot_hold(key, power, N):
    """Norms of 2^600 and 2^-600, whose squares are no floats."""
    W, V, x, y = network()
    x, y = x[:N].repeat(max(1, N // len(x)), 1), y[:N].repeat(max(1, N // len(y)))
    H = hessext.one_hidden(W * 2.0**-power, V, x * 2.0**power, y)
    ordinary = hessext.one_hidden(W, V, x, y)
    units = {"hidden": 2 * power, "output": 0, ("hidden", "output"): power}[key]
    torch.testing.assert_close(H[key].norms(), ordinary[key].norms() * 2.0**units, rtol=1e-12, atol=0)
    close(H[key].norm(), ordinary[key].norm() * 2.0**units, 1e-12)
    if isinstance(key, str):
        close(H[key].ratio().ratio, ordinary[key].ratio().ratio, 1e-12)
        torch.testing.assert_close(
            H[key].row_norms().max, ordinary[key].row_norms().max * 2.0**units, rtol=1e-12, atol=0
        )


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("power", [-300, 300])
@pytest.mark.parametrize("C", [4, 30], ids=["blocks", "all pairs of classes"])
def test_norms_of_a_linear_model(C, power, bias):
    W, x, _ = inputs(N=4, d=5 if C == 4 else 20, C=C)
    b = torch.zeros(C, dtype=F64) if bias else None
    H, exact = (hessext.linear(W * 2.0**-p, x * 2.0**p, bias=b)["output"] for p in (power, 0))
    if bias and power < 0:  # nothing but the bias's own entries is left
        exact, power = hessext.linear(W * 0, x, bias=b)["output.bias"], 0
        H = hessext.linear(W * 0, x * 2.0**-300, bias=b)["output"]
    elif bias:  # beside which the bias's entries are nothing
        exact = hessext.linear(W, x)["output"]
    torch.testing.assert_close(H.norms(), exact.norms() * 2.0 ** (2 * power), rtol=1e-12, atol=0)
    torch.testing.assert_close(H.norms([(0, 1)]), exact.norms([(0, 1)]) * 2.0 ** (2 * power), rtol=1e-12, atol=0)
    close(H.ratio().ratio, exact.ratio().ratio, 1e-12)


@pytest.mark.parametrize(("dtype", "large"), [(F32, 1e20), (F64, 1e200)], ids=["float32", "float64"])
@pytest.mark.parametrize("hidden", [False, True], ids=["linear", "network"])
def test_one_large_input(hidden, dtype, large):
    """Its sample has no curvature: the results are those of the others, as autograd's are."""
    if hidden:
        W, V, x, y = network(dtype=dtype)
        x[2, 1] = large
        H = hessext.one_hidden(W, V, x, y)
    else:
        W, x, y = inputs(dtype=dtype)
        x[2, 1] = large
        H = hessext.linear(W, x, y)
    truth = autograd.hessian(H)
    assert truth.isfinite().all()
    tolerance = 1e-4 if dtype == F32 else 1e-11
    for key in H.layers:
        B = H[key]
        where = slice(0, B.shape[0]) if key == H.layers[0] else slice(H.shape[0] - B.shape[0], None)
        expected = truth[where, where].to(dtype)
        torch.testing.assert_close(B.dense(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
        blocks = expected.view(B.grid[0], B.block_shape[0], B.grid[0], -1).transpose(1, 2)
        torch.testing.assert_close(B.norms(), blocks.flatten(2).norm(dim=2), rtol=10 * tolerance, atol=0)
        assert math.isfinite(B.ratio().ratio)


@pytest.mark.parametrize("gap", [100.0, 400.0, 600.0])
@pytest.mark.parametrize("d", [2, 40], ids=["blocks", "sums over classes"])
def test_peaked_float64_models(d, gap):
    """1 - p_top = e^-gap, whose square is no float: the ratio is that of the limit, to which all are proportional."""
    C, N = 6, 5
    x = torch.zeros(N, d, dtype=F64)
    x[:, 0], x[:, 1] = 1, torch.arange(N) / N
    W = torch.zeros(C, d, dtype=F64)
    W[1:, 0], W[1:, 1] = -gap, torch.linspace(-1, 1, C - 1, dtype=F64)
    B, reference = hessext.linear(W, x)["output"], None
    W = W.clone()
    W[1:, 0] = -60
    reference = hessext.linear(W, x)["output"]
    close(B.ratio().ratio, reference.ratio().ratio, 1e-9)
    torch.testing.assert_close(B.norms()[0], reference.norms()[0] * math.exp(60 - gap), rtol=1e-9, atol=0)


@pytest.mark.parametrize("C", [10, 1000])
@pytest.mark.parametrize("N", [300, 3000])
def test_bound_of_ratio_in_float32(N, C):
    """Equal terms are rounded alike: a head that starts at zero is the worst known, and within 1e-5."""
    x = torch.randn(N, 16, generator=torch.Generator().manual_seed(0))
    found, exact = (hessext.linear(torch.zeros(C, 16).to(t), x.to(t))["output"].ratio() for t in (F32, F64))
    for a, b in zip(found, exact, strict=True):
        close(a, b, 1e-5)


@pytest.mark.parametrize("loss", ["mse", "binary_cross_entropy"])
def test_mean_of_blocks_that_vanish_is_zero(loss):
    """Squares of norms are beyond float64, but not those of blocks off the diagonal, which are 0."""
    W, x, _ = inputs()
    y = torch.full((12, 4), 0.5, dtype=F64)
    ratio = hessext.linear(W / 1e160, x * 1e160, y, loss=loss)["output"].ratio()
    assert (ratio.diagonal, ratio.off_diagonal, ratio.ratio) == (math.inf, 0.0, 0.0)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("size", [1e-18, 1e15])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_approximations_of_small_and_large_features(size, loss, dtype):
    """Features far from 1 change the norm alone, whose square float32 does not hold."""
    g = torch.Generator().manual_seed(9)
    x, W = (torch.randn(n, 4, generator=g, dtype=F64).to(dtype) for n in (9, 3))
    expected = hessext.linear(W, x, loss=loss)["output"].approximations()
    power = 2.0 ** round(math.log2(size))
    table = hessext.linear(W / power, x * power, loss=loss)["output"].approximations()
    assert table.norm == pytest.approx(expected.norm * power**2, rel=1e-6)
    for row, other in zip(table, expected, strict=True):
        # what is exact is off by roundings, which are others where large float32 inputs are computed in float64
        least = 1e-7 if dtype == F32 else 1e-12
        assert row[1:4] == pytest.approx(other[1:4], rel=1e-6, abs=least), row.name


def test_approximations_beyond_float64():
    g = torch.Generator().manual_seed(9)
    x, W = (torch.randn(n, 4, generator=g, dtype=F64) for n in (9, 3))
    V, y = torch.randn(2, 3, generator=g, dtype=F64), torch.zeros(9, 2, dtype=F64)
    for size in (1e-75, 1e75):
        B = hessext.one_hidden(W, size * V, x, y, loss="mse")["hidden"]
        for method in (B.approximations, B.nearest_kronecker):
            with pytest.raises(ValueError, match="hidden: expected a part whose norm has a fourth power in float64"):
                method()
