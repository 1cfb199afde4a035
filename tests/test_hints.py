"""Common mistakes of a first hour: the message names the argument, what was expected, what came, and what to do."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hessext

N, d, m, C = 20, 6, 4, 3
X = torch.randn(N, d, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % C
W, V, U = torch.ones(m, d), torch.ones(C, m), torch.ones(C, d)
IMAGES = X.view(N, 1, 2, 3)


def mlp(*first):
    return nn.Sequential(*first, nn.Linear(d, m), nn.ReLU(), nn.Linear(m, C))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.top = nn.MultiheadAttention(d, 2, batch_first=True), nn.Linear(d, C)

    def forward(self, x):
        return self.top(self.attention(x, x, x, need_weights=False)[0])


class LowRank(nn.Linear):
    """A subclass of nn.Linear."""


def attention():
    return Attention().eval()


SEQUENCES = torch.ones(2, 5, d), torch.zeros(2, 5, dtype=torch.int64)
NN = "weights are (outputs, inputs), as nn.Linear has them"
BOTH = f"({NN}, in the order in which they are applied: are both transposed, or in another order?)"
LOSSES = "loss: expected 'cross_entropy', 'binary_cross_entropy', 'mse', or an instance of nn.CrossEntropyLoss, nn.BCEW"

MISTAKES = {
    # --- weights and inputs
    "linear(x, weight)": (
        lambda: hessext.linear(X, U, Y),
        "y: expected shape (3,); got (20,) (are the weight and x sw",
    ),
    "linear(W.T, x)": (
        lambda: hessext.linear(U.T, X, Y),
        f"x: expected shape (any, 3); got (20, 6) ({NN}: the transpo",
    ),
    "linear(W, x.T)": (
        lambda: hessext.linear(U, X.T, Y),
        "x: expected shape (any, 6); got (6, 20) (samples are rows: ",
    ),
    "one_hidden(V, W)": (
        lambda: hessext.one_hidden(V, W, X, Y),
        f"output_weight: expected shape (any, 3); got (4, 6) {BOTH}",
    ),
    "one_hidden(W.T, V.T)": (
        lambda: hessext.one_hidden(W.T, V.T, X, Y),
        f"output_weight: expected shape (any, 6); got (4, 3) {BOTH}",
    ),
    "one_hidden(W, V.T)": (
        lambda: hessext.one_hidden(W, V.T, X, Y),
        f"output_weight: expected shape (any, 4); got (4, 3) ({NN}: its transpose would fit)",
    ),
    "one_hidden(W.T, V)": (
        lambda: hessext.one_hidden(W.T, V, X, Y),
        f"output_weight: expected shape (any, 6); got (3, 4) ({NN}: the transpose of the one before would fit)",
    ),
    "feed_forward([V, W])": (
        lambda: hessext.feed_forward([V, W], X, Y),
        f"weights[1]: expected shape (any, 3); got (4, 6) {BOTH}",
    ),
    "hessian(model, y, x)": (
        lambda: hessext.hessian(mlp(), Y, X),
        "x: expected torch.float32; got torch.int64 (are x and y swapped?)",
    ),
    "hessian(x, model)": (lambda: hessext.hessian(X, mlp(), Y), "model: expected an nn.Module; got Tensor"),
    "neither fits": (lambda: hessext.linear(U, torch.ones(N, 9), Y), "x: expected shape (any, 6); got (20, 9)"),
    # --- modules and lists where tensors are expected
    "linear(module)": (
        lambda: hessext.linear(nn.Linear(d, C), X, Y),
        "weight: expected a torch.Tensor; got Linear (hessext.hessian takes modules)",
    ),
    "one_hidden(module)": (
        lambda: hessext.one_hidden(mlp(), X, Y),
        "hidden_weight: expected a torch.Tensor; got Sequential (hessext.hessian takes modules)",
    ),
    "linear(two weights)": (
        lambda: hessext.linear(W, V, X, Y),
        "linear: expected weight, x, y, and all else by name; got 4 arguments (2 weights: hessext.one_hidden(W1, ",
    ),
    "one_hidden(three weights)": (
        lambda: hessext.one_hidden(W, torch.ones(m, m), V, X, Y),
        "one_hidden: expected hidden_weight, output_weight, x, y, and all else by name; got 5 arguments (3 weights: "
        "hessext.feed_forward([W1, W2, W3], x, y))",
    ),
    "one_hidden(loss)": (
        lambda: hessext.one_hidden(W, V, X, Y, "mse"),
        "one_hidden: expected hidden_weight, output_weight, x, y, and all else by name; got 5 arguments (a loss is ",
    ),
    "one_hidden(activation)": (
        lambda: hessext.one_hidden(W, V, X, Y, "tanh"),
        "one_hidden: expected hidden_weight, output_weight, x, y, and all else by name; got 5 arguments (an activation "
        "is passed as activation=)",
    ),
    "feed_forward(activation)": (
        lambda: hessext.feed_forward([W, V], X, Y, nn.Tanh()),
        "feed_forward: expected weights, x, y, and all else by name; got 4 arguments (an activation is passed as "
        "activations=)",
    ),
    "one_hidden(three layers)": (
        lambda: hessext.one_hidden([W, torch.ones(m, m), V], X, Y),
        "hidden_weight: expected a torch.Tensor; got list (hessext.feed_forward takes a list of weights)",
    ),
    # --- images
    **{
        f"images, {name}": (
            call,
            "x: expected shape (any, any, any, 6); got (20, 1, 2, 3) (x.flatten(1) would fit, and nn.Flatten() at the ",
        )
        for name, call in {
            "linear": lambda: hessext.linear(U, IMAGES, Y),
            "hessian": lambda: hessext.hessian(mlp(), IMAGES, Y),
            "one layer": lambda: hessext.hessian(nn.Linear(d, C), IMAGES, Y),
        }.items()
    },
    "images, head": (
        lambda: hessext.head(mlp(), "2", X.view(N, 1, 1, d), Y),
        "batches: expected targets of (20, 1, 1) samples in batch 0; got (20,) (does the model flatten its inputs?)",
    ),
    # --- which layer
    "no such layer": (
        lambda: hessext.head(mlp(), "5", X, Y),
        "module: expected a linear layer of the model, such as '0', '2'; got '5'",
    ),
    "none at all": (
        lambda: hessext.layer(nn.Sequential(nn.Flatten()), "5", X, Y),
        "name: expected a linear layer of the model, which has none; got '5'",
    ),
    "no layer given": (
        lambda: hessext.head(mlp(), X, Y),
        "module: expected an nn.Linear or its name, before the data; got Tensor",
    ),
    "an activation": (
        lambda: hessext.layer(mlp(), "1", X, Y),
        "name: expected an nn.Linear; got ReLU '1': linear layers are '0', '2'",
    ),
    "a convolution": (
        lambda: hessext.layer(nn.Sequential(nn.Conv1d(d, m, 1), nn.Flatten(), nn.Linear(m, C)), "0", X[..., None], Y),
        "name: expected an nn.Linear; got Conv1d '0': linear layers are '2'",
    ),
    "a subclass": (
        lambda: hessext.layer(nn.Sequential(LowRank(d, m), nn.Linear(m, C)), "0", X, Y),
        "name: expected an nn.Linear; got LowRank '0': a subclass of nn.Linear may compute anything",
    ),
    "attention's out_proj": (
        lambda: hessext.layer(attention(), "attention.out_proj", *SEQUENCES),
        "name: expected a linear layer that the model calls; MultiheadAttention uses the weight of 'atten",
    ),
    "attention's out_proj as a head": (
        lambda: hessext.head(attention(), "attention.out_proj", *SEQUENCES),
        "module: expected a linear layer that the model calls; MultiheadAttention uses the weight of 'atten",
    ),
    "old weight norm": (
        lambda: hessext.layer(nn.Sequential(nn.utils.weight_norm(nn.Linear(d, C))), "0", X, Y),
        "name: expected modules without forward hooks, which may change what they compute; got one on Linear '0' of "
        "torch.nn.utils.weight_norm (remove_weight_norm there makes its weight a parameter)",
    ),
    "a list of names for the head": (
        lambda: hessext.head(mlp(), ["0", "2"], X, Y),
        "module: expected an nn.Linear or its name, before the data; got list (hessext.layer takes several)",
    ),
    "a weight": (
        lambda: hessext.layer(model := mlp(), model[0].weight, X, Y),
        "name: expected an nn.Linear or its name, before the data; got Parameter (name the layer, not its weight)",
    ),
    "lazy": (
        lambda: hessext.layer(nn.Sequential(nn.LazyLinear(C)), "0", X, Y),
        "name: expected an nn.Linear; got LazyLinear '0': it has no sizes until model(x) is called",
    ),
    "meta": (
        lambda: hessext.head(mlp().to("meta"), "2", X, Y),
        "module: expected a layer on a CPU or CUDA device; got '2' on meta, without values",
    ),
    # --- compiled models
    "scripted": (
        lambda: hessext.layer(torch.jit.script(mlp()), "0", X, Y),
        "model: expected the nn.Module that torch.jit was given; got RecursiveScriptModule",
    ),
    "compiled inside, layer": (
        lambda: hessext.layer(nn.Sequential(torch.compile(mlp()), nn.Linear(C, C)), "1", X, Y),
        "model: expected modules themselves; got torch.compile's OptimizedModule '0', in whose place 0._orig_mod",
    ),
    "compiled inside, hessian": (
        lambda: hessext.hessian(nn.Sequential(torch.compile(mlp()), nn.Linear(C, C)), X, Y),
        "model: expected modules themselves; got torch.compile's OptimizedModule '0', in whose place 0._orig_mod",
    ),
    # --- losses
    "a loss by place": (
        lambda: hessext.feed_forward([W, V], X, Y, nn.MSELoss()),
        "feed_forward: expected weights, x, y, and all else by name; got 4 arguments (a loss is passed as loss=)",
    ),
    "class": (
        lambda: hessext.hessian(mlp(), X, Y, nn.CrossEntropyLoss),
        "loss: expected a name or an instance; got the class: CrossEntropyLoss() makes an instance",
    ),
    "function": (
        lambda: hessext.hessian(mlp(), X, Y, F.cross_entropy),
        LOSSES,
        "got cross_entropy. Try nn.CrossEntropyL",
    ),
    "BCELoss": (
        lambda: hessext.hessian(mlp(), X, Y, nn.BCELoss()),
        LOSSES,
        "got BCELoss(). Try nn.BCEWithLogitsLoss() ",
    ),
    "class of NLLLoss": (
        lambda: hessext.head(mlp(), "2", X, Y, nn.NLLLoss),
        LOSSES,
        "got NLLLoss. Try nn.CrossEntropyL",
    ),
    "KLDivLoss": (
        lambda: hessext.layer(mlp(), "0", X, Y, loss=nn.KLDivLoss()),
        LOSSES,
        "Try nn.CrossEntropyLoss() with",
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, when it loads its compiler, and of its torch.jit
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    call, message, *end = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(message) + ".*" + re.escape("".join(end))):
        call()


def test_what_the_hints_propose_is_taken():
    flat = hessext.hessian(mlp(nn.Flatten()), IMAGES, Y)
    assert flat.layers == ("1.weight", "1.bias", "3.weight", "3.bias")
    hessext.linear(U, IMAGES.flatten(1), Y)
    hessext.feed_forward([W, torch.ones(m, m), V], X, Y)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(d, m), nn.Tanh(), nn.Linear(m, C)).double()
    y = torch.rand(N, C, dtype=torch.float64).softmax(1)

    def kl(f):  # the loss whose Hessian that of the cross-entropy is
        return F.kl_div(f.log_softmax(1), y, reduction="batchmean")

    f = model(X.double()).detach()
    curvature = torch.func.jacrev(torch.func.grad(kl))(f)
    expected = torch.func.jacrev(torch.func.grad(lambda f: F.cross_entropy(f, y)))(f)
    torch.testing.assert_close(curvature, expected)


@pytest.mark.parametrize("name", ["ratio", "approximations", "grid", "row_norms", "features"])
def test_what_one_layer_has_is_asked_of_the_whole(name):
    H = hessext.hessian(mlp(), X, Y)
    with pytest.raises(
        AttributeError, match=rf"^'Hessian' .* '{name}', which belongs to one layer: H\['0'\]\.{name}, of '0', '2'$"
    ):
        getattr(H, name)
    layers = hessext.layer(mlp(), ["0", "2"], X, Y)
    with pytest.raises(AttributeError, match=rf"H\['0'\]\.{name}, of '0', '2'$"):
        getattr(layers, name)
    assert not hasattr(H, name)


def test_other_attributes_are_as_always():
    H = hessext.hessian(mlp(), X, Y)
    with pytest.raises(AttributeError, match=r"^'Hessian' object has no attribute 'spectrum'$"):
        _ = H.spectrum
    for other in (copy.copy(H), pickle.loads(pickle.dumps(H))):
        assert torch.equal(other.dense(), H.dense())
    with pytest.raises(AttributeError):
        _ = object.__new__(hessext.Hessian).layers


def test_messages_use_the_models_own_names():
    model = mlp()
    model[2].weight = nn.Parameter(torch.ones(C, m + 1))
    with pytest.raises(ValueError, match=r"^2\.weight: expected shape \(any, 4\); got \(3, 5\)"):
        hessext.hessian(model, X, Y)
    model = mlp()
    model[0].bias = nn.Parameter(torch.full((m,), torch.nan))
    with pytest.raises(ValueError, match=r"^0\.bias: expected finite values"):
        hessext.hessian(model, X, Y)
