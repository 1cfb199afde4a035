"""Which modules `hessext.hessian` takes, and under which names, against float64 autograd."""

from __future__ import annotations

import itertools
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from helpers.cases import ACTIVATIONS
from helpers.modules import C, D, M, N, Net, T, hessian_of, normal
from torch import nn

import hessext


def autograd(model, x, y, loss):
    """Hessian of torch's loss of flattened logits and targets in all parameters, in their order."""

    def value(logits):
        if isinstance(loss, nn.BCEWithLogitsLoss):
            return loss(logits.view(y.shape), y)
        if loss == "mse":
            return (logits - y).square().sum(-1).mean()
        return loss(logits.flatten(0, -2), y.flatten() if not y.is_floating_point() else y.flatten(0, -2))

    return hessian_of(model, x, value)


def assert_exact(model, x, y, loss) -> hessext.Hessian:
    model = model.double().eval()
    H = hessext.hessian(model, x, y, loss)
    expected = autograd(model, x, y, loss)
    assert H.layers == tuple(name for name, _ in model.named_parameters())
    torch.testing.assert_close(H.dense(), expected, rtol=0, atol=1e-12 * expected.abs().max().item())
    v = normal(len(expected), seed=9)
    torch.testing.assert_close(H @ v, expected @ v, rtol=0, atol=1e-11 * expected.abs().max().item())
    assert hessext.autograd.check(H)
    return H


# --- forms -------------------------------------------------------------------------------------------------------


def seen(*steps):
    return nn.Sequential(*steps)


def changed(net, x):
    z = net.fc1(x)
    z.relu_()
    return net.fc2(z)


class Standardized(nn.Module):
    """Buffers before the first layer."""

    def __init__(self, functions=False):
        super().__init__()
        self.functions = functions
        self.register_buffer("mean", normal(D, seed=7))
        self.register_buffer("std", normal(D, seed=8).abs() + 0.5, persistent=False)

    def forward(self, x):
        if self.functions:
            return torch.div(torch.sub(x, self.mean), self.std)
        return (x - self.mean) / self.std


HEAD = lambda: nn.Linear(D, C)  # noqa: E731
FLAT = (2, 2)  # D features as an image
FORMS = {  # name: (module, shape of a sample)
    "linear": (HEAD, (D,)),
    "in a sequential": (lambda: seen(HEAD()), (D,)),
    "nested twice": (lambda: seen(seen(nn.Flatten(), seen(nn.Linear(D, M), nn.Tanh())), seen(nn.Linear(M, C))), FLAT),
    "flatten, linear": (lambda: seen(nn.Flatten(), nn.Dropout(0.0), HEAD()), FLAT),
    "dropout and identity": (
        lambda: seen(
            nn.Dropout(), nn.Linear(D, M), nn.Identity(), nn.ReLU(), nn.Dropout(), nn.Linear(M, C), nn.Dropout()
        ),
        (D,),
    ),
    "no activation": (lambda: seen(nn.Linear(D, M), nn.Dropout(), nn.Linear(M, C, bias=False)), (D,)),
    "inplace": (lambda: seen(nn.Linear(D, M, bias=False), nn.ReLU(inplace=True), nn.Linear(M, C)), (D,)),
    "module of modules": (lambda: Net(lambda net, x: net.fc2(net.act(net.fc1(x))), act=nn.GELU()), (D,)),
    "last layer first": (lambda: Net(lambda net, x: net.fc2(net.fc1(x).relu()), names=("fc2", "fc1")), (D,)),
    "last first, no bias": (
        lambda: Net(lambda net, x: net.fc2(F.silu(net.fc1(x))), names=("fc2", "fc1"), bias=False),
        (D,),
    ),
    "functional dropout": (
        lambda: Net(lambda net, x: net.fc2(F.dropout(torch.tanh(net.fc1(x)), 0.4, training=net.training))),
        (D,),
    ),
    "view": (lambda: Net(lambda net, x: net.fc2(F.relu(net.fc1(x.view(x.size(0), -1))))), FLAT),
    "reshape": (
        lambda: Net(lambda net, x: net.fc2(F.relu(net.fc1(x.reshape(-1, x.shape[1] * x.shape[2]))))),
        FLAT,
    ),
    "to a dtype": (lambda: Net(lambda net, x: net.fc2(F.relu(net.fc1(x.to(torch.float64))))), (D,)),
    "to the weight's dtype and device": (
        lambda: Net(lambda net, x: net.fc2(net.fc1(x.to(net.fc1.weight.device, net.fc1.weight.dtype)).tanh())),
        (D,),
    ),
    "to a parameter's device": (
        lambda: Net(lambda net, x: net.fc2(net.fc1(x.to(next(net.parameters()).device).flatten(1)).tanh())),
        FLAT,
    ),
    "double, detached": (lambda: Net(lambda net, x: net.fc2(net.fc1(x.double().detach().cpu()).relu())), (D,)),
    "standardized": (lambda: Net(lambda net, x: net.fc2(net.fc1((x / 255 - 0.5) * 3 + 1).tanh())), (D,)),
    "buffers": (lambda: seen(nn.Flatten(), Standardized(), nn.Linear(D, M), nn.GELU(), nn.Linear(M, C)), FLAT),
    "buffers, functions": (lambda: seen(Standardized(functions=True), HEAD()), (D,)),
    "changed in place, aside": (lambda: Net(changed), (D,)),
    "torch.flatten": (lambda: Net(lambda net, x: net.fc2(torch.sigmoid(net.fc1(torch.flatten(x, 1))))), FLAT),
    "inner module": (
        lambda: Net(lambda net, x: net.inner(x), names=(), inner=Net(lambda net, x: net.fc2(net.fc1(x).tanh()))),
        (D,),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), "mse"], ids=["cross-entropy", "mse"])
