"""The problems the suite runs on, as data: shapes, activation, loss, biases. Inputs are seeded by the case alone."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn

import hessext

DTYPES = (torch.float32, torch.float64)

ACTIVATIONS = {  # name: the module; names without a number are also accepted as strings by hessext
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.01),
    "identity": nn.Identity(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "softplus": nn.Softplus(),
    "leaky_relu 0.3": nn.LeakyReLU(0.3),
    "softplus 3 2": nn.Softplus(3.0, 2.0),
}


def _class_weight(C: int) -> Tensor:
    return torch.linspace(0.25, 2.0, C, dtype=torch.float64)


LOSSES = {  # name: (what hessext and torch are given, for C classes; kind of target)
    "cross_entropy": (lambda C: "cross_entropy", "class"),
    "mse": (lambda C: "mse", "vector"),
    "mse class": (lambda C: "mse", "class"),
    "ce prob": (lambda C: hessext.UnnormalizedCrossEntropyLoss(), "prob"),
    "ce sum ignore": (lambda C: nn.CrossEntropyLoss(reduction="sum", ignore_index=1), "class"),
    "ce weight smooth": (
        lambda C: nn.CrossEntropyLoss(weight=_class_weight(C), label_smoothing=0.2, ignore_index=0),
        "class",
    ),
    "ce weight prob": (
        lambda C: hessext.UnnormalizedCrossEntropyLoss(weight=_class_weight(C), label_smoothing=0.1),
        "prob",
    ),
    "mse module": (lambda C: nn.MSELoss(), "vector"),
    "mse sum": (lambda C: nn.MSELoss(reduction="sum"), "vector"),
    "binary_cross_entropy": (lambda C: "binary_cross_entropy", "binary class"),
    "bce sum": (lambda C: nn.BCEWithLogitsLoss(reduction="sum"), "binary prob"),
    "bce weight": (
        lambda C: nn.BCEWithLogitsLoss(_class_weight(C), pos_weight=torch.full((C,), 2.5, dtype=torch.float64)),
        "binary prob",
    ),
}


@dataclass(frozen=True)
class Case:
    """N samples of d features in C classes; hidden None is a linear model; bias holds "h" and/or "o"."""

    N: int
    d: int
    C: int
    hidden: int | None = None
    activation: str = "relu"
    loss: str = "cross_entropy"
    bias: str = ""
    scale: float = 1.0  # logits are multiplied by it: 30 is a trained model's peaked softmax

    @property
    def name(self) -> str:
        """Readable test id."""
        sizes = f"N{self.N}-d{self.d}" + (f"-m{self.hidden}" if self.hidden else "") + f"-C{self.C}"
        kind = f"-{self.activation}" if self.hidden else "-linear"
        bias = f"-bias_{self.bias}" if self.bias else ""
        return (sizes + kind + f"-{self.loss}" + bias + (f"-x{self.scale:g}" if self.scale != 1 else "")).replace(
            " ", "_"
        )


@dataclass(frozen=True, eq=False)
class Inputs:
    """Tensors of one case in one dtype; `lift()` is the same values in float64."""

    case: Case
    x: Tensor
    y: Tensor
    output_weight: Tensor
    output_bias: Tensor | None = None
    hidden_weight: Tensor | None = None
    hidden_bias: Tensor | None = None
    loss: str | nn.Module = field(default="cross_entropy")

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of all tensors."""
        return self.x.dtype

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Inputs:
        """The same values in another dtype or on another device."""

        def cast(t):
            return None if t is None else t.to(device, dtype if t.is_floating_point() else t.dtype)

        names = ("x", "y", "output_weight", "output_bias", "hidden_weight", "hidden_bias")
        loss = make_loss(self.case, dtype)
        loss = loss if isinstance(loss, str) else loss.to(device)
        return Inputs(self.case, loss=loss, **{n: cast(getattr(self, n)) for n in names})

    def lift(self) -> Inputs:
        """The same values in float64."""
        return self.to(torch.float64)

    def parameters(self) -> dict[str, Tensor]:
        """Parameters in torch's order; names as hessext.one_hidden and hessext.linear give them."""
        names = ("hidden_weight", "hidden_bias", "output_weight", "output_bias")
        return {n.replace("_", "."): getattr(self, n) for n in names if getattr(self, n) is not None}

    def model(self) -> nn.Module:
        """The same function as nn.Linear or nn.Sequential."""

        def layer(weight, bias):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
            linear.weight = nn.Parameter(weight.clone())
            if bias is not None:
                linear.bias = nn.Parameter(bias.clone())
            return linear

        output = layer(self.output_weight, self.output_bias)
        if self.hidden_weight is None:
            return output
        return nn.Sequential(layer(self.hidden_weight, self.hidden_bias), ACTIVATIONS[self.case.activation], output)

    def hessian(self):
        """The Hessian object of hessext for this case."""
        if self.hidden_weight is None:
            return hessext.linear(self.output_weight, self.x, self.y, bias=self.output_bias, loss=self.loss)
        name = self.case.activation
        return hessext.one_hidden(
            self.hidden_weight,
            self.output_weight,
            self.x,
            self.y,
            hidden_bias=self.hidden_bias,
            output_bias=self.output_bias,
            activation=ACTIVATIONS[name] if " " in name else name,
            loss=self.loss,
        )


