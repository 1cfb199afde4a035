"""`hessext.head`: the last linear layer of a larger network, from batches of any form, against autograd."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hessext

D, C = 6, 5


class Language(nn.Module):
    """Tokens to logits, with the embedding as the head's weight."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(C, D, dtype=dtype)
        self.block = nn.Sequential(nn.LayerNorm(D, dtype=dtype), nn.Linear(D, D, dtype=dtype), nn.GELU(), nn.Dropout())
        self.lm_head = nn.Linear(D, C, bias=False, dtype=dtype)
        self.lm_head.weight = self.embed.weight
        self.eval()

    def features(self, tokens):
        """What the head is given."""
        return self.block(self.embed(tokens).cumsum(1))

    def forward(self, tokens):
        return self.lm_head(input=self.features(tokens))


def shifted(labels):
    return F.pad(labels[:, 1:], (0, 1), value=-100)


def next_token(model, batch):
    model(batch["tokens"])
    return shifted(batch["tokens"])


def texts(*sizes):
    return [
        {"tokens": torch.randint(C, size, generator=torch.Generator().manual_seed(k))} for k, size in enumerate(sizes)
    ]


def autograd(features, weight, y, loss):
    """Hessian of torch's loss over all samples at once in the head's weight alone."""

    def value(w):
        return loss(features @ w.view(weight.shape).T, y)

    return torch.func.jacrev(torch.func.grad(value))(weight.detach().flatten())


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(torch.linspace(0.5, 2, C).double(), label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="sum"),
    ],
    ids=["plain", "weighted", "sum"],
)
def test_language_model_with_tied_weights(loss):
    """Batches of unequal length, the last position ignored: the mean is over all that count."""
    model, batches = Language(), texts((3, 4), (1, 7), (2, 2))
    H = hessext.head(model, "lm_head", batches, loss, forward=next_token)
    features = torch.cat([model.features(b["tokens"]).flatten(0, 1) for b in batches]).detach()
    y = torch.cat([shifted(b["tokens"]).flatten() for b in batches])
    expected = autograd(features, model.lm_head.weight, y, loss)
    assert H.layers == ("lm_head.weight",)
    torch.testing.assert_close(H.dense(), expected, rtol=0, atol=1e-12 * expected.abs().max().item())
    assert torch.equal(H["lm_head"].dense(), H["lm_head.weight"].dense())
    assert hessext.autograd.check(H)
    assert not model.lm_head._forward_hooks


def classifier(dtype=torch.float32):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv1d(1, 2, 2, dtype=dtype), nn.BatchNorm1d(2, dtype=dtype), nn.Flatten(), nn.Linear(D, C, dtype=dtype)
    ).eval()


def data(dtype=torch.float32):
    g = torch.Generator().manual_seed(2)
    return torch.randn(11, 1, 4, generator=g, dtype=dtype), torch.randint(C, (11,), generator=g)


@pytest.mark.parametrize("form", ["name", "module"])
def test_classifier_over_a_loader(form):
    model, (x, y) = classifier(), data()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    layer = "3" if form == "name" else model[3]
    H = hessext.head(model, layer, DataLoader(TensorDataset(x, y), batch_size=4))
    features = model[:3](x).detach()
    expected = hessext.linear(model[3].weight, features, y, bias=model[3].bias)
    assert H.layers == ("3.weight", "3.bias")
    torch.testing.assert_close(H.dense(), expected.dense())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not H.dense().requires_grad


@pytest.mark.parametrize(("kind", "loss"), [("probabilities", "cross_entropy"), ("vectors", nn.MSELoss())])
def test_other_targets(kind, loss):
    model, (x, _) = classifier(torch.float64), data(torch.float64)
    y = torch.linspace(0, 1, 11 * C).view(11, C).softmax(1)  # float32 beside a float64 model
    H = hessext.head(model, "3", [(x[:8], y[:8]), (x[8:], y[8:])], loss)
    features = model[:3](x).detach()
    expected = hessext.linear(model[3].weight, features, y.double(), bias=model[3].bias, loss=loss)
    torch.testing.assert_close(H.dense(), expected.dense())
    torch.testing.assert_close((H @ torch.ones(H.shape[0]).double()), expected @ torch.ones(H.shape[0]).double())


