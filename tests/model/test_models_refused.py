"""What `hessext.hessian` refuses, and why; reading a module beside other threads."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from helpers.modules import C, D, M, N, Net, normal
from torch import nn
from torch.nn.utils import parametrizations

import hessext


def two(*steps):
    return nn.Sequential(nn.Linear(D, D), *steps, nn.Linear(D, C))


def shared():
    layer = nn.Linear(D, D)
    return nn.Sequential(layer, nn.ReLU(), layer)


def discarded(net, x):
    z = net.fc1(x)
    F.relu(z, inplace=True)  # changes z, which the next line uses
    return net.fc2(z)


class Affine(nn.Linear):
    """A subclass may compute anything."""


def patched():
    model = nn.Linear(D, C)
    model.forward = lambda x: x
    return model


def hooked(register):
    model = two(nn.ReLU())
    getattr(model[0], register)(lambda *_: None)
    return model


class Called(nn.Sequential):
    def __call__(self, x):
        return -super().__call__(x)


def unused():
    return Net(lambda net, x: net.fc2(net.fc1(x)), spare=nn.Linear(2, 2))


def gated(gate, z):
    return z * gate(z)


def twice(z):
    return z * F.dropout(z, 0.0)


class Conv1D(nn.Module):
    """As transformers has it: the weight (inputs, outputs)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.weight, self.bias = nf, nn.Parameter(torch.ones(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


def first_scaled():
    net = Net(lambda net, x: net.fc2(net.fc1(net.scale * x)))
    net.scale = nn.Parameter(torch.ones(D))
    return net


def scaled():
    net = Net(lambda net, x: net.fc2(net.scale * net.fc1(x)))
    net.scale = nn.Parameter(torch.ones(M))
    return net


class Conditional(nn.Linear):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(D, C)

    def forward(self, x, other):
        return self.a(x)


class Sized(Pair):
    def forward(self, x, size=-1):
        return self.a(x.view(size, D))


REFUSED = {
    "two activations": (lambda: two(nn.ReLU(), nn.Tanh()), "Tanh '2' after an activation"),
    "softmax": (
        lambda: nn.Sequential(nn.Linear(D, C), nn.Softmax(-1)),
        "Softmax '1' at its end. The cross-entropies take logits: leave that step off, as model[:-1] does; for ",
    ),
    "sigmoid": (
        lambda: two(nn.ReLU()).append(nn.Sigmoid()),
        "Sigmoid '3' at its end. The cross-entropies take logits: leave that step off, as model[:-1] does; for ",
    ),
    "nested sigmoid": (
        lambda: two(nn.ReLU()).append(nn.Sequential(nn.Sigmoid())),
        "Sigmoid '3.0' at its end. The cross-entropies take logits: leave that step off; for 'mse' ",
    ),
    "log_softmax": (
        lambda: Net(lambda net, x: net.fc2(net.fc1(x).relu()).log_softmax(-1)),
        ".log_softmax() at its end. The cross-entropies take logits: leave that step off; for 'mse' ",
    ),
    "softmax in the middle": (lambda: two(nn.Softmax(-1)), "Softmax '1', which is not supported"),
    "activation at the end": (
        lambda: two(nn.ReLU()).append(nn.ReLU()),
        "an activation (relu) after the last linear layer",
    ),
    "activation after the only layer": (
        lambda: nn.Sequential(nn.Linear(D, C), nn.ReLU()),
        "an activation (relu) after the only linear layer",
    ),
    "activation first": (lambda: nn.Sequential(nn.ReLU(), nn.Linear(D, C)), "ReLU '0' before a linear layer"),
    "normalization": (lambda: two(nn.LayerNorm(D)), "LayerNorm '1', which"),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(D, C)), "Conv2d '0' before"),
    "no layer": (lambda: nn.Sequential(nn.Flatten()), "Sequential, which calls no nn.Linear"),
    "subclass": (lambda: nn.Sequential(Affine(D, C)), "the tensor '0.weight' outside of nn.Linear"),
    "the same layer twice": (shared, "Linear '0' twice"),
    "residual": (
        lambda: Net(lambda net, x: net.fc2(net.fc1(x) + net.pad(x)), pad=nn.Linear(D, M)),
        "Linear 'pad' of something other than the step before it",
    ),
    "in place, aside": (lambda: Net(discarded), "Linear 'fc2' of something other than the step before it"),
    "scaled by a parameter": (scaled, "the tensor 'scale' outside of nn.Linear"),
    "added number": (lambda: Net(lambda net, x: net.fc2(net.fc1(x) + 1)), "add(), which"),
    "power": (lambda: Net(lambda net, x: net.fc2(net.fc1(x).pow(2))), ".pow(), which"),
    "two results": (
        lambda: Net(lambda net, x: (x, net.fc1(x))),
        "a result other than that of the last step, which is not supported (hessext.layer takes a linear layer of any "
        "model, hessext.head its last one, with forward=lambda model, batch: (model(batch[0])[1], batch[1]))",
    ),
    "a dict": (
        lambda: Net(lambda net, x: {"logits": net.fc2(net.fc1(x))}),
        "a result other than that of the last step, which is not supported (hessext.layer takes a linear layer of any "
        "model, hessext.head its last one, with forward=lambda model, batch: (model(batch[0])['logits'], batch[1]))",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(C)), "LazyLinear '0'"),
    "an earlier result": (
        lambda: Net(lambda net, x: [net.fc1(x), net.fc2(net.fc1(x))][0]),
        "Linear 'fc1' of something other than the step before it",
    ),
    "control flow": (lambda: nn.Sequential(Conditional(D, C)), "Sequential, whose forward torch.fx cannot follow: sym"),
    "second input": (Pair, "a second input, other"),
    "second input with a default": (Sized, "a second input, size"),
    "dropout": (lambda: two(nn.Dropout(0.1)), "Dropout '1' in training mode with p = 0.1"),
    "functional dropout": (lambda: Net(lambda net, x: net.fc2(F.dropout(net.fc1(x)))), "dropout() in training mode"),
    "unused": (
        unused,
        "fc1.weight, fc1.bias, fc2.weight, fc2.bias, spare.weight, spare.bias (tied, unused or replaced?)",
    ),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(D, C))),
        "Linear '0', whose weight is made of other parameters (hessext.layer takes '0.weight')",
    ),
    "old weight norm": (
        lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(D, C))),
        "one on Linear '0' of torch.nn.utils.weight_norm (remove_weight_norm there makes its weight a parameter)",
    ),
    "Conv1D of transformers": (lambda: nn.Sequential(Conv1D(M, D), nn.ReLU(), nn.Linear(M, C)), "Conv1D '0' before"),
    "gated by something else": (
        lambda: Net(lambda net, x: net.fc2(net.fc1(x) * torch.tanh(net.fc1(x)))),
        "Linear 'fc1' of something other than the step before it",
    ),
    "product of tanh": (lambda: Net(lambda net, x: net.fc2(gated(torch.tanh, net.fc1(x)))), "mul() of something other"),
    "sigmoid and itself": (lambda: Net(lambda net, x: net.fc2(twice(net.fc1(x).sigmoid()))), "mul() of something"),
    "sigmoid in place": (
        lambda: Net(lambda net, x: net.fc2(gated(torch.sigmoid_, net.fc1(x)))),
        "mul() of something other",
    ),
    "scaled after": (lambda: Net(lambda net, x: net.fc2(net.fc1(x).to(x.dtype))), "getattr() of something other"),
    "a parameter before": (lambda: first_scaled(), "the tensor 'scale' outside of nn.Linear before"),
    "patched forward": (patched, "another one on Linear"),
    "call": (lambda: Called(nn.Linear(D, C)), "another one on Called"),
    "hook": (lambda: hooked("register_forward_hook"), "one on Linear '0'"),
    "hook before": (lambda: hooked("register_forward_pre_hook"), "one on Linear '0'"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(TypeError, match="^model: expected .*; got " + re.escape(message)):
        hessext.hessian(make().double(), normal(N, D), torch.arange(N) % C)


def test_inputs_that_do_not_fit_the_first_steps():
    model = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.Linear(D, C)).double()
    with pytest.raises(ValueError, match=r"^x: expected a shape that the model takes; got \(5, 5\): "):
        hessext.hessian(model, normal(N, 5), torch.arange(N) % C)
    with pytest.raises(TypeError, match=r"^x: expected a torch\.Tensor; got list"):
        hessext.hessian(model, [[1.0] * D], torch.arange(1))