def make_loss(case: Case, dtype: torch.dtype) -> str | nn.Module:
    """What is passed as `loss`, with its class weights in dtype."""
    loss = LOSSES[case.loss][0](case.C)
    return loss if isinstance(loss, str) else loss.to(dtype)


def make_targets(case: Case, g: torch.Generator) -> Tensor:
    """Targets of the kind that the loss takes; at least one sample has a label that no ignore_index of LOSSES drops."""
    N, C, kind = case.N, case.C, LOSSES[case.loss][1]
    if kind == "class":
        y = torch.randint(C, (N,), generator=g)
        y[0] = C - 1
        return y
    if kind == "binary class":
        return torch.randint(2, (N,) if C == 1 else (N, C), generator=g)
    if kind == "binary prob":
        return torch.sigmoid(torch.randn(N, C, generator=g, dtype=torch.float64))
    y = torch.randn(N, C, generator=g, dtype=torch.float64)
    if kind == "prob":
        y = torch.softmax(y, 1)
        y[N // 2] *= 0.75  # torch accepts targets that do not sum to one
    return y


@cache
def make_inputs(case: Case, dtype: torch.dtype) -> Inputs:
    """Seeded inputs: W ~ N(0, 1/d), V ~ N(0, 1/m), x ~ N(0, I), all with full float64 mantissas before rounding."""
    g = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))

    def normal(*shape, std=1.0):
        return std * torch.randn(*shape, generator=g, dtype=torch.float64)

    N, d, C, m = case.N, case.d, case.C, case.hidden
    fan_in = m if m else d
    tensors = {"x": normal(N, d), "output_weight": normal(C, fan_in, std=case.scale * fan_in**-0.5)}
    if "o" in case.bias:
        tensors["output_bias"] = normal(C, std=0.5)
    if m:
        tensors["hidden_weight"] = normal(m, d, std=d**-0.5)
        if "h" in case.bias:
            tensors["hidden_bias"] = normal(m, std=0.5)
    y = make_targets(case, g)
    return Inputs(case, y=y, loss=make_loss(case, torch.float64), **tensors).to(dtype)


