"""Networks of any depth: cases as data, and the plain closed form of every block, obvious rather than fast.

With layers 0, ..., L, features phi_l = [a_{l-1}, 1] (the 1 only where the layer has a bias), D_l = diag act'(z_l),
J_kl = d z_k / d z_l, and per sample g_l = d loss / d z_l, S_l = d2 loss / d z_l^2, B and r those of the logits:

    g_L = r,  g_l = D_l W_{l+1}^T g_{l+1}
    S_L = B,  S_l = D_l W_{l+1}^T S_{l+1} W_{l+1} D_l + diag(act''(z_l) * W_{l+1}^T g_{l+1})
    J_ll = I, J_kl = W_k D_{k-1} J_{k-1,l}

    within a layer:     H[i, j] = sum S_l[i, j] phi_l phi_l^T
    between l < k:      H[i, j] = sum (S_k J_kl)[j, i] phi_l phi_k^T  +  sum g_k[j] phi_l [D_{k-1} J_{k-1,l} e_i, 0]^T

The Gauss-Newton part is what is left of it with act'' = 0 and without the last sum, the residual part with B = 0.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cases import ACTIVATIONS, make_loss, make_targets
from .reference import activation, matrix, output_curvature, weighted_products, with_one

Parts = dict[tuple[int, int], Tensor]  # by layers, blocks (rows, cols, row block size, column block size)


@dataclass(frozen=True)
class Deep:
    """N samples of widths[0] features, through layers of widths[1:]; an activation for each hidden layer, or one."""

    N: int
    widths: tuple[int, ...]
    activation: str | tuple[str, ...] = "relu"
    loss: str = "cross_entropy"
    bias: str = ""  # numbers of the layers that have one

    @property
    def name(self) -> str:
        """Readable test id."""
        kinds = self.activation if isinstance(self.activation, str) else ",".join(self.activation)
        bias = f"-bias{self.bias}" if self.bias else ""
        return f"N{self.N}-{'x'.join(map(str, self.widths))}-{kinds}-{self.loss}{bias}".replace(" ", "_")

    @property
    def C(self) -> int:
        """Number of classes."""
        return self.widths[-1]

    @property
    def activations(self) -> tuple[str, ...]:
        """One name for each hidden layer."""
        return (self.activation,) * (len(self.widths) - 2) if isinstance(self.activation, str) else self.activation

    @property
    def layers(self) -> range:
        """Numbers of the layers."""
        return range(len(self.widths) - 1)


@dataclass(frozen=True, eq=False)
class DeepInputs:
    """Tensors of one case in one dtype."""

    case: Deep
    x: Tensor
    y: Tensor
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    loss: str | nn.Module

    def to(self, dtype: torch.dtype) -> DeepInputs:
        """The same values in another dtype."""

        def cast(t: Tensor | None) -> Tensor | None:
            return t.to(dtype) if t is not None and t.is_floating_point() else t

        tensors = cast(self.x), cast(self.y), tuple(map(cast, self.weights)), tuple(map(cast, self.biases))
        return DeepInputs(self.case, *tensors, make_loss(self.case, dtype))

    def lift(self) -> DeepInputs:
        """The same values in float64."""
        return self.to(torch.float64)

    def model(self) -> nn.Sequential:
        """The same function as modules."""
        modules = []
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            linear = nn.Linear(*reversed(weight.shape), bias=bias is not None, dtype=weight.dtype)
            with torch.no_grad():
                linear.weight.copy_(weight)
                if bias is not None:
                    linear.bias.copy_(bias)
            modules += [linear, *(ACTIVATIONS[name] for name in self.case.activations[number : number + 1])]
        return nn.Sequential(*modules)

    def hessian(self):
        """The Hessian object of hessext for this case."""
        import hessext

        def given(name: str) -> str | nn.Module:
            return ACTIVATIONS[name] if " " in name else name

        kinds = self.case.activation
        return hessext.feed_forward(
            self.weights,
            self.x,
            self.y,
            biases=self.biases if self.case.bias else None,
            activations=given(kinds) if isinstance(kinds, str) else [given(kind) for kind in kinds],
            loss=self.loss,
        )


@cache
def make_deep(case: Deep, dtype: torch.dtype) -> DeepInputs:
    """Seeded inputs: weights of variance 2 / fan-in, so that no layer of a deep network vanishes; x ~ N(0, I)."""
    g = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return std * torch.randn(*shape, generator=g, dtype=torch.float64)

    x = normal(case.N, case.widths[0])
    weights = tuple(normal(rows, cols, std=(2 / cols) ** 0.5) for cols, rows in pairwise(case.widths))
    biases = tuple(
        normal(rows, std=0.5) if str(number) in case.bias else None for number, rows in enumerate(case.widths[1:])
    )
    return DeepInputs(case, x, make_targets(case, g), weights, biases, make_loss(case, torch.float64)).to(dtype)


def forward(inputs: DeepInputs) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each layer its inputs a_{l-1}, and its z_l with act'(z_l) and act''(z_l); the last one has no activation."""
    a = inputs.x
    for W, b, name in zip(inputs.weights, inputs.biases, [*inputs.case.activations, "identity"], strict=True):
        z = F.linear(a, W, b)
        value, first, second = activation(name, z)
        yield a, z, first, second
        a = value


