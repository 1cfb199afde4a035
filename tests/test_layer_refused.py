"""What `hessext.layer` refuses: each with what to do instead, and each at the call where it can be seen there."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import Convolutional, Transformer, images, tokens
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import hessext

X, Y = images(5), torch.arange(5) % 4
GOOD = [(X, Y)]


class Chain(nn.Module):
    """Linear layers a, b, c of 6 units, and what comes between them."""

    def __init__(self, steps, **modules):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        for name, module in modules.items():
            self.add_module(name, module)
        self.steps = steps
        self.double()

    def forward(self, x):
        return self.steps(self, x)


def asked(steps, name="a", **modules):
    """The arguments of a call with a Chain in training mode."""
    return Chain(steps, **modules), name, torch.rand(5, 4).double(), torch.arange(5) % 3


def plain(m, x):
    return m.c(F.silu(m.b(F.silu(m.a(x)))))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class Compiled(torch.autograd.Function):
    """As what torch.compile makes."""

    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("torch.compile with aot_autograd does not currently support double backward")


def quantized():
    model = Convolutional()
    model.fc1.weight = nn.Parameter(torch.ones(9, 12, dtype=torch.int8), requires_grad=False)
    return model


def tied():
    model = Chain(lambda m, x: m.c(m.d(F.silu(m.b(m.a(x))))), d=nn.Linear(6, 6))
    model.d.weight = model.b.weight
    return model, "b", torch.rand(5, 4).double(), torch.arange(5) % 3


def hooked(name, kind, method="register_forward_hook"):
    model = Convolutional()
    getattr(model.get_submodule(name), method)(lambda *_: None)
    return model, kind, X, Y


REFUSED = {
    "no module": ((nn.Linear, "fc1", GOOD), TypeError, "model: expected an nn.Module; got type"),
    "wrapped": ((nn.DataParallel(Convolutional()), "fc1", GOOD), TypeError, "model: expected the module itself"),
    "unknown name": (
        (Convolutional(), "fc4", GOOD),
        ValueError,
        "name: expected a linear layer of the model, such as 'fc1', 'fc2', 'fc3'; got 'fc4'",
    ),
    "no name": ((Convolutional(), [], GOOD), ValueError, "name: expected a linear layer or a list of some"),
    "one name twice": ((Convolutional(), ["fc1", "fc1"], GOOD), ValueError, "name: expected different layers"),
    "number": (
        (Convolutional(), 3, GOOD),
        TypeError,
        "name: expected an nn.Linear or its name, before the data; got int",
    ),
    "convolution": ((Convolutional(), "features.0", GOOD), TypeError, "name: expected an nn.Linear; got Conv2d"),
    "quantized": (
        (quantized(), "fc1", GOOD),
        TypeError,
        "name: expected a weight of floating point numbers; got torch",
    ),
    "no batches": ((Convolutional(), "fc1", []), ValueError, "batches: expected at least one; got none"),
    "no iterable": ((Convolutional(), "fc1", 3), TypeError, "x: expected a tensor beside y, or an iterable of batches"),
    "a dict": ((Convolutional(), "fc1", {"x": X}), TypeError, "x: expected a tensor beside y, or an iterable"),
    "loader and y": (
        (Convolutional(), "fc1", DataLoader(TensorDataset(X, Y)), Y),
        TypeError,
        "y: expected None beside batches (x, y); got Tensor",
    ),
    "no pairs": ((Convolutional(), "fc1", [X]), TypeError, "batches: expected pairs (x, y), or forward=, which runs"),
    "no targets": (
        (Convolutional(), "fc1", X),
        ValueError,
        "y: expected targets, or batches (x, y): the Hessian of 'fc1' depends",
    ),
    "labels": ((Convolutional(), "fc1", X, Y + 4), ValueError, "batch 0: y: expected labels in [0, 4); got 7"),
    "fewer targets": ((Convolutional(), "fc1", X, Y[1:]), ValueError, "batch 0: y: expected shape (5,); got (4,)"),
    "lists": ((Convolutional(), "fc1", [(X, Y.tolist())]), TypeError, "batch 0: y: expected a torch.Tensor; got list"),
    "nan": ((Convolutional(), "fc1", X * torch.nan, Y), ValueError, "batch 0: model: logits: expected finite values"),
    "dropout": (
        asked(lambda m, x: m.c(m.drop(m.a(x))), drop=nn.Dropout()),
        ValueError,
        "model: expected evaluation mode (call model.eval()), where dropout and batch normalization do not act on the "
        "batch; got Dropout 'drop' in training mode",
    ),
    "batch normalization": (
        asked(lambda m, x: m.c(m.norm(m.a(x))), norm=nn.BatchNorm1d(6)),
        ValueError,
        "model: expected evaluation mode (call model.eval())",
    ),
    "functional dropout": (
        asked(lambda m, x: m.c(F.dropout(m.a(x), training=m.training))),
        ValueError,
        "model: expected a forward pass without random numbers",
    ),
    "statistics of the batch": (
        asked(lambda m, x: m.c(m.norm(m.a(x))), norm=nn.BatchNorm1d(6, track_running_stats=False)),
        ValueError,
        "name: expected a layer after which samples and positions are kept apart; those of 'a' are mixed in batch 0",
    ),
    "called twice": (
        asked(lambda m, x: m.c(m.b(m.b(m.a(x)))), "b"),
        ValueError,
        "name: expected a layer that is called once in each batch; got 2 calls of 'b'",
    ),
    "never called": (
        asked(lambda m, x: m.c(m.a(x)), "b"),
        ValueError,
        "name: expected a layer that is called once in each batch; got 0 calls of 'b'",
    ),
    "without effect": (
        asked(lambda m, x: m.c(m.a(x) + 0 * m.b(m.a(x)).detach()), "b"),
        ValueError,
        "name: expected a layer that the logits depend on; got 'b'",
    ),
    "tied to a later layer": (
        tied(),
        ValueError,
        "name: expected a layer whose parameters are used nowhere after it; those of 'b' are used again",
    ),
    "used again as a tensor": (
        asked(lambda m, x: m.c(F.linear(F.silu(m.b(m.a(x))), m.b.weight)), "b"),
        ValueError,
        "name: expected a layer whose parameters are used nowhere after it; those of 'b' are used again",
    ),
    "one derivative": (
        asked(lambda m, x: m.c(Once.apply(m.b(m.a(x))))),
        TypeError,
        "model: expected operations with second derivatives after the layer",
    ),
    **{
        f"checkpoints, {reentrant}": (
            asked(lambda m, x, r=reentrant: m.c(checkpoint(lambda z: F.silu(m.b(z)), m.a(x), use_reentrant=r))),
            TypeError,
            "model: expected operations with second derivatives after the layer",
        )
        for reentrant in (True, False)
    },
    "compiled": (
        asked(lambda m, x: m.c(Compiled.apply(m.b(m.a(x))))),
        TypeError,
        "model: expected operations with second derivatives after the layer",
    ),
    "one logit, squeezed": (
        asked(lambda m, x: m.c(m.a(x))[:, 0]),
        TypeError,
        "model: expected logits (..., C) of at least two axes; got a tensor (5,) (one logit of N samples is (N, 1), wi",
    ),
    "hook on it": (hooked("fc1", "fc1"), TypeError, "name: expected modules without forward hooks"),
    "hook after it": (hooked("fc2", "fc1"), TypeError, "model: expected modules without forward hooks, which may"),
    "hook around it": (hooked("", "fc1", "register_forward_pre_hook"), TypeError, "model: expected modules without"),
    "backward hook": (
        hooked("fc2", "fc1", "register_full_backward_hook"),
        TypeError,
        "model: expected modules without backward hooks",
    ),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # of checkpoints
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    arguments, error, message = REFUSED[name]
    with pytest.raises(error, match="^" + re.escape(message)):
        hessext.layer(*arguments)


def test_hooks_before_the_layer_are_none_of_its_business():
    arguments = hooked("features.0", "fc1")
    expected = hessext.layer(Convolutional(), "fc1", X, Y).dense()
    assert torch.equal(hessext.layer(*arguments).dense(), expected)


@pytest.mark.parametrize(
    ("register", "message"),
    [
        ("register_module_forward_hook", "expected no global forward hooks"),
        ("register_module_forward_pre_hook", "expected no global forward hooks"),
        ("register_module_full_backward_hook", "expected no global backward hooks"),
    ],
)
def test_global_hooks(register, message):
    """They change what modules compute without a trace on any of them; derivatives in closed form run no backward."""
    model, x, y = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(5, 4), torch.arange(5) % 2
    handle = getattr(torch_module, register)(lambda *_: None)
    try:
        with pytest.raises(TypeError, match=message):
            hessext.layer(model, "0", x, y)
        if "backward" not in register:
            for ask in (lambda: hessext.head(model, "2", x, y), lambda: hessext.hessian(model, x, y)):
                with pytest.raises(TypeError, match=message):
                    ask()
    finally:
        handle.remove()


class Scale(nn.modules.lazy.LazyModuleMixin, nn.Module):
    """A lazy module that stays one when it has sizes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.UninitializedParameter()

    def initialize_parameters(self, x):
        with torch.no_grad():
            self.weight.materialize(x.shape[-1:])
            self.weight.fill_(2)

    def forward(self, x):
        return x * self.weight


