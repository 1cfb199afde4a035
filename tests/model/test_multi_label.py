"""Binary cross-entropy of several logits (multi-label): a sum of binary ones, with torch's options, in all results."""

from __future__ import annotations

import pickle
import re

import pytest
import torch
from helpers import explicit
from helpers.modules import hessian_of
from torch import nn

import hessext
from hessext.matrix.curvature import Assemblies

N, d = 11, 5


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = normal(N, d)
MODELS = {
    "linear": [nn.Linear(d, 3)],
    "relu": [nn.Linear(d, 4), nn.ReLU(), nn.Linear(4, 3)],
    "tanh": [nn.Linear(d, 4, bias=False), nn.Tanh(), nn.Linear(4, 6)],
    "deep": [nn.Linear(d, 4), nn.GELU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)],
    "deep, few labels": [nn.Linear(d, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2)],
}
LOSSES = {
    "mean": lambda C: {},
    "sum": lambda C: {"reduction": "sum"},
    "of labels": lambda C: {"weight": uniform(C, seed=1), "pos_weight": 3 * uniform(C, seed=2)},
    "of samples": lambda C: {"weight": uniform(N, 1, seed=1), "pos_weight": 3 * uniform(N, C, seed=2)},
    "of any sign": lambda C: {"weight": normal(N, C, seed=1)},
}


def model_of(name):
    torch.manual_seed(0)
    for layer in MODELS[name]:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return nn.Sequential(*MODELS[name]).double()


def truth(model, x, y, loss):
    """The Hessian of the module's own loss, by autograd in float64."""
    return hessian_of(model, x, lambda logits: loss(logits, y))


def close(out, expected, tolerance=1e-12):
    assert out.shape == expected.shape
    assert (out - expected).norm() <= tolerance * expected.norm()


def problem(name, options):
    model = model_of(name)
    C = model[-1].out_features
    return model, uniform(N, C, seed=3), nn.BCEWithLogitsLoss(**LOSSES[options](C))


# --- against autograd ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_whole_hessian_is_that_of_torchs_loss(name, options):
    model, y, loss = problem(name, options)
    H, expected = hessext.hessian(model, X, y, loss), truth(model, X, y, loss)
    close(H.dense(), expected)
    close(hessext.autograd.hessian(H), expected)
    close(hessext.autograd.hessian(model, X, y, loss=loss), expected)
    close(H @ torch.eye(len(expected)).double(), expected)
    close(H.gauss_newton().dense() + H.residual().dense(), expected)
    for term in (H, H.gauss_newton(), H.residual()):
        report = hessext.autograd.check(term)
        assert report, str(report)


