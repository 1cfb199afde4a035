"""Norms, inner products, the nearest Kronecker product and Q_n, against explicit matrices."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import explicit
from helpers.cases import DTYPES, Case, make_inputs
from helpers.deep import Deep
from helpers.explicit import inputs_of
from helpers.networks import Transformer, tokens

import hessext
from hessext.matrix import inner, other_classes, sample_curvature

ACCURACY = {torch.float32: 1e-5, torch.float64: 1e-10}
SUMS = {torch.float32: 3e-4, torch.float64: 3e-8}  # errors of sums of products are differences of squares
CASES = [
    Case(33, 5, 7),
    Case(16, 1, 5, loss="ce weight smooth", scale=5.0, bias="o"),
    Case(17, 3, 4, loss="mse"),
    Case(33, 5, 7, 4, bias="ho"),
    Case(15, 3, 5, 6, "tanh", "mse", bias="h"),
    Deep(17, (4, 5, 3, 6), "tanh", bias="1"),
]


def layers_of(H):
    return [name for name in H.layers if "bias" not in name]


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_norms_of_parts(case, dtype):
    H, truth = inputs_of(case, dtype).hessian(), inputs_of(case, torch.float64).to(dtype).lift().hessian()
    squares = {}
    for row in H.layers:
        for col in H.layers:
            expected = truth[row, col].dense().norm().item()
            assert H[row, col].norm() == pytest.approx(expected, rel=ACCURACY[dtype])
    assert H.norm() == pytest.approx(truth.dense().norm().item(), rel=ACCURACY[dtype])
    shares = H.shares()
    for (row, col), share in shares.items():
        squares[row, col] = truth[row, col].norm() ** 2 * (1 if row == col else 2)
        assert share == pytest.approx(squares[row, col] / truth.norm() ** 2, abs=ACCURACY[dtype])
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_inner_products(case, dtype):
    H, truth = inputs_of(case, dtype).hessian(), inputs_of(case, dtype).lift().hessian()
    for name in H.layers:
        B, dense = H[name], truth[name].dense()
        (K, _), (s, _) = B.grid, B.block_shape
        G, A = normal(K, K, dtype=dtype), normal(s, s, dtype=dtype, seed=1)
        v, M = normal(K * s, dtype=dtype, seed=2), normal(K, s, s, dtype=dtype, seed=3)
        diagonal = dense.view(K, s, K, s).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        for other, expected, size in (
            ((G, A), torch.sum(dense * torch.kron(G.double(), A.double())), G.norm() * A.norm()),
            (v, dense.diagonal() @ v.double(), v.norm()),
            (M, torch.sum(diagonal * M), M.norm()),
        ):
            bound = ACCURACY[dtype] * (dense.norm() * size).item()
            assert abs(B.inner(other) - expected.item()) <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_inner_products_of_two_hessians(case, dtype):
    """Of other samples, of another number of them, and of another term."""
    inputs = inputs_of(case, dtype)
    few = type(inputs)(**{**vars(inputs), "x": inputs.x[: len(inputs.x) // 2], "y": inputs.y[: len(inputs.y) // 2]})
    H, other = inputs.hessian(), few.hessian()
    for row in layers_of(H):
        for col in layers_of(H):
            for B, C, b, c in (
                (H, other, inputs.lift(), few.lift()),
                (H, H.gauss_newton(), inputs.lift(), None),
            ):
                one = b.hessian()[row, col].dense()
                two = (c.hessian() if c else b.hessian().gauss_newton())[row, col].dense()
                got, expected = B[row, col].inner(C[row, col]), torch.sum(one * two).item()
                assert abs(got - expected) <= ACCURACY[dtype] * (one.norm() * two.norm()).item()


def test_inner_products_of_unlike_parts(monkeypatch):
    """A softmax beside a squared error, a layer of a network beside a linear model; tiles of samples and classes."""
    x, y, W = normal(20, 4), torch.arange(20) % 6, normal(6, 4, seed=1)
    V = normal(5, 6, seed=2)
    parts = [
        hessext.linear(W, x, y)["output"],
        hessext.linear(W, x[:13] + 1, y[:13])["output"],
        hessext.linear(W, x, y, loss="mse")["output"],
        hessext.one_hidden(W, V, x, y % 5, activation="tanh")["hidden"],
        hessext.one_hidden(W, V, x, y % 5, activation="tanh").residual()["hidden"],
    ]
    for _ in range(2):
        for B in parts:
            for C in parts:
                expected = torch.sum(B.dense() * C.dense()).item()
                assert B.inner(C) == pytest.approx(expected, rel=1e-10, abs=1e-10 * B.norm() * C.norm())
        monkeypatch.setattr(inner, "_TOGETHER", 7)
        monkeypatch.setattr(other_classes, "spare", lambda *_: False)
        monkeypatch.setattr(other_classes, "_TILE", 2 * 20 * 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_nearest_kronecker(case, dtype):
    H, truth = inputs_of(case, dtype).hessian(), inputs_of(case, dtype).lift().hessian()
    for name in layers_of(H):
        B, dense = H[name], truth[name].dense()
        (K, _), (s, _) = B.grid, B.block_shape
        values = torch.linalg.svdvals(dense.view(K, s, K, s).permute(0, 2, 1, 3).reshape(K * K, s * s))
        found = B.nearest_kronecker(terms=3)
        for k, error in enumerate(found.errors, 1):
            expected = values[k:].norm().item() / dense.norm().item()
            # sums of more than one product come from differences of squares
            assert error == pytest.approx(
                expected, abs=ACCURACY[dtype] if k == 1 else 3e-4 if dtype.itemsize == 4 else 3e-8
            )
        assert found.relative_error == found.errors[0] and len(found.errors) == 3
        assert found.G.dtype == found.A.dtype == dtype
        assert found.A.trace() >= 0 and torch.equal(found.G, found.G.T)
        assert found.G.norm().item() == pytest.approx(found.A.norm().item(), rel=1e-5)
        left = (dense - torch.kron(found.G.double(), found.A.double())).norm().item() / dense.norm().item()
        assert left == pytest.approx(found.relative_error, abs=10 * torch.finfo(dtype).eps + ACCURACY[dtype])
        assert B.inner((found.G, found.A)) == pytest.approx((found.G.norm() * found.A.norm()).item() ** 2, rel=1e-5)


def test_nearest_kronecker_by_lanczos(monkeypatch):
    """Above 1,024 samples the leading vectors alone are found."""
    B = make_inputs(Case(33, 5, 7, 4, "tanh"), torch.float64).hessian()["hidden"]
    expected = B.nearest_kronecker()
    monkeypatch.setattr(hessext.matrix.kronecker, "_ALL", 0)
    found = B.nearest_kronecker()
    assert found.relative_error == pytest.approx(expected.relative_error, rel=1e-9)
    assert (found.G - expected.G).norm() <= 1e-6 * expected.G.norm()
    assert B.nearest_kronecker().relative_error == found.relative_error  # same bits


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_curvature_and_features(case):
    H = inputs_of(case, torch.float64).hessian()
    for name in layers_of(H):
        for part in (H[name], H.gauss_newton()[name], H.residual()[name]):
            Q, phi, dense = part.curvature(), part.features, part.dense()
            assert (explicit.assembled(Q, phi) - dense).abs().max() <= 1e-14 * max(1e-300, dense.abs().max())
            assert torch.equal(part.curvature([2, 0]), Q[[2, 0]])
            assert torch.equal(part.curvature(slice(1, 4)), Q[1:4])


def test_curvature_of_many_classes(monkeypatch):
    B = make_inputs(CASES[1], torch.float32).hessian()["output"]
    Q = B.curvature()
    monkeypatch.setattr(sample_curvature, "_TENSOR", 4 * 25 * 2)
    parts = B.curvature([0, 3, 5])
    p, at = parts.p.double(), torch.arange(3)
    own = p * (1 - p)
    own[at, parts.top] = p[at, parts.top] * parts.rest.double()
    again = torch.diag_embed(own) - (p[:, :, None] * p[:, None]).triu(1) - (p[:, :, None] * p[:, None]).tril(-1)
    assert (parts.scale[:, None, None] * again - Q[[0, 3, 5]]).abs().max() <= 1e-7 * Q.abs().max()
    assert B.curvature([1, 2]).shape == (2, 5, 5)


def test_layers_of_other_networks():
    batches = [(x, x.roll(-1, 1)) for x in (tokens(2, 5), tokens(1, 4, seed=1))]
    name = "blocks.1.mlp.up"
    H = hessext.layer(Transformer(), name, batches)
    for part in (H[name], H.residual()[name]):
        dense = part.dense()
        assert part.norm() == pytest.approx(dense.norm().item(), rel=1e-10)
        assert H[name].inner(part) == pytest.approx(torch.sum(H[name].dense() * dense).item(), rel=1e-9)
        assert (explicit.assembled(part.curvature(), part.features) - dense).norm() <= 1e-13 * dense.norm()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_parts_of_one_layer(case):
    """A layer's weight beside its bias, and either beside both."""
    H = inputs_of(case, torch.float64).hessian()
    layer = H.layers[0].rpartition(".")[0] or H.layers[0]
    names = [name for name in (layer, f"{layer}.weight", f"{layer}.bias") if name in H._data.network.groups]
    other = type(H)(H._data, "gauss_newton")
    for row in names:
        for col in names:
            B, C = H[row, col], other[row, col]
            assert B.norm() == pytest.approx(B.dense().norm().item(), rel=1e-12)
            expected = torch.sum(B.dense() * C.dense()).item()
            assert B.inner(C) == pytest.approx(expected, abs=1e-12 * B.norm() * C.norm())


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_nothing_is_refused_where_it_is_0(loss):
    H = make_inputs(Case(9, 3, 4, 5, loss=loss), torch.float64).hessian().residual()
    B = H["hidden"]
    assert B.norm() == 0 and B.inner(B) == 0
    assert not B.curvature().any()
    with pytest.raises(ValueError, match="nearest_kronecker: expected a part that is not 0; the residual term"):
        B.nearest_kronecker()
    assert H.shares() == pytest.approx({("hidden", "hidden"): 0, ("hidden", "output"): 1, ("output", "output"): 0})
    H = hessext.linear(torch.ones(2, 3), torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)).residual()
    assert math.isnan(H.shares()["output", "output"])