def test_forms(form, loss):
    make, shape = FORMS[form]
    torch.manual_seed(0)
    y = normal(N, C, seed=1) if loss == "mse" else torch.arange(N) % C
    assert_exact(make(), normal(N, *shape), y, loss)


def test_buffers_are_those_of_the_call():
    """Batches are read later: what becomes of the model's buffers does not matter; they move with the data."""
    model = seen(Standardized(), nn.Linear(D, M), nn.Tanh(), nn.Linear(M, C)).double()
    x, y = normal(N, D), torch.arange(N) % C
    expected = hessext.hessian(model, x, y).dense()
    H = hessext.hessian(model, [(x, y)])
    model[0].mean += 1
    torch.testing.assert_close(H.dense(), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(pickle.loads(pickle.dumps(H)).dense(), H.dense(), rtol=0, atol=0)
    torch.testing.assert_close(H.to(torch.float32).dense(), expected.float(), rtol=1e-4, atol=1e-6)


CALLS = {
    "F.relu": F.relu,
    "F.relu, in place": lambda z: F.relu(z, inplace=True),
    "torch.relu": torch.relu,
    ".relu()": lambda z: z.relu(),
    ".relu_()": lambda z: z.relu_(),
    "torch.relu_": torch.relu_,
    "F.leaky_relu_": lambda z: F.leaky_relu_(z, 0.2),
    ".tanh_()": lambda z: z.tanh_(),
    "torch.sigmoid_": torch.sigmoid_,
    "z sigmoid(z)": lambda z: z * torch.sigmoid(z),
    "sigmoid(z) z": lambda z: z.sigmoid() * z,
    "z.mul(F.sigmoid(z))": lambda z: z.mul(F.sigmoid(z)),
    "torch.mul": lambda z: torch.mul(torch.sigmoid(z), z),
    "z sigmoid(z), and identity": lambda z: F.dropout(z * torch.sigmoid(z), 0.0),
    "F.leaky_relu": F.leaky_relu,
    "F.leaky_relu, slope": lambda z: F.leaky_relu(z, 0.3),
    "F.tanh": F.tanh,
    "torch.tanh": torch.tanh,
    ".tanh()": lambda z: z.tanh(),
    "F.sigmoid": F.sigmoid,
    "torch.sigmoid": lambda z: torch.sigmoid(input=z),
    ".sigmoid()": lambda z: z.sigmoid(),
    "F.gelu": F.gelu,
    "F.gelu, tanh": lambda z: F.gelu(z, approximate="tanh"),
    "F.silu": F.silu,
    "F.softplus": F.softplus,
    "F.softplus, beta": lambda z: F.softplus(z, 3.0, threshold=2.0),
}


@pytest.mark.parametrize("call", CALLS)
def test_functions_are_activations(call):
    torch.manual_seed(1)
    net = Net(lambda net, x: net.fc2(CALLS[call](net.fc1(x))))
    assert_exact(net, 2 * normal(N, D), torch.arange(N) % C, nn.CrossEntropyLoss())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_modules_are_activations(name):
    torch.manual_seed(1)
    net = Net(lambda net, x: net.fc2(net.act(net.fc1(x))), act=ACTIVATIONS[name])
    assert_exact(net, 2 * normal(N, D), torch.arange(N) % C, nn.CrossEntropyLoss())


def test_names_of_nested_modules():
    H = assert_exact(FORMS["nested twice"][0](), normal(N, *FLAT), torch.arange(N) % C, nn.CrossEntropyLoss())
    assert H.layers == ("0.1.0.weight", "0.1.0.bias", "1.0.weight", "1.0.bias")
    assert H["0.1.0"].grid == (M, M)


# --- tokens ------------------------------------------------------------------------------------------------------

WEIGHT = torch.tensor([0.5, 0.125, 2.0], dtype=torch.float64)


def token_losses():
    """Every combination of torch's options with targets of positions (N, T)."""
    for reduction in ("mean", "sum"):
        for weight, smoothing, ignore in itertools.product((None, WEIGHT), (0.0, 0.3), (-100, 1)):
            loss = nn.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=smoothing, ignore_index=ignore)
            for kind in ("labels", "probabilities") if ignore < 0 else ("labels",):
                yield pytest.param(loss, kind, id=f"{kind}-{reduction}-{weight is not None}-{smoothing}-{ignore}")
        yield pytest.param(nn.MSELoss(reduction=reduction), "vectors", id=f"mse-{reduction}")
        for shape, wide in itertools.product(((), (1,)), (False, True)):
            sizes = (N, T, *shape)
            some = {"weight": 0.5 + normal(*sizes[1:]).abs(), "pos_weight": 0.5 + normal(*sizes).abs()} if wide else {}
            loss = nn.BCEWithLogitsLoss(reduction=reduction, **some)
            yield pytest.param(loss, f"binary {len(sizes)}", id=f"binary-{reduction}-{len(sizes)}-{wide}")
    yield pytest.param("mse", "vectors", id="mse of samples")


