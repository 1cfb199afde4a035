"""What tests of modules share: sizes, numbers and a module whose forward is given."""

from __future__ import annotations

import torch
from torch import nn

N, T, D, M, C = 5, 3, 4, 6, 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