@pytest.mark.parametrize("options", ["mean", "of samples", "of any sign"])
@pytest.mark.parametrize("name", MODELS)
def test_results_of_each_layer(name, options):
    """Each is had in another way than the dense matrix, which the test before compares with autograd."""
    model, y, loss = problem(name, options)
    H = hessext.hessian(model, X, y, loss)
    for layer in H.layers:
        B = H[layer]
        dense, K, s = B.dense(), B.grid[0], B.block_shape[0]
        blocks = dense.view(K, s, K, s).transpose(1, 2)
        squares = blocks.square().sum((2, 3))
        own, others = squares.diagonal(), squares - squares.diagonal().diag()
        close(B.norms().square(), squares, 1e-11)
        close(B.norms([(0, 0), (1, 0)]).square(), squares[:2, 0], 1e-11)
        ratio = B.ratio()
        assert ratio.diagonal == pytest.approx(own.mean().item(), rel=1e-11)
        assert ratio.off_diagonal == pytest.approx(others.sum().item() / (K * (K - 1)), rel=1e-11)
        rows = B.row_norms()
        close(rows.diagonal.square(), own, 1e-11)
        assert torch.allclose(rows.max.square(), others.max(1).values, rtol=1e-11, atol=1e-18)
        close(B.diagonal(), dense.diagonal())
        assert B.trace().item() == pytest.approx(dense.trace().item(), rel=1e-11)
        close(B.diagonal_blocks(), torch.stack([blocks[i, i] for i in range(K)]))
        close(B.block(1, 0), blocks[1, 0])
        v = normal(K * s, 2)
        close(B @ v, dense @ v)
        solved = B.solve_block_diagonal(v, 0.5).view(K, s, 2)
        close(torch.stack([(blocks[i, i] + 0.5 * torch.eye(s).double()) @ solved[i] for i in range(K)]).view_as(v), v)
        phi = B.features
        close(torch.einsum("nij,na,nb->iajb", B.curvature(), phi, phi).reshape(K * s, K * s), dense)
        assert B.norm() == pytest.approx(dense.norm().item(), rel=1e-11)
        assert B.inner(B) == pytest.approx(dense.square().sum().item(), rel=1e-10)
        G, A = (t + t.T for t in (normal(K, K), normal(s, s, seed=1)))
        assert B.inner((G, A)) == pytest.approx(torch.sum(dense * torch.kron(G, A)).item(), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("name", ["relu", "tanh", "deep"])
def test_parts_between_layers(name):
    model, y, loss = problem(name, "of labels")
    H = hessext.hessian(model, X, y, loss)
    whole = [layer for layer in ("0", "2", "4") if f"{layer}.weight" in H.layers]
    for row in whole:
        for col in whole:
            B = H[row, col]
            (K, L), (s, t) = B.grid, B.block_shape
            squares = B.dense().view(K, s, L, t).square().sum((1, 3))
            close(B.norms().square(), squares, 1e-11)
            close(B @ torch.eye(L * t).double(), B.dense())


@pytest.mark.parametrize("options", ["mean", "of labels"])
@pytest.mark.parametrize("name", ["linear", "relu", "deep"])
def test_approximations(name, options):
    model, y, loss = problem(name, options)
    H = hessext.hessian(model, X, y, loss)
    for layer in (key for key in H.layers if key.endswith("weight")):
        B = H[layer]
        dense, table = B.dense(), B.approximations()
        Q = H.gauss_newton()[layer].curvature()
        expected = explicit.matrices(dense, Q, B.features, torch.ones(N, dtype=torch.bool))
        for row, M in expected.items():
            relative, scaled, cosine = explicit.errors(dense, M)
            if row != "Shampoo":  # which comes with its best scalar
                assert table[row].relative_error == pytest.approx(relative, rel=1e-9, abs=1e-7), row
            assert table[row].scaled_error == pytest.approx(scaled, rel=1e-9, abs=1e-7), row
            assert table[row].cosine == pytest.approx(cosine, rel=1e-9), row


def test_inner_products_with_another_loss():
    """Of a diagonal curvature with those of a softmax and of c I, in either order."""
    model, y, loss = problem("linear", "of labels")
    labels = y.argmax(1)
    pairs = ((y, loss), (labels, nn.CrossEntropyLoss()), (y, "mse"))
    three = [hessext.hessian(model, X, target, f)["0"] for target, f in pairs]
    for left in three:
        for right in three:
            expected = torch.sum(left.dense() * right.dense()).item()
            assert left.inner(right) == pytest.approx(expected, rel=1e-11)


# --- the other ways in --------------------------------------------------------------------------------------------


def test_targets_and_models_in_all_forms():
    model, _, _ = problem("relu", "mean")
    y = uniform(N, 3) > 0.5
    expected = truth(model, X, y.double(), nn.BCEWithLogitsLoss())
    weights = [(layer.weight.detach(), layer.bias.detach()) for layer in (model[0], model[2])]
    (W, b), (V, c) = weights
    for target in (y, y.long(), y.double()):
        for loss in ("binary_cross_entropy", nn.BCEWithLogitsLoss()):
            close(hessext.hessian(model, X, target, loss).dense(), expected)
    H = hessext.one_hidden(W, V, X, y, hidden_bias=b, output_bias=c, loss="binary_cross_entropy")
    close(H["hidden"].dense(), hessext.hessian(model, X, y, "binary_cross_entropy")["0"].dense())
    a = torch.relu(X @ W.T + b)
    output = hessext.linear(V, a, bias=c, loss="binary_cross_entropy")  # the curvature does not depend on y
    close(output["output"].dense(), H["output"].dense())
    assert not output.residual().dense().any()


def test_batches_sequences_dtypes_and_pickles():
    model, y, loss = problem("deep", "of labels")
    H = hessext.hessian(model, X, y, loss)
    batches = [(X[:3], y[:3]), (X[3:4], y[3:4]), (X[4:], y[4:])]
    streamed = hessext.hessian(model, batches, loss=loss)
    close(streamed.dense(), H.dense())
    assert streamed["2"].ratio() == pytest.approx(H["2"].ratio(), rel=1e-11)
    close(pickle.loads(pickle.dumps(H)).dense(), H.dense())
    close(H.to(torch.float32).dense().double(), H.dense(), 1e-5)
    weight = uniform(2, 4, 3, seed=1)
    loss = nn.BCEWithLogitsLoss(weight)
    x, y = normal(2, 4, d), uniform(2, 4, 3)
    close(hessext.hessian(model, x, y, loss).dense(), truth(model, x, y, loss))


@pytest.mark.parametrize("options", ["mean", "sum", "of labels"])
@pytest.mark.parametrize("where", ["0", "2", "4"])
def test_layer_and_head_of_any_model(where, options):
    model, y, loss = problem("deep", options)
    expected = hessext.hessian(model, X, y, loss)[where]
    batches = [(X[:4], y[:4]), (X[4:], y[4:])]
    H = hessext.layer(model, where, batches, loss=loss)
    close(H[where].dense(), expected.dense())
    assert H[where].ratio() == pytest.approx(expected.ratio(), rel=1e-11)
    report = hessext.autograd.check(H)
    assert report, str(report)
    if where == "4":
        close(hessext.head(model, where, batches, loss=loss)[where].dense(), expected.dense())


def test_many_labels_are_not_squared():
    """A part of K x K blocks of which K are not zero: the results below take N K numbers, not N K^2."""
    K = 30_000
    H = hessext.linear(normal(K, 2).float(), normal(4, 2).float(), loss="binary_cross_entropy")["output"]
    ratio, diagonal = H.ratio(), H.diagonal()
    assert (ratio.off_diagonal, diagonal.shape) == (0, (2 * K,))
    own = H.norms([(i, i) for i in range(0, K, 1000)]).double().square()
    assert H.row_norms().diagonal.double().square().mean().item() == pytest.approx(ratio.diagonal, rel=1e-5)
    assert own.shape == (30,)
    assert H.approximations()["block-diagonal"].relative_error == 0


def test_blocks_that_vanish_are_not_formed():
    H = hessext.linear(normal(50, 2), normal(4, 2), loss="binary_cross_entropy")["output"]
    assert sum(len(call.pairs) for call in Assemblies(H._part)(None)) == 50
    out = torch.full((100, 100), torch.nan, dtype=torch.float64)
    assert torch.equal(H.dense(out), torch.block_diag(*H.diagonal_blocks()))


# --- bad input ----------------------------------------------------------------------------------------------------

SHAPE = f"({N}, 3)"
WANTED = f"y: expected torch.float64 targets, or int64 or bool labels, {SHAPE}; got "
BAD = {
    "labels": (torch.zeros(N).long(), {}, ValueError, WANTED + f"({N},)"),
    "columns": (uniform(N, 2), {}, ValueError, WANTED + f"({N}, 2)"),
    "label 2": (torch.full((N, 3), 2), {}, ValueError, "y: expected labels in [0, 2); got 2"),
    "weight": (
        uniform(N, 3),
        {"weight": uniform(N)},
        ValueError,
        f"loss.weight: expected a shape that broadcasts to {SHAPE}; got ({N},)",
    ),
}


@pytest.mark.parametrize(("y", "weights", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(y, weights, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        hessext.hessian(model_of("linear"), X, y, nn.BCEWithLogitsLoss(**weights))


def test_weights_of_samples_are_refused_with_batches():
    model, y, loss = problem("relu", "of samples")
    message = r"^loss\.weight: expected one number, or one for each of 3 logits, for samples in batches; got shape "
    for call in (hessext.hessian, lambda m, b, loss: hessext.layer(m, "0", b, loss=loss)):
        with pytest.raises(ValueError, match=message):
            call(model, [(X, y)], loss=loss)
