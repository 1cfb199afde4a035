"""The truth of one layer of any network: float64 autograd of torch's loss in the layer's weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from .networks import tokens
from .reference import TOLERANCE

LAST = ["mlp.down", "mlp.up", "mlp.gate", "attention.o", "attention.q"]
LAST = [f"blocks.1.{name}" for name in LAST]


def shifted(x):
    return F.pad(x[:, 1:], (0, 1), value=-100)


def texts(*shapes):
    return [(x, shifted(x)) for x in (tokens(*shape, seed=k) for k, shape in enumerate(shapes))]


def truth(model, name, batches, loss):
    """Hessian of torch's loss of all batches' logits in the weight of one module, by autograd of the whole model."""
    weight = model.get_submodule(name).weight.detach()

    def value(w):
        logits = [functional_call(model, {f"{name}.weight": w}, (x,), tie_weights=False) for x, _ in batches]
        C = logits[0].shape[-1]
        y = torch.cat([y.flatten() if y.dtype == torch.int64 else y.reshape(-1, C) for _, y in batches])
        return loss(torch.cat([f.reshape(-1, C) for f in logits]), y)

    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(value, weight, vectorize=True).reshape(weight.numel(), weight.numel())


def assert_layer(H, name, expected, tolerance=TOLERANCE[torch.float64]):
    """The weight's matrix is the expected one, and so is what is computed from rows of S without it."""
    B = H[f"{name}.weight"]
    (K, _), (s, _) = B.grid, B.block_shape
    norm = expected.norm().item()
    assert (B.dense() - expected).norm().item() <= tolerance * norm
    assert (B.diagonal() - expected.diagonal()).norm().item() <= tolerance * norm
    assert (B.norms() - expected.view(K, s, K, s).norm(dim=(1, 3))).norm().item() <= tolerance * norm