def test_tied_weights():
    model = two(nn.ReLU())
    model[2] = nn.Linear(D, D)
    model[2].weight = model[0].weight
    with pytest.raises(TypeError, match=r"^model: expected the parameters 0\.weight, 0\.bias, 2\.weight, 2\.bias; got"):
        hessext.hessian(model.double(), normal(N, D), torch.arange(N) % C)


def test_other_threads_use_modules_while_one_is_read():
    """torch.fx changes nn.Module for all threads: what another one does in the middle must not see it."""
    torch.manual_seed(3)
    other, x, found = nn.Linear(D, C).double(), normal(N, D), []

    def forward(net, x):
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(lambda: (other(normal(N, D)), net.fc1.weight)).result())
        return net.fc2(net.fc1(x))

    net = Net(forward).double()
    hessext.hessian(net, x, torch.arange(N) % C)
    ((logits, weight),) = found
    assert torch.equal(logits, other(x))
    assert weight is net.fc1.weight


def test_several_threads_read_at_once():
    net, x, y = Net(lambda net, x: net.fc2(net.fc1(x).tanh())).double(), normal(N, D), torch.arange(N) % C
    expected, call = hessext.hessian(net, x, y).dense(), nn.Module.__call__
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(H, expected) for H in pool.map(lambda _: hessext.hessian(net, x, y).dense(), range(40)))
    assert nn.Module.__call__ is call


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, when it loads its compiler
@pytest.mark.parametrize(
    ("wrap", "inner", "what"),
    [(nn.DataParallel, "module", "DataParallel"), (torch.compile, "_orig_mod", "torch.compile's OptimizedModule")],
    ids=["parallel", "compiled"],
)
def test_wrapped_modules(wrap, inner, what):
    wrapped = wrap(nn.Linear(D, C).double())
    with pytest.raises(TypeError, match=rf"^model: expected the module itself, model\.{inner}; got {what} around it$"):
        hessext.hessian(wrapped, normal(N, D), torch.arange(N) % C)
    assert hessext.hessian(getattr(wrapped, inner), normal(N, D), torch.arange(N) % C).layers == ("weight", "bias")


def test_targets_in_place_of_the_loss():
    with pytest.raises(TypeError, match=r"not of a subclass\); got a tensor$"):
        hessext.hessian(nn.Linear(D, C).double(), normal(N, D), torch.arange(N) % C, torch.ones(99))
