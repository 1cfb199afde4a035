"""Weights masked by torch.nn.utils.prune: H is that in the weight, parameters in torch's order."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.modules import C, D, M, N, normal
from torch import nn
from torch.nn.utils import prune

import hessext

X, Y = normal(N, D), torch.arange(N) % C


class OwnMask(prune.BasePruningMethod):
    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t, default_mask):
        return default_mask * (t > 0)


def network(change=lambda model: None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, M), nn.Tanh(), nn.Linear(M, M), nn.ReLU(), nn.Linear(M, C)).double()
    change(model)
    return model


def in_two_steps(model):
    prune.random_unstructured(model[0], "weight", 0.3)
    prune.ln_structured(model[0], "weight", 2, n=2, dim=0)


CHANGES = {
    "first": lambda model: prune.l1_unstructured(model[0], "weight", 0.4),
    "middle": lambda model: prune.ln_structured(model[2], "weight", 2, n=2, dim=1),
    "last": lambda model: prune.random_unstructured(model[4], "weight", 5),
    "bias": lambda model: prune.l1_unstructured(model[2], "bias", 2),
    "bias, then weight": lambda model: [prune.l1_unstructured(model[0], k, 2) for k in ("bias", "weight")],
    "container": in_two_steps,
    "own mask": lambda model: OwnMask.apply(model[0], "weight"),
    "all": lambda model: prune.global_unstructured(
        [(model[k], "weight") for k in (0, 2, 4)], pruning_method=prune.L1Unstructured, amount=0.5
    ),
    "made permanent": lambda model: [prune.l1_unstructured(model[0], "weight", 3), prune.remove(model[0], "weight")],
}


def masked(model):
    """A network with the same weights as parameters, registered in the usual order."""
    plain = network()
    with torch.no_grad():
        for own, other in zip(plain, model, strict=True):
            if isinstance(own, nn.Linear):
                for name in ("weight", "bias"):
                    value, mask = getattr(other, f"{name}_orig", None), getattr(other, f"{name}_mask", None)
                    getattr(own, name).copy_(getattr(other, name) if value is None else value * mask)
    return plain


def order(H, model):
    """For each parameter of `plain`, where it stands among those of the model."""
    plain, names = (
        dict(network().named_parameters()),
        [key.removesuffix("_orig") for key, _ in model.named_parameters()],
    )
    starts, at = {}, 0
    for name in names:
        starts[name] = torch.arange(at, at + plain[name].numel())
        at += plain[name].numel()
    assert H.layers == tuple(names)
    return torch.cat([starts[name] for name in plain])


@pytest.mark.parametrize("change", CHANGES)
def test_hessian(change):
    model = network(CHANGES[change])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)  # as an optimizer's step does: what the last call has set is not the weight any more
    before = copy.copy(vars(model[0]))
    H, expected = hessext.hessian(model, X, Y), hessext.hessian(masked(model), X, Y)
    assert vars(model[0]).get("weight") is before.get("weight")
    at = order(H, model)
    torch.testing.assert_close(H.dense()[at][:, at], expected.dense(), rtol=0, atol=1e-15)
    v = normal(len(at))
    torch.testing.assert_close((H @ v)[at], expected @ v[at], rtol=0, atol=1e-14)
    torch.testing.assert_close(H.diagonal()[at], expected.diagonal(), rtol=0, atol=1e-15)
    assert hessext.autograd.check(H)
    with torch.no_grad():
        model(X)  # sets the masked weights
    kept = torch.cat(
        [
            (
                getattr(model.get_submodule(k.rpartition(".")[0]), k.rpartition(".")[2].replace("_orig", "_mask"))
                if k.endswith("_orig")
                else torch.ones_like(p)
            ).flatten()
            for k, p in model.named_parameters()
        ]
    )
    before = copy.copy(vars(model[0]))
    truth = hessext.autograd.hessian(model, X, Y)  # in what is masked: weight_orig
    assert vars(model[0]).get("weight") is before.get("weight")
    torch.testing.assert_close(kept[:, None] * H.dense() * kept, truth, rtol=0, atol=1e-13)


@pytest.mark.parametrize("change", CHANGES)
def test_layer_and_head(change):
    model = network(CHANGES[change])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    before = {k: vars(m).get("weight") for k, m in model.named_modules()}
    batches, plain = [(X[:2], Y[:2]), (X[2:], Y[2:])], masked(model)
    for name in ("0", "2", "4"):
        H, expected = hessext.layer(model, name, batches), hessext.layer(plain, name, batches)
        torch.testing.assert_close(H[name].dense(), expected[name].dense(), rtol=0, atol=1e-15)
        own = [key.removesuffix("_orig") for key, _ in model.named_parameters() if key.startswith(name)]
        assert H.layers == tuple(own)
        assert hessext.autograd.check(H)
    H, expected = hessext.head(model, "4", batches), hessext.head(plain, "4", batches)
    torch.testing.assert_close(H["4"].dense(), expected["4"].dense(), rtol=0, atol=1e-15)
    assert all(vars(m).get("weight") is before[k] for k, m in model.named_modules())


def test_masks_of_their_own_kind_of_call_are_refused():
    class Changed(OwnMask):
        def apply_mask(self, module):
            return 2 * super().apply_mask(module)

    model = network(lambda model: Changed.apply(model[0], "weight"))
    for call in (lambda: hessext.hessian(model, X, Y), lambda: hessext.layer(model, "0", X, Y)):
        with pytest.raises(TypeError, match="expected modules without forward hooks"):
            call()
