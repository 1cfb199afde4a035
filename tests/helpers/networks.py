"""Small networks with more than a chain of layers: a transformer with SwiGLU and RMSNorm, a convolutional one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C, D, HEADS, MIDDLE = 11, 8, 2, 12


class RMSNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, d))

    def forward(self, x):
        return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(a.transpose(1, 2).flatten(-2))


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(D, MIDDLE, bias=False), nn.Linear(D, MIDDLE, bias=False)
        self.down = nn.Linear(MIDDLE, D)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.attention = RMSNorm(D), Attention()
        self.between, self.mlp = RMSNorm(D), SwiGLU()

    def forward(self, x):
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.between(x))


class Transformer(nn.Module):
    """Tokens (B, T) to logits (B, T, C); the head is the embedding."""

    def __init__(self, blocks=2, *, tied=True, dtype=torch.float64, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(C, D)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.norm, self.head = RMSNorm(D), nn.Linear(D, C, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight
        self.to(dtype).eval()

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Convolutional(nn.Module):
    """Images (B, 1, 6, 6) to logits (B, C) through convolutions and three linear layers."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(1)
        self.features = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 9), nn.Linear(9, 7), nn.Linear(7, 4)
        self.to(dtype).eval()

    def forward(self, x):
        return self.fc3(F.gelu(self.fc2(F.relu(self.fc1(self.features(x)), inplace=True))))


def tokens(*shape, seed=0) -> Tensor:
    return torch.randint(C, shape, generator=torch.Generator().manual_seed(seed))


def images(N, dtype=torch.float64, seed=0) -> Tensor:
    return torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Pooled(nn.Module):
    """Tokens (B, T) to logits (B, 3): a layer at each position, the mean or the first of them, two more layers."""

    def __init__(self, pool):
        super().__init__()
        torch.manual_seed(2)
        self.embed, self.pool = nn.Embedding(C, D), pool
        self.before, self.after, self.head = nn.Linear(D, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.double().eval()

    def forward(self, tokens):
        a = torch.tanh(self.before(self.embed(tokens)))
        a = a.mean(1) if self.pool == "mean" else a[:, 0]
        return self.head(F.silu(self.after(a)))