def blocks(inputs: DeepInputs, term: str = "full") -> Parts:
    """All blocks between all layers, a bias being the last feature."""
    layers, W, last = inputs.case.layers, inputs.weights, inputs.case.layers[-1]
    a, z, first, second = zip(*forward(inputs), strict=True)
    phi = [with_one(*pair) for pair in zip(a, inputs.biases, strict=True)]
    B, r = output_curvature(inputs.loss, z[last], inputs.y)
    curvature, slope_out = term != "residual", term != "gauss_newton"

    S, g = {last: curvature * B}, {last: r}
    for i in reversed(layers[:-1]):
        pulled, M = g[i + 1] @ W[i + 1], W[i + 1] * first[i][:, None, :]  # M (N, K_{i+1}, K_i): z_{i+1} by z_i
        g[i] = first[i] * pulled
        S[i] = M.mT @ S[i + 1] @ M + slope_out * torch.diag_embed(second[i] * pulled)

    parts = {}
    for i in layers:
        parts[i, i] = weighted_products(S[i], phi[i], phi[i])
        J = torch.eye(len(W[i]), dtype=z[i].dtype).expand(len(z[i]), -1, -1)  # (N, K_k, K_i): z_k by z_i, for k = i
        for k in layers[i + 1 :]:
            activated = first[k - 1][:, :, None] * J  # a_{k-1} by z_i
            J = W[k] @ activated
            part = weighted_products((S[k] @ J).mT, phi[i], phi[k])
            part[..., : activated.shape[1]] += slope_out * torch.einsum("nq,na,nbp->pqab", g[k], phi[i], activated)
            parts[i, k], parts[k, i] = part, part.permute(1, 0, 3, 2)
    return parts


@cache
def truth(case: Deep, dtype: torch.dtype, term: str = "full") -> Parts:
    """Float64 blocks of the values that the inputs have in dtype."""
    return blocks(make_deep(case, dtype).lift(), term)


@cache
def plain(case: Deep, dtype: torch.dtype, term: str = "full") -> Parts:
    """The same closed form computed in dtype itself: the error that hessext must not exceed."""
    return blocks(make_deep(case, dtype), term)


def features(inputs: DeepInputs, name: str) -> tuple[int, slice]:
    """Layer and features of "0", "0.weight" or "0.bias"."""
    number, _, kind = name.partition(".")
    cols = inputs.case.widths[int(number)]
    return int(number), {"": slice(None), "weight": slice(cols), "bias": slice(cols, None)}[kind]


def select(parts: Parts, inputs: DeepInputs, row: str, col: str) -> Tensor:
    """Blocks between two layers ("0") or parameters ("0.weight", "0.bias")."""
    (row_layer, row_features), (col_layer, col_features) = (features(inputs, name) for name in (row, col))
    return parts[row_layer, col_layer][:, :, row_features, col_features]


