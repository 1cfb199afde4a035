"""What tests of modules share: sizes, numbers and a module whose forward is given."""

from __future__ import annotations

import torch
from torch import nn

N, T, D, M, C = 5, 3, 4, 6, 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hessian_of(model, x, loss):
    """Hessian of loss(model(x)) in all parameters, in their order, by autograd."""
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def value(flat):
        parts = zip(flat.split(sizes), parameters.items(), strict=True)
        return loss(torch.func.functional_call(model, {k: part.view_as(p) for part, (k, p) in parts}, (x,)))

    return torch.func.jacrev(torch.func.grad(value))(torch.cat([p.flatten() for p in parameters.values()]))


class Net(nn.Module):
    """Two layers, registered in the order of `names`; the forward pass is given."""

    def __init__(self, forward, *, names=("fc1", "fc2"), bias=True, **modules):
        super().__init__()
        sizes = {"fc1": (D, M), "fc2": (M, C)}
        for name in names:
            self.add_module(name, nn.Linear(*sizes[name], bias=bias))
        for name, module in modules.items():
            self.add_module(name, module)
        self.steps = forward

    def forward(self, x, mask=None, **unused):
        return self.steps(self, x)