def test_refused():
    H = make_inputs(Case(9, 3, 4, 5), torch.float32).hessian()
    B, between = H["hidden"], H["hidden", "output"]
    G, A = torch.ones(5, 5), torch.ones(3, 3)
    for wrong, message in (
        (lambda: between.inner((G, A)), "inner: expected one layer"),
        (lambda: between.approximations(), "approximations: expected one layer"),
        (lambda: between.nearest_kronecker(), "nearest_kronecker: expected one layer"),
        (lambda: between.curvature(), "curvature: expected one layer"),
        (lambda: between.features, "features: expected one layer"),
        (lambda: B.inner((A, G)), r"other: G: expected shape \(5, 5\); got \(3, 3\)"),
        (lambda: B.inner(torch.ones(5, 2, 3)), r"other: expected shape \(5, 3, 3\)"),
        (lambda: B.inner(torch.ones(14)), r"other: expected shape \(15,\)"),
        (lambda: B.inner(H["output"]), "other: expected the sizes and the device of"),
        (lambda: B.approximations(groups=2), "groups: expected a number that divides 5"),
        (lambda: B.approximations(groups=[0, 1]), r"groups: expected shape \(5,\)"),
        (lambda: B.approximations(factors={"a": (G, G)}), r"factors\['a'\]: A: expected shape \(3, 3\)"),
        (lambda: B.approximations(factors={"K-FAC": (G, A)}), "factors: expected a name other than the table's own"),
        (lambda: B.approximations(factors={"a": (G.triu(), A)}), r"factors\['a'\]: G: expected symmetric matrices"),
        (lambda: B.nearest_kronecker(terms=0), "terms: expected at least 1"),
        (lambda: B.curvature([]), "samples: expected at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    for wrong, message in (
        (lambda: B.inner(3), "other: expected a torch.Tensor"),
        (lambda: B.inner((G,)), r"other: expected a pair \(G, A\)"),
        (lambda: B.inner(torch.ones(15, dtype=torch.float64)), "other: expected torch.float32"),
        (lambda: B.approximations(groups=torch.ones(5)), "groups: expected integers"),
        (lambda: B.approximations(groups="five"), "groups: expected an integer"),
        (lambda: B.approximations(factors={"a": G}), r"factors\['a'\]: expected a pair"),
        (lambda: B.approximations(factors=[G, A]), "factors: expected a dict"),
        (lambda: B.inner(H.to(torch.float64)["hidden"]), "other: expected torch.float32; got torch.float64"),
        (lambda: B.curvature([0.5]), "samples: expected integers"),
        (lambda: B.curvature("a"), "samples: expected integers"),
    ):
        with pytest.raises(TypeError, match=message):
            wrong()
    with pytest.raises(IndexError):
        B.curvature([9])


def test_no_matrix_of_two_moments_is_formed(monkeypatch):
    """Two moments of a head of many classes: nothing of C x C numbers."""
    monkeypatch.setattr(sample_curvature.SoftmaxCurvature, "_centred", None)  # what such matrices are formed from
    monkeypatch.setattr(sample_curvature.GivenCurvature, "pieces", None)
    x, y = normal(12, 4), torch.arange(12)
    W = normal(30000, 4, seed=1)
    one, two = hessext.linear(W, x, y)["output"], hessext.linear(W + 0.1, x, y)["output"]
    assert one.inner(two) / (one.norm() * two.norm()) == pytest.approx(1, abs=0.2)
    assert one.inner(one) == pytest.approx(one.norm() ** 2, rel=1e-12)
