"""bfloat16 and float16: float32 of the same values, and a large head that stays as it is."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from helpers.networks import Transformer, tokens
from torch import nn

import hessext
from hessext import _parameters
from hessext.model import network

HALVES = torch.bfloat16, torch.float16
over_halves = pytest.mark.parametrize("dtype", HALVES, ids=str)


def problem(dtype, hidden=False):
    g = torch.Generator().manual_seed(0)
    sizes = [(6, 5), (9, 6)] if hidden else [(9, 5)]
    weights = [torch.randn(*size, generator=g).to(dtype) for size in sizes]
    biases = [torch.randn(len(w), generator=g).to(dtype) for w in weights]
    return weights, biases, torch.randn(23, 5, generator=g).to(dtype), torch.randint(9, (23,), generator=g)


def agree(H, E, name=None):
    """All results agree; `name` is what H calls the only layer of E."""
    v = torch.linspace(-1, 1, E.shape[0])
    assert H.dtype == torch.float32
    results = [lambda M: M.dense(), lambda M: M @ v, lambda M: M.diagonal()]
    for result in results + ([] if name else [lambda M: M.norms()]):
        torch.testing.assert_close(result(H), result(E), rtol=2e-6, atol=1e-7)
    for layer in E.layers:
        found, expected = (torch.tensor(M.ratio()) for M in (H[name or layer], E[layer]))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert hessext.autograd.check(H)


@pytest.mark.parametrize("kept", [False, True], ids=["small", "large"])
@over_halves
def test_linear(dtype, kept, monkeypatch):
    if kept:
        monkeypatch.setattr(_parameters, "_COPIED", 0)
        monkeypatch.setattr(network, "_LIFTED", 4 * 5 * 2)  # two rows at a time
    (W,), (b,), x, y = problem(dtype)
    H = hessext.linear(W, x, y, bias=b)
    assert H._data.network.layers[0].weight.dtype == (dtype if kept else torch.float32)
    agree(H, hessext.linear(W.float(), x.float(), y, bias=b.float()))
    table, expected = (
        M["output"].approximations(groups=3) for M in (H, hessext.linear(W.float(), x.float(), y, bias=b.float()))
    )
    for row, other in zip(table, expected, strict=True):
        assert row.cosine == pytest.approx(other.cosine, abs=1e-5)


@over_halves
def test_networks(dtype):
    (W, V), (b, c), x, y = problem(dtype, hidden=True)
    expected = [t.float() for t in (W, V, x)]
    biases = {"hidden_bias": b, "output_bias": c}
    agree(
        hessext.one_hidden(W, V, x, y, activation="tanh", **biases),
        hessext.one_hidden(*expected, y, activation="tanh", **{k: t.float() for k, t in biases.items()}),
    )
    agree(hessext.feed_forward([W, V], x, y), hessext.feed_forward(expected[:2], expected[2], y))
    batches = list(zip(x.split(7), y.split(7), strict=True))
    agree(hessext.feed_forward([W, V], x, y), hessext.feed_forward([W, V], batches))
    model = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 9)).to(dtype)
    agree(hessext.hessian(model, x, y), hessext.hessian(model.float(), x.float(), y))


@over_halves
def test_targets_and_class_weights(dtype):
    (W,), _, x, y = problem(dtype)
    targets = torch.randn(23, 9).to(dtype)
    agree(hessext.linear(W, x, targets, loss="mse"), hessext.linear(W.float(), x.float(), targets.float(), loss="mse"))
    weight = torch.linspace(0.5, 2, 9).to(dtype)
    losses = [nn.CrossEntropyLoss(w) for w in (weight, weight.float())]
    agree(hessext.linear(W, x, y, loss=losses[0]), hessext.linear(W.float(), x.float(), y, loss=losses[1]))


@over_halves
def test_head(dtype, monkeypatch):
    monkeypatch.setattr(_parameters, "_COPIED", 0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 9)).to(dtype)
    x, y = torch.randn(20, 5).to(dtype), torch.randint(9, (20,))
    H = hessext.head(model, "2", x, y)
    assert H._data.network.layers[0].weight.dtype == dtype
    agree(H, hessext.linear(model[2].weight.float(), model[:2](x).detach().float(), y, bias=model[2].bias.float()), "2")


@over_halves
def test_layer_before_a_head(dtype):
    model = Transformer(dtype=dtype)
    x, y = tokens(3, 5), tokens(3, 5, seed=1)
    H, E = (hessext.layer(m, "blocks.1.mlp.up", x, y) for m in (model, deepcopy(model).float()))
    agree(H, E)


def test_mixed_dtypes_are_refused():
    (W,), (b,), x, y = problem(torch.bfloat16)
    with pytest.raises(TypeError, match=r"^x: expected torch\.float64"):
        hessext.linear(W.double(), x, y)
    with pytest.raises(TypeError, match=r"^bias: expected torch\.float64"):
        hessext.linear(W.double(), x.double(), y, bias=b)
