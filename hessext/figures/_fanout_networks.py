"""ReLU networks of any depth for the figure `fanout`: their shapes and training, block norms and ranks of curvature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hessext import datasets, feed_forward
from hessext._memory import require
from hessext._random import generator, lecun
from hessext.model.loss_arguments import resolve

from ._frame import Run


class Shape(NamedTuple):
    """Outputs of each layer. kind: "random", "uniform" (all hidden layers wide) or "bottleneck" (all but one wide)."""

    kind: str
    widths: tuple[int, ...]

    def weights(self, run: Run, draw: int) -> list[Tensor]:
        """Weights of each layer, N(0, 1/fan-in)."""
        inputs = (run.parameters.features, *self.widths[:-1])
        return lecun(*zip(self.widths, inputs, strict=True), **options(run, draw))


def options(run: Run, draw: int) -> dict[str, Any]:
    """Seed and dtype of a draw's random numbers."""
    return {"seed": (run.parameters.seed << 32) + draw, "dtype": run.dtype}


def shapes(run: Run) -> Iterator[Shape]:
    """Yield networks of independent random depth, widths and classes, then uniform ones, then bottlenecks."""
    p = run.parameters
    for number in range(p.networks):
        g = generator("networks", (p.seed << 32) + number)
        depth = _chosen(p.layers, g)
        yield Shape("random", (*(_chosen(p.hidden, g) for _ in range(depth - 1)), _chosen(p.classes, g)))
    wide, C = max(p.hidden), max(p.classes)
    for depth in p.layers:
        yield Shape("uniform", (*[wide] * (depth - 1), C))
    hidden = max(p.layers) - 1
    for place in range(hidden):
        yield Shape("bottleneck", (*(min(p.hidden) if layer == place else wide for layer in range(hidden)), C))


def _chosen(values: Sequence[int], g: torch.Generator) -> int:
    return values[int(torch.randint(len(values), (), generator=g))]


def initial(run: Run, shape: Shape, loss: str) -> Tensor:
    """`measured` of several draws of weights and Gaussian data, (draws, L - 1, 4)."""
    p, found = run.parameters, []
    for draw in range(p.draws):
        x, y = datasets.gaussian(p.samples, p.features, shape.widths[-1], **options(run, draw))
        found.append(measured(shape.weights(run, draw), x, y, loss))
    return torch.stack(found)


def training_steps(steps: int) -> list[int]:
    """Steps of a training before which something is measured: 0, 1, 3, 10, 30 and 100 % of all."""
    return sorted({steps * percent // 100 for percent in (0, 1, 3, 10, 30, 100)})


def trained(run: Run, shape: Shape, loss: str) -> dict[str, Tensor]:
    """`measured` (moments, L - 1, 4), losses and accuracies along full-batch Adam on clustered data."""
    p, C = run.parameters, shape.widths[-1]
    x, y = datasets.clustered(p.samples, p.features, C, max(C, p.samples // 2), radius=1, **options(run, 0))
    x *= p.features**0.5
    weights = [W.requires_grad_() for W in shape.weights(run, 0)]
    adam, criterion, kept = torch.optim.Adam(weights, lr=p.learning_rate), resolve(loss), training_steps(p.steps)
    found: dict[str, list] = {"measured": [], "training_loss": [], "accuracy": []}
    for step in range(p.steps + 1):
        logits = x
        for W in weights[:-1]:
            logits = (logits @ W.T).relu()
        logits = logits @ weights[-1].T
        error = criterion.value(logits, y)
        if step in kept:
            now = measured([W.detach().clone() for W in weights], x, y, loss)
            values = now, error.detach(), (logits.argmax(1) == y).double().mean()
            for values_so_far, value in zip(found.values(), values, strict=True):
                values_so_far.append(value)
        adam.zero_grad()
        error.backward()
        adam.step()
    return {name: torch.stack(values) for name, values in found.items()}


def measured(weights: Sequence[Tensor], x: Tensor, y: Tensor, loss: str) -> Tensor:
    """Mean ||H_ii||_F^2 and ||H_ij||_F^2 of each hidden layer, and two ranks of S at the next layer, (L - 1, 4).

    The first is the effective rank r(S) = (E tr S_n)^2 / E||S_n||_F^2. The second weighs pairs of samples as the norms
    of the layer's blocks do: sum tr S_n tr S_n' (a_n . a_n')^2 / sum <S_n, S_n'> (a_n . a_n')^2.
    """
    H = feed_forward(weights, x, y, loss=loss)
    curvatures = _curvatures([W.double() for W in weights], x.double(), loss)
    rows = []
    for layer, (a, traces, grams) in enumerate(curvatures):
        overlaps = (a @ a.T) ** 2
        rank = traces.mean() ** 2 / grams.diagonal().mean()
        pairs = (torch.outer(traces, traces) * overlaps).sum() / (grams * overlaps).sum()
        rows.append([*H[str(layer)].ratio()[:2], float(rank), float(pairs)])
    return torch.tensor(rows, dtype=torch.float64)


def _curvatures(weights: Sequence[Tensor], x: Tensor, loss: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Inputs a_n of each hidden layer, and tr S_n (N,) and <S_n, S_n'> (N, N) at the next layer's outputs.

    S = D W^T S_above W D, (g), without the divisor N of the mean. At the logits S is 2 I, or diag p - p p^T.
    """
    inputs, N, V = [x], len(x), weights[-1]
    for W in weights[:-1]:
        inputs.append((inputs[-1] @ W.T).relu())
    largest = max(len(W) * W.shape[1] for W in weights[1:])
    require(4 * N * largest * x.element_size(), f"curvatures of {N} samples in float64")
    if loss == "mse":
        traces, grams = x.new_full((N,), 2 * len(V)), x.new_full((N, N), 4 * len(V))
        M = (2 * V.T @ V).expand(N, -1, -1)
    else:
        p = (inputs[-1] @ V.T).softmax(1)
        products, cubes, means = p @ p.T, p @ (p**2).T, p @ V
        traces, grams = (p * (1 - p)).sum(1), products - cubes - cubes.T + products**2
        M = (p[:, None] * V.T) @ V - means[:, :, None] * means[:, None]
    found = [(inputs[-2], traces, grams)]
    for layer in range(len(weights) - 2, 0, -1):
        on = inputs[layer + 1] > 0
        S = M * (on[:, :, None] & on[:, None])
        flat = S.flatten(1)
        found.append((inputs[layer - 1], S.diagonal(dim1=1, dim2=2).sum(1), flat @ flat.T))
        M = weights[layer].T @ S @ weights[layer]
    return found[::-1]
