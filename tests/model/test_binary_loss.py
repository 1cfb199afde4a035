"""Binary cross-entropy of one logit: torch's options, digits at large logits, equation (1), both forms of models."""

from __future__ import annotations

import itertools
import re

import mpmath
import pytest
import torch
from helpers.cases import DTYPES
from helpers.modules import hessian_of
from torch import nn
from torch.nn import functional as F

import hessext
from hessext.cli import main
from hessext.model.loss_arguments import resolve
from hessext.model.losses import BinaryCrossEntropy

N, d, m = 9, 4, 3
SHAPES = ((N,), (N, 1))
SIZES = {"none": None, "scalar": (), "one": (1,), "each": ...}  # of weights; "each": one for every target


def uniform(*shape, dtype=torch.float64, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def module(shape, weight, pos_weight, reduction="mean", dtype=torch.float64):
    """torch's loss for targets of this shape."""
    sizes = [shape if SIZES[k] is ... else SIZES[k] for k in (weight, pos_weight)]
    weights = [None if s is None else 3 * uniform(*s, dtype=dtype, seed=k) for k, s in enumerate(sizes)]
    return nn.BCEWithLogitsLoss(weights[0], reduction=reduction, pos_weight=weights[1])


def targets(kind, shape, dtype=torch.float64):
    y = {"labels": uniform(*shape) > 0.5, "probabilities": uniform(*shape), "any numbers": 3 * normal(*shape)}[kind]
    return y.to(dtype)


# --- torch's definition -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["labels", "probabilities", "any numbers"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("weight", "pos_weight"), list(itertools.product(SIZES, SIZES)))
def test_derivatives_are_those_of_torchs_loss(weight, pos_weight, reduction, shape, kind, dtype):
    given = module(shape, weight, pos_weight, reduction, dtype)
    f, y = 3 * normal(N, 1, dtype=dtype), targets(kind, shape, dtype)
    loss, wide = resolve(given), module(shape, weight, pos_weight, reduction, dtype).double()

    def value(f):
        return wide(f.view(shape), y.double())

    gradient = torch.func.grad(value)(f.double())
    curvature = torch.func.jacrev(torch.func.grad(value))(f.double()).view(N, N)
    output, tolerance = loss.output(f.clone, y, f), {torch.float32: 1e-6, torch.float64: 5e-15}[dtype]
    for got, true in (
        (loss.value(f, y), value(f.double())),
        (output.residual(), gradient),
        (output.scale.diag(), curvature),
    ):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), true, rtol=0, atol=tolerance * true.abs().max().item())
    if pos_weight == "none":
        assert torch.equal(loss.output(f.clone, None, f).scale, output.scale)
    assert loss.needs_targets == (pos_weight != "none")


def test_name_is_torchs_default():
    f, y = normal(N, 1), targets("labels", (N, 1))
    torch.testing.assert_close(resolve("binary_cross_entropy").value(f, y), F.binary_cross_entropy_with_logits(f, y))


# --- digits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pos_weight", [None, 1e-12, 3.0])
@pytest.mark.parametrize("label", [0.0, 1.0, 1e-3, -2.0])
def test_digits_at_large_logits(label, pos_weight, dtype):
    f = torch.tensor([[-90.0], [-40], [-17], [-1e-3], [0], [2], [40], [90]], dtype=dtype)
    y = torch.full_like(f, label)
    weight = None if pos_weight is None else torch.tensor([pos_weight], dtype=dtype)
    output = BinaryCrossEntropy("sum", pos_weight=weight).output(f.clone, y, f)
    mp = mpmath.mp.clone()
    mp.dps = 60
    v, t = mp.mpf(1 if weight is None else weight.item()), mp.mpf(y[0].item())
    for z, scale, residual in zip(
        f[:, 0].tolist(), output.scale.tolist(), output.residual()[:, 0].tolist(), strict=True
    ):
        p, rest = (1 / (1 + mp.exp(-sign * mp.mpf(z))) for sign in (1, -1))
        eps, tiny = 4 * torch.finfo(dtype).eps, 2 * torch.finfo(dtype).tiny  # below which float32 has no digits
        expected = (1 - t + v * t) * p * rest
        assert abs(scale - expected) <= eps * abs(expected) + tiny
        # the two terms of the residual may cancel, but for labels one of them is zero
        terms = abs((1 - t) * p) + abs(v * t * rest)
        assert abs(residual - ((1 - t) * p - v * t * rest)) <= eps * terms + tiny