def test_without_targets():
    model, (x, y) = classifier(), data()

    def forward(model, x):
        model(x)

    H = hessext.head(model, "3", [x], forward=forward)
    assert torch.equal(H.dense(), hessext.head(model, "3", [(x, y)]).dense())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_lifted(dtype):
    model, batches = Language(dtype), texts((4, 5))
    H = hessext.head(model, "lm_head", batches, forward=next_token)
    features, y = model.features(batches[0]["tokens"]).detach().flatten(0, 1), shifted(batches[0]["tokens"]).flatten()
    assert H.dtype == torch.float32
    assert torch.equal(H.dense(), hessext.linear(model.lm_head.weight.float(), features.float(), y).dense())


def test_features_changed_in_place_afterwards():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(D, C)

        def forward(self, x):
            logits = self.out(x)
            x.zero_()
            return logits

    model, x, y = Careless().eval(), torch.ones(4, D), torch.arange(4)
    H = hessext.head(model, "out", [(x.clone(), y)])
    assert torch.equal(H.dense(), hessext.linear(model.out.weight, x, y, bias=model.out.bias).dense())


def test_the_model_may_be_the_layer():
    layer, x, y = nn.Linear(D, C).eval(), torch.ones(4, D), torch.arange(4)
    H = hessext.head(layer, layer, [(x, y)])
    assert H.layers == ("weight", "bias")
    assert torch.equal(H.dense(), hessext.hessian(layer, x, y).dense())


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_layer_that_does_not_give_the_logits():
    class Cool(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(D, C)

        def forward(self, x):
            return self.out(x).mul_(0.5)

    for model, name in ((Cool(), "out"), (nn.Sequential(nn.Linear(D, C), nn.LogSoftmax(-1)), "0")):
        with pytest.raises(ValueError, match=r"^module: expected a layer whose outputs are what model\(x\) returns"):
            hessext.head(model.eval(), name, [(torch.ones(4, D), torch.arange(4))])


X, Y = data()
GOOD = [(X, Y)]
BAD = {
    "no module": ((nn.Linear, "3", GOOD), TypeError, "model: expected an nn.Module; got type"),
    "training": ((classifier().train(), "3", GOOD), ValueError, "model: expected evaluation mode (call model.eval())"),
    "unknown name": (
        (classifier(), "4", GOOD),
        ValueError,
        "module: expected a linear layer of the model, such as '3'; got '4'",
    ),
    "foreign": (
        (classifier(), nn.Linear(D, C), GOOD),
        ValueError,
        "module: expected a linear layer of the model, such as '3'; got another Linear",
    ),
    "number": (
        (classifier(), 3, GOOD),
        TypeError,
        "module: expected an nn.Linear or its name, before the data; got int",
    ),
    "not linear": ((classifier(), "0", GOOD), TypeError, "module: expected an nn.Linear; got Conv1d '0'"),
    "loss": ((classifier(), "3", GOOD, "hinge"), ValueError, "loss: expected 'cross_entropy'"),
    "no batch": ((classifier(), "3", []), ValueError, "batches: expected at least one, and targets of all or of none"),
    "a tensor": ((classifier(), "3", [X]), TypeError, "batches: expected pairs (x, y), or forward=, which"),
    "three": ((classifier(), "3", [(X, Y, Y)]), TypeError, "batches: expected pairs (x, y), or forward=, which"),
    "list": (
        (classifier(), "3", [(X, Y.tolist())]),
        TypeError,
        "batches: expected targets that are a torch.Tensor; got",
    ),
    "fewer targets": (
        (classifier(), "3", [(X, Y[1:])]),
        ValueError,
        "batches: expected targets of (11,) samples in batch 0",
    ),
    "labels": ((classifier(), "3", [(X, Y + C)]), ValueError, "y: expected labels in [0, 5); got 9"),
    "nan": ((classifier(), "3", [(X * float("nan"), Y)]), ValueError, "x: expected finite values; got"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name):
    arguments, error, message = BAD[name]
    with pytest.raises(error, match="^" + re.escape(message)):
        hessext.head(*arguments)


def test_a_layer_called_twice_or_never():
    calls = {0: lambda model, x: None, 2: lambda model, x: model(x) + model(x)}
    for count, forward in calls.items():
        with pytest.raises(ValueError, match=f"^module: expected a layer that is called once .*; got {count} calls"):
            hessext.head(classifier(), "3", [X], forward=forward)


def test_targets_of_some_batches():
    some = iter([Y, None])

    def forward(model, x):
        model(x)
        return next(some)

    with pytest.raises(ValueError, match=r"^batches: expected .*; got targets of 1 of 2"):
        hessext.head(classifier(), "3", [X, X], forward=forward)