def test_lazy_modules_with_sizes():
    model, x, y = nn.Sequential(nn.Linear(4, 3), Scale(), nn.Linear(3, 2)), torch.rand(5, 4), torch.arange(5) % 2
    with pytest.raises(
        TypeError, match=r"^model: expected layers with sizes, which model\(x\) gives lazy ones; got Scale"
    ):
        hessext.hessian(model, x, y)
    model(x)
    assert hessext.autograd.check(hessext.layer(model, "0", x, y))


@pytest.mark.parametrize("changed", ["weight", "buffer", "batch", "targets"])
def test_changes_in_place_afterwards(changed):
    model, x, y = Convolutional(), X.clone(), Y.clone()
    H = hessext.layer(model, "fc2", [(x, y)])
    H.dense()
    tensors = {"weight": model.fc3.weight, "buffer": model.features[1].running_mean, "batch": x, "targets": y}
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="was changed in place after the Hessian was made"):
        H.dense()


def test_training_mode_afterwards():
    model = Chain(lambda m, x: m.c(m.drop(F.silu(m.a(x)))), drop=nn.Dropout()).eval()
    H = hessext.layer(model, "a", torch.rand(5, 4).double(), torch.arange(5) % 3, memory=200)
    H.dense()
    model.train()
    with pytest.raises(ValueError, match=r"^model: expected evaluation mode"):
        H.dense()


def test_inputs_beyond_memory():
    with pytest.raises(MemoryError, match=r"^the layers' inputs need \d+ bytes .* and memory=100 allows fewer"):
        hessext.layer(Convolutional(), "fc1", X, Y, memory=100)
    with pytest.raises(ValueError, match=r"^memory: expected at least 1"):
        hessext.layer(Convolutional(), "fc1", X, Y, memory=-1)


def test_other_uses_of_a_tied_weight_before_the_layer_are_held_fixed():
    model, x = Transformer(), tokens(2, 4)
    assert model.head.weight is model.embed.weight
    assert hessext.autograd.check(hessext.layer(model, ["head", "blocks.1.mlp.up"], x, x))
