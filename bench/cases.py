"""The cases as data: what is computed, on which sizes, and how many flops it must cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

KINK_MARGIN = 1e-4  # pre-activations keep this far from ReLU's kink: float32 and float64 agree on who is active


@dataclass(frozen=True)
class Case:
    """One thing to time.

    `part` is "dense" (the whole Hessian), "hidden" (that layer's matrix alone) or "ratio" (mean squared norms of the
    diagonal and the off-diagonal blocks of a linear model, two numbers).
    """

    name: str
    title: str
    samples: int
    features: int
    classes: int
    units: int = 0  # hidden units; 0 is a linear model
    loss: str = "cross_entropy"
    part: str = "dense"
    small: tuple[int, int, int, int] | None = None  # --quick: (samples, features, classes, units)

    @property
    def size(self) -> int:
        """Rows of the square result."""
        if self.part == "ratio":
            return 2
        hidden = self.units * self.features
        output = self.classes * (self.units or self.features)
        return hidden if self.part == "hidden" else hidden + output

    def quick(self) -> Case:
        """Return the small variant that `--quick` runs."""
        if self.small is None:
            return self
        samples, features, classes, units = self.small
        return replace(self, samples=samples, features=features, classes=classes, units=units)


CASES = {
    case.name: case
    for case in (
        Case("paper-ce", "dense, one hidden layer", 5000, 500, 500, 8, small=(600, 60, 50, 8)),
        Case("paper-mse", "dense, one hidden layer", 5000, 500, 500, 8, loss="mse", small=(600, 60, 50, 8)),
        Case("linear-ce", "dense, linear model", 4096, 64, 64, small=(512, 16, 16, 0)),
        Case("wide-ce", "hidden part, wide layer", 4096, 64, 10, 256, part="hidden", small=(512, 32, 10, 32)),
        Case("tiny-ce", "dense, whole Python call", 32, 8, 3, 4),
        Case("ratio-1k", "ratio, linear model", 1000, 500, 1000, part="ratio", small=(200, 50, 100, 0)),
        Case("ratio-32k", "ratio, linear model", 2048, 1024, 32000, part="ratio", small=(256, 64, 2000, 0)),
    )
}


@dataclass(frozen=True)
class Problem:
    """The tensors of one case. Nothing is precomputed: a method is timed from here to its result."""

    case: Case
    hidden_weight: Tensor | None  # W [units, features]
    output_weight: Tensor  # V [classes, units or features]
    x: Tensor  # [samples, features]
    y: Tensor  # int64 [samples], or float targets [samples, classes] for mse

    @property
    def tensors(self) -> list[Tensor]:
        """All inputs."""
        return [t for t in (self.hidden_weight, self.output_weight, self.x, self.y) if t is not None]

    def to(self, dtype: torch.dtype) -> Problem:
        """Return the same problem with floating-point inputs in `dtype`."""
        inputs = (self.hidden_weight, self.output_weight, self.x, self.y)
        cast = [t.to(dtype) if t is not None and t.is_floating_point() else t for t in inputs]
        return Problem(self.case, *cast)


def make(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> Problem:
    """Draw x ~ N(0, 1) and the weights ~ N(0, 1/fan_in), with uniform labels (one-hot targets for mse).

    Values are drawn in float32 whatever `dtype` is, so every dtype sees the same numbers.
    """
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(case.samples, case.features, generator=g)
    hidden = None
    fan_in = case.features
    if case.units:
        hidden = torch.randn(case.units, case.features, generator=g) / case.features**0.5
        fan_in = case.units
        while (near := ((x.double() @ hidden.double().T).abs() < KINK_MARGIN).any(1)).any():
            x[near] = torch.randn(int(near.sum()), case.features, generator=g)
    output = torch.randn(case.classes, fan_in, generator=g) / fan_in**0.5
    y = torch.randint(case.classes, (case.samples,), generator=g)
    if case.loss == "mse":
        y = torch.nn.functional.one_hot(y, case.classes).float()
    return Problem(case, hidden, output, x, y).to(dtype)


def necessary_flops(problem: Problem) -> float:
    """Flops (2 per multiply-add) of the weighted outer products alone, with all that may be saved; or of a ratio.

    Both symmetries (across blocks and inside a block) and, for ReLU, only the samples where the units of
    a pair are active, counted on this very problem. Forward pass, weights and mirrored writes are left out.
    """
    case = problem.case
    n, d, c = case.samples, case.features, case.classes
    if case.part == "ratio":  # logits, products of features, and three products of samples: half of each square
        return 2 * n * d * c + n * n * d + 3 * n * n * c
    if problem.hidden_weight is None:
        pairs = c * (c + 1) / 2 if case.loss == "cross_entropy" else 1
        return pairs * d * (d + 1) / 2 * n * 2

    active = (problem.x @ problem.hidden_weight.T > 0).double()
    both = active.T @ active  # [m, m] samples where units i and l are active
    unordered = float(both.triu().sum())
    hidden = unordered * d * (d + 1)
    if case.part == "hidden":
        return hidden
    if case.loss == "cross_entropy":
        return hidden + unordered * c * (c + 1) + float(both.sum()) * d * c * 2
    # mse: Q is constant, so the output part is one m x m matrix, and only the residual meets every class
    return hidden + unordered * 2 + float(both.diagonal().sum()) * d * c * 2 + float(both.sum()) * d * 2