@pytest.mark.parametrize("z", [-300.0, -90.0, -40.0, -1.0, 0.0, 3.0, 40.0, 90.0, 300.0])
@pytest.mark.parametrize("label", [0, 1])
def test_autograd_keeps_its_digits_too(label, z):
    weight, x, y = torch.tensor([[z]], dtype=torch.float64), torch.ones(1, 1).double(), torch.tensor([label])
    H = hessext.linear(weight, x, y, loss="binary_cross_entropy")
    p = mpmath.mpf(mpmath.mp.exp(-abs(mpmath.mpf(z))))
    expected = float(p / (1 + p) ** 2)
    for out in (H.dense(), hessext.autograd.hessian(H)):
        assert abs(out.item() - expected) <= 1e-15 * expected


# --- models -----------------------------------------------------------------------------------------------------


def network(seed=0, size=1.0, dtype=torch.float64):
    """Weights, biases and x; logits grow with `size`."""
    W, b, V, c = (normal(*s, dtype=dtype, seed=seed + k) for k, s in enumerate([(m, d), (m,), (1, m), (1,)]))
    return W, b, size * V, size * c, normal(N, d, dtype=dtype, seed=seed + 4)


def as_two_classes(V, c):
    """Softmax over the logits 0 and f is the sigmoid of f."""
    return torch.cat([torch.zeros_like(V), V]), torch.cat([torch.zeros_like(c), c])


@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_is_the_softmax_of_two_classes(activation, size):
    W, b, V, c, x = network(size=size)
    y = targets("labels", (N,)).long()
    V2, c2 = as_two_classes(V, c)
    one = hessext.one_hidden(
        W, V, x, y, hidden_bias=b, output_bias=c, activation=activation, loss="binary_cross_entropy"
    )
    two = hessext.one_hidden(W, V2, x, y, hidden_bias=b, output_bias=c2, activation=activation)
    features = one._data.features(1)
    assert (features @ V.T + c).abs().max() > (30 if size > 1 else 1)
    pairs = [(one["hidden"].dense(), two["hidden"].dense())]
    pairs += [(one["hidden", "output"].block(i, 0), two["hidden", "output"].block(i, 1)) for i in range(m)]
    pairs += [(one["output"].dense(), two["output"].block(1, 1))]
    pairs += [(one.gauss_newton()["hidden"].norms(), two.gauss_newton()["hidden"].norms())]
    pairs += [(one.residual()["hidden"].diagonal(), two.residual()["hidden"].diagonal())]
    linear = [
        hessext.linear(w, features, y, bias=bias, loss=loss)["output"]
        for w, bias, loss in ((V, c, "binary_cross_entropy"), (V2, c2, "cross_entropy"))
    ]
    pairs += [(linear[0].dense(), linear[1].block(1, 1)), (linear[0].norms()[0, 0], linear[1].norms()[1, 1])]
    for out, expected in pairs:
        torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-13 * expected.abs().max().item())


def test_collobert_equation_1():
    """H_ij = mean p (1 - p) v_i v_j phi'(w_i.x) phi'(w_j.x) x x^T, p = sigmoid(l f) of the right label l = +-1."""
    W, _, V, _, x = network()
    y = targets("labels", (N,))
    H = hessext.one_hidden(W, V, x, y, loss="binary_cross_entropy")["hidden"]
    z = x @ W.T
    p = torch.sigmoid((2 * y - 1) * (z.relu() @ V[0]))
    q = p * torch.sigmoid(-(2 * y - 1) * (z.relu() @ V[0]))
    on = (z > 0).double()
    expected = torch.einsum("n,i,j,ni,nj,na,nb->ijab", q, V[0], V[0], on, on, x, x) / N
    pairs = torch.cartesian_prod(torch.arange(m), torch.arange(m))
    torch.testing.assert_close(H.blocks(pairs).view(m, m, d, d), expected, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.Tanh()], ids=str)