LINEAR = [
    Case(1, 1, 2),
    Case(15, 16, 17, bias="o"),
    Case(33, 17, 2),
    Case(1, 15, 16, bias="o"),
    Case(16, 97, 5),
    Case(97, 16, 31, bias="o"),
    Case(17, 1, 65),
    Case(65, 31, 3, loss="mse"),
    Case(16, 2, 33, loss="mse", bias="o"),
    Case(9, 5, 1, loss="mse class"),
    Case(31, 17, 15, loss="ce weight smooth", bias="o"),
    Case(13, 33, 4, loss="ce prob"),
    Case(17, 3, 7, loss="ce sum ignore"),
    Case(15, 4, 6, loss="mse module", bias="o"),
    Case(33, 17, 1, loss="binary_cross_entropy"),
    Case(16, 9, 1, loss="bce weight", bias="o"),
    Case(33, 17, 5, loss="binary_cross_entropy"),
    Case(16, 9, 17, loss="bce weight", bias="o"),
]

HIDDEN = [
    Case(33, 17, 15, 16),
    Case(97, 15, 2, 1),
    Case(1, 16, 3, 17, bias="ho"),
    Case(16, 65, 17, 15, bias="h"),
    Case(65, 31, 16, 33),
    Case(15, 1, 33, 31, bias="o"),
    Case(31, 97, 2, 16, bias="ho"),
    Case(31, 2, 65, 3),
    Case(17, 33, 16, 15, loss="mse"),
    Case(65, 16, 1, 17, loss="mse", bias="ho"),
    Case(2, 3, 31, 1, loss="mse", bias="h"),
    Case(33, 15, 5, 16, loss="ce weight smooth", bias="ho"),
    Case(16, 7, 9, 5, loss="ce weight prob", bias="o"),
    Case(17, 5, 3, 4, loss="ce sum ignore", bias="h"),
    Case(15, 4, 5, 6, loss="mse module", bias="o"),
    Case(9, 4, 3, 5, loss="mse sum", activation="tanh"),
    Case(31, 15, 4, 17, activation="leaky_relu", bias="ho"),
    Case(16, 9, 5, 8, activation="leaky_relu 0.3", loss="mse"),
    Case(15, 8, 17, 7, activation="identity", bias="h"),
    Case(33, 17, 3, 15, activation="tanh"),
    Case(17, 6, 2, 9, activation="sigmoid", bias="o", loss="mse"),
    Case(16, 15, 17, 7, activation="gelu", bias="ho"),
    Case(31, 5, 4, 16, activation="gelu_tanh", loss="mse", bias="h"),
    Case(65, 7, 3, 5, activation="silu", loss="ce weight smooth"),
    Case(1, 9, 15, 4, activation="softplus", bias="o"),
    Case(17, 3, 6, 17, activation="softplus 3 2", loss="mse class", bias="ho"),
    Case(65, 16, 1, 17, loss="binary_cross_entropy", bias="ho"),
    Case(17, 6, 1, 9, activation="gelu", loss="bce weight", bias="h"),
    Case(15, 7, 1, 33, activation="tanh", loss="bce sum", bias="o"),
    Case(33, 16, 5, 17, loss="binary_cross_entropy", bias="ho"),
    Case(17, 6, 15, 9, activation="gelu", loss="bce weight", bias="h"),
    Case(15, 7, 2, 33, activation="tanh", loss="bce sum", bias="o"),
]

PEAKED = [  # float64 only: the forward pass alone costs 30 times the rounding
    Case(17, 5, 7, scale=30.0),
    Case(16, 4, 17, bias="o", scale=30.0),
    Case(15, 6, 9, 5, scale=80.0),
    Case(9, 3, 5, 4, activation="gelu", bias="ho", scale=80.0),
]

OVERFLOWING = [Case(17, 4, 3, 3, loss=loss, bias="ho") for loss in ("cross_entropy", "mse")]  # see assert_silent

SMALL = [
    Case(7, 5, 3),
    Case(6, 4, 3, 5),
    Case(5, 3, 4, 2, activation="tanh", loss="mse", bias="ho"),
    Case(6, 3, 1, 4, activation="silu", loss="bce weight", bias="ho"),
    Case(6, 3, 3, 4, activation="silu", loss="bce weight", bias="ho"),
]