def parameters(inputs: DeepInputs) -> list[str]:
    """Names in torch's order."""
    return [
        f"{number}.{kind}"
        for number, bias in enumerate(inputs.biases)
        for kind in ("weight", "bias")[: 1 + (bias is not None)]
    ]


def dense(parts: Parts, inputs: DeepInputs, names: list[str] | None = None) -> Tensor:
    """The whole Hessian, its parameters in torch's order or in that of `names`."""
    names = names or parameters(inputs)
    return torch.cat([torch.cat([matrix(select(parts, inputs, r, c)) for c in names], 1) for r in names])


def off_kinks(inputs: DeepInputs) -> bool:
    """Whether float32 and float64 are on the same side of every kink."""
    pairs = zip(forward(inputs), forward(inputs.lift()), strict=True)
    return all(torch.allclose(own[2].double(), lifted[2], rtol=1e-4, atol=1e-4) for own, lifted in pairs)


SHALLOW = [  # few parameters: autograd proves the closed form on them, in tests/autograd/test_truth.py
    Deep(5, (4, 3)),
    Deep(6, (2, 3, 4, 3), bias="012"),
    Deep(5, (3, 4, 2, 3), "tanh", "mse", bias="1"),
    Deep(6, (3, 2, 3, 2, 3), "gelu", "ce weight smooth", bias="02"),
    Deep(4, (2, 3, 1, 2, 2), ("silu", "relu", "softplus 3 2"), "ce prob", bias="3"),
    Deep(5, (2, 2, 3, 2, 2, 1), ("sigmoid", "leaky_relu 0.3", "gelu_tanh", "softplus"), "bce weight", bias="14"),
    Deep(5, (3, 2, 3, 2, 3), ("tanh", "relu", "silu"), "bce weight", bias="03"),
    Deep(4, (2, 3, 2, 2, 3, 2, 3), ("tanh", "relu", "identity", "silu", "leaky_relu"), bias="035"),
]

DEEP = [
    Deep(17, (33, 17), bias="0"),
    Deep(1, (17, 1), loss="bce weight"),
    Deep(65, (2, 17, 33), "gelu", "ce prob", bias="0"),
    Deep(17, (33, 1, 17), "softplus", "mse", bias="1"),
    Deep(65, (17, 33, 2, 17), bias="012"),
    Deep(17, (33, 17, 17, 2), loss="mse"),
    Deep(2, (33, 17, 2, 17), "tanh", "ce weight prob", bias="1"),
    Deep(17, (1, 2, 33, 17), "leaky_relu", "ce sum ignore", bias="2"),
    Deep(65, (17, 2, 17, 1), "sigmoid", "binary_cross_entropy", bias="02"),
    Deep(1, (2, 17, 1, 33), "silu", bias="0"),
    Deep(17, (17, 17, 33, 2, 17), "gelu", "ce weight smooth", bias="13"),
    Deep(65, (2, 1, 17, 17, 2), "identity", "mse class", bias="0123"),
    Deep(17, (33, 2, 17, 2, 33), "relu", "ce prob"),
    Deep(2, (1, 17, 2, 17, 1), "softplus 3 2", "bce sum", bias="2"),
    Deep(17, (17, 2, 33, 17, 1, 2), "relu", "ce sum ignore", bias="04"),
    Deep(65, (2, 17, 1, 2, 17, 17), ("tanh", "gelu_tanh", "leaky_relu 0.3", "sigmoid"), "mse module", bias="0123"),
    Deep(2, (17, 2, 17, 17, 2, 17), "silu", bias="1"),
    Deep(17, (2, 17, 17, 2, 17, 2, 17), "relu", bias="012345"),
    Deep(65, (17, 2, 17, 1, 17, 2, 2), ("softplus", "relu", "tanh", "identity", "silu"), "mse sum", bias="24"),
    Deep(17, (17, 17, 2, 17, 2, 17, 1), "gelu_tanh", "bce weight", bias="05"),
    Deep(17, (17, 33, 17, 2), "relu", "bce weight", bias="02"),
    Deep(65, (2, 17, 2, 17), "gelu", "binary_cross_entropy", bias="1"),
]