def test_a_weight_for_each_sample_as_torch_has_it(activation, reduction, shape):
    layers = [nn.Linear(d, 1)] if activation is None else [nn.Linear(d, m), activation, nn.Linear(m, 1)]
    torch.manual_seed(0)
    model = nn.Sequential(*layers).double()
    loss = module(shape, "each", "each", reduction)
    x, y = normal(N, d), targets("any numbers", shape)
    expected = hessian_of(model, x, lambda logits: loss(logits.view(shape), y))
    H = hessext.hessian(model, x, y, loss)
    assert (H.dense() - expected).norm() <= 1e-13 * expected.norm()
    assert (hessext.autograd.hessian(model, x, y, loss=loss) - expected).norm() <= 1e-13 * expected.norm()
    for term in (H, H.gauss_newton(), H.residual()):
        report = hessext.autograd.check(term)
        assert report, str(report)


def test_targets_in_all_forms_are_the_same():
    W, b, V, c, x = network(dtype=torch.float32)
    labels = targets("labels", (N,)) > 0
    forms = [f(labels) for f in (torch.Tensor.long, torch.Tensor.bool, torch.Tensor.float)]
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0]))
    H = [
        hessext.one_hidden(W, V, x, y, hidden_bias=b, output_bias=c, activation="tanh", loss=loss)
        for y in (*forms, *(y[:, None] for y in forms))
    ]
    dense = H[0].dense()
    for other in H[1:]:
        assert torch.equal(other.dense(), dense)
        assert torch.equal(other @ dense[0], H[0] @ dense[0])


@pytest.mark.parametrize("loss", ["binary_cross_entropy", module((N, 1), "each", "none")], ids=str)
def test_without_targets(loss):
    _, _, _, c, x = network()
    weight = normal(1, d)
    H = hessext.linear(weight, x, bias=c, loss=loss)
    assert torch.equal(H.dense(), hessext.linear(weight, x, uniform(N, 1), bias=c, loss=loss).dense())
    assert hessext.autograd.check(H)
    assert not H.residual().dense().any()


@pytest.mark.parametrize("samples", [9, 2000])
def test_norms_of_one_output_block_and_of_a_wide_hidden_layer(samples):
    """9 samples of 40 features are squared in the Gram form, 2000 in blocks."""
    x, y = normal(samples, 40), normal(samples)
    V = normal(1, 12, seed=1)
    H = hessext.one_hidden(normal(12, 40, seed=2), V, x, y, activation="tanh", loss="binary_cross_entropy")
    block = H["output"].dense()
    torch.testing.assert_close(H["output"].norms(), block.norm().view(1, 1), rtol=1e-13, atol=0)
    ratio = H["output"].ratio()
    assert ratio == (pytest.approx(block.square().sum().item(), rel=1e-12), 0.0, 0.0)
    assert H["output"].row_norms().argmax.tolist() == [-1]
    squares = H["hidden"].dense().view(12, 40, 12, 40).square().sum((1, 3))
    torch.testing.assert_close(H["hidden"].norms().square(), squares, rtol=1e-10, atol=0)
    on = squares.diagonal().mean().item()
    off = (squares.sum() - squares.trace()).item() / 132
    assert H["hidden"].ratio() == pytest.approx((on, off, off / on), rel=1e-10)
    assert H.residual()["output"].ratio().diagonal == 0


@pytest.mark.parametrize(("C", "loss"), [(3, nn.CrossEntropyLoss), (1, nn.BCEWithLogitsLoss)])
def test_later_changes_of_the_losss_weights_do_not_matter(C, loss):
    weight = torch.ones(C).double()
    arguments = normal(C, d), normal(N, d), targets("labels", (N,)).long()
    H, plain = (hessext.linear(*arguments, loss=f) for f in (loss(weight), loss()))
    weight.zero_()
    torch.testing.assert_close(H.dense(), plain.dense(), rtol=1e-14, atol=0)