@pytest.mark.parametrize("hidden", [False, True], ids=["linear", "hidden"])
@pytest.mark.parametrize(("loss", "kind"), list(token_losses()))
def test_tokens(loss, kind, hidden):
    torch.manual_seed(2)
    classes = 1 if "binary" in kind else C
    model = nn.Sequential(nn.Linear(D, M), nn.GELU(), nn.Linear(M, classes)) if hidden else nn.Linear(D, classes)
    y = normal(N, T, classes, seed=1)
    if kind == "labels":
        y = torch.randint(C, (N, T))
        y[1] = loss.ignore_index
    elif kind == "probabilities":
        y = y.softmax(-1)
    elif kind == "binary 2":
        y = y[..., 0].sigmoid()
    assert_exact(model, normal(N, T, D), y, loss)


def test_tokens_of_plain_tensors_are_flattened_samples():
    W, V, x, y = normal(C, D), normal(C, M), normal(N, T, D), torch.arange(N * T).view(N, T) % C
    H, flat = hessext.linear(W, x, y), hessext.linear(W, x.flatten(0, 1), y.flatten())
    assert torch.equal(H.dense(), flat.dense())
    H = hessext.one_hidden(normal(M, D), V, x.transpose(0, 1), y.T)
    flat = hessext.one_hidden(normal(M, D), V, x.transpose(0, 1).flatten(0, 1), y.T.flatten())
    assert torch.equal(H.dense(), flat.dense())
    assert hessext.linear(W, x).dense().shape == (C * D, C * D)
    H = hessext.linear(W, x, y)
    x.mul_(2)
    with pytest.raises(RuntimeError, match=r"^x was changed in place"):
        H.dense()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (
            torch.zeros(N * T, dtype=torch.int64),
            "y: expected int64 labels (5, 3) or torch.float64 targets (5, 3, 3); got",
        ),
        (torch.zeros(T, N, dtype=torch.int64), "y: expected shape (5, 3); got (3, 5)"),
        (normal(N, C, T + 1), "y: expected shape (5, 3, 3); got (5, 3, 4)"),
    ],
)
def test_targets_of_other_positions(y, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        hessext.linear(normal(C, D), normal(N, T, D), y)