def test_the_command_checks_it(capsys):
    assert main(["check", "--loss", "binary_cross_entropy", "--samples", "9"]) == 0
    assert "18 of 18 parts within tolerance" in capsys.readouterr().out


# --- bad input --------------------------------------------------------------------------------------------------

X, Y = torch.ones(N, d), torch.arange(N) % 2
FLOAT = Y.float()
ONE = torch.ones(1)
NAMED = f"y: expected torch.float32 targets, or int64 or bool labels, ({N},) or ({N}, 1); got "
SPREAD = "expected a shape that broadcasts to"


def bce(**weights):
    return nn.BCEWithLogitsLoss(**weights)


BAD = {
    "list": ([0.0] * N, bce(), TypeError, "y: expected a torch.Tensor; got list"),
    "int32": (Y.int(), bce(), TypeError, NAMED + "torch.int32"),
    "double": (FLOAT.double(), bce(), TypeError, "y: expected torch.float32; got torch.float64"),
    "samples": (FLOAT[1:], bce(), ValueError, NAMED + f"({N - 1},)"),
    "row": (FLOAT[None], bce(), ValueError, NAMED + f"(1, {N})"),
    "classes": (torch.ones(N, 2), bce(), ValueError, NAMED + f"({N}, 2)"),
    "high label": (Y + 1, bce(), ValueError, "y: expected labels in [0, 2); got 2"),
    "low label": (Y - 1, bce(), ValueError, "y: expected labels in [0, 2); got -1"),
    "nan": (FLOAT / 0, bce(), ValueError, "y: expected finite values; got "),
    "device": (Y.to("meta"), bce(), ValueError, "y: expected device cpu; got meta"),
    "missing": (None, bce(pos_weight=ONE), ValueError, "y: this loss's class weights, ignore_index or pos_weight need"),
    "none": (FLOAT, bce(reduction="none"), ValueError, "loss: a Hessian needs a scalar, reduction 'mean' or 'sum'"),
    "size": (FLOAT, bce(weight=torch.ones(2)), ValueError, f"loss.weight: {SPREAD} ({N},); got (2,)"),
    "shape": (FLOAT[:, None], bce(weight=torch.ones(N)), ValueError, f"loss.weight: {SPREAD} ({N}, 1); got ({N},)"),
    "axes": (FLOAT, bce(weight=ONE[None]), ValueError, f"loss.weight: {SPREAD} ({N},); got (1, 1)"),
    "pos size": (FLOAT, bce(pos_weight=torch.ones(3)), ValueError, f"loss.pos_weight: {SPREAD} ({N},); got (3,)"),
    "weight's dtype": (
        FLOAT,
        bce(weight=ONE.double()),
        TypeError,
        "loss.weight: expected torch.float32; got torch.flo",
    ),
    "weight's nan": (FLOAT, bce(pos_weight=ONE / 0), ValueError, "loss.pos_weight: expected finite values; got 1"),
}


@pytest.mark.parametrize(("y", "loss", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(y, loss, error, message):
    for call in (
        lambda: hessext.linear(torch.ones(1, d), X, y, loss=loss),
        lambda: hessext.one_hidden(torch.ones(m, d), torch.ones(1, m), X, y, loss=loss),
    ):
        with pytest.raises(error, match="^" + re.escape(message)):
            call()


@pytest.mark.parametrize("name", ["size", "shape", "axes", "pos size"])
def test_torch_refuses_these_weights_too(name):
    y, loss, *_ = BAD[name]
    with pytest.raises(RuntimeError):
        loss(torch.ones_like(y), y)


def test_a_network_needs_targets():
    with pytest.raises(
        ValueError, match=r"^y: the Hessian of a network depends on the targets; expected those of the loss; got None"
    ):
        hessext.one_hidden(torch.ones(m, d), torch.ones(1, m), X, None, loss="binary_cross_entropy")
