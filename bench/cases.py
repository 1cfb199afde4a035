"""The cases as data: what is computed, at which sizes, and the flops and bytes that this requires."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

KINK_MARGIN = 1e-4  # least |pre-activation|: float32 and float64 then agree on which units are active

Part = str  # "all", "cross", or a layer
Quantity = Literal["dense", "blocks", "diagonal blocks", "norms", "ratio", "approximations", "product"]
APPROXIMATIONS = ("block-diagonal", "diagonal", "Adam-mini", "K-FAC", "one-sided")  # compared by their relative errors


class Sizes(NamedTuple):
    """Samples N, features d, classes C and hidden units m: 0 for a linear model, a tuple for several hidden layers."""

    N: int
    d: int
    C: int
    m: int | tuple[int, ...] = 0

    @property
    def hidden(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        return (self.m,) * (self.m > 0) if isinstance(self.m, int) else tuple(self.m)

    def __str__(self) -> str:
        sizes = {"N": self.N, "d": self.d, "C": self.C, "m": "-".join(map(str, self.hidden))}
        return " ".join(f"{letter}={size}" for letter, size in sizes.items() if size)


@dataclass(frozen=True)
class Case:
    """One thing to compute: a quantity of one part of the Hessian of a linear model or of a ReLU network."""

    name: str
    group: str  # the topic of the cases with which it is shown
    title: str
    sizes: Sizes
    small: Sizes | None  # sizes with --quick; None leaves the case out
    part: Part = "all"  # of a linear model "output"
    quantity: Quantity = "dense"
    loss: str = "cross_entropy"
    pairs: int = 0  # number of block pairs, of quantity "blocks"
    varied: str = ""  # the size that a growth curve varies: N, d, C or m
    methods: tuple[str, ...] = ()  # the methods that run it; all if empty
    gpu: bool = False  # whether it is too large for a CPU

    def quick(self) -> Case:
        """Return the small variant that `--quick` runs."""
        return replace(self, sizes=self.small or self.sizes)

    @property
    def deep(self) -> bool:
        """Whether there are several hidden layers. Layers are then called "0", "1", ..."""
        return len(self.sizes.hidden) > 1

    @property
    def layers(self) -> dict[str, tuple[int, int]]:
        """Shape of each layer's weight, in torch's order."""
        _, d, C, _ = self.sizes
        shapes = [(rows, cols) for cols, rows in pairwise((d, *self.sizes.hidden, C))]
        names = map(str, range(len(shapes))) if self.deep else ("hidden", "output")[-len(shapes) :]
        return dict(zip(names, shapes, strict=True))

    @property
    def parameters(self) -> dict[str, int]:
        """Number of parameters of each layer, in torch's order."""
        return {name: prod(shape) for name, shape in self.layers.items()}

    @property
    def grid(self) -> tuple[int, int]:
        """Block rows and block columns of the part; for the whole Hessian, those of the output layer."""
        kinds = ("hidden", "output") if self.part == "cross" else (self.part, self.part)
        return tuple(self.layers[kind][0] if kind in self.layers else self.sizes.C for kind in kinds)

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of what every method returns."""
        size = self.parameters
        rows = sum(size.values()) if self.part == "all" else size["hidden" if self.part == "cross" else self.part]
        cols = size["output"] if self.part == "cross" else rows
        block = rows // self.grid[0], cols // self.grid[1]
        return {
            "dense": (rows, cols),
            "blocks": (self.pairs, *block),
            "diagonal blocks": (self.grid[0], *block),
            "norms": self.grid,
            "ratio": (2,),
            "approximations": (len(APPROXIMATIONS),),
            "product": (rows,),
        }[self.quantity]


PAPER, PAPER_SMALL = Sizes(5000, 500, 500, 8), Sizes(600, 60, 50, 8)
GROWTH = Sizes(1000, 64, 64, 8)
GROWTH_METHODS = ("hessext", "careful", "plain", "torch.func.hessian")
VARIED = {"N": (250, 500, 2000, 4000), "d": (16, 32, 128, 256), "C": (16, 32, 128, 256), "m": (1, 4, 16, 32)}


def _all() -> Iterator[Case]:
    """The cases, in the order in which they run."""
    titles = {"all": "whole Hessian", "hidden": "hidden layer", "output": "output layer", "cross": "cross-layer part"}
    for loss, short in (("cross_entropy", "ce"), ("mse", "mse")):
        for part, title in titles.items():
            name = f"{'dense' if part == 'all' else part}-{short}"
            yield Case(name, "the paper's size", title, PAPER, PAPER_SMALL, part, loss=loss)

    yield Case("product", "products", "H @ v", PAPER, PAPER_SMALL, quantity="product")
    full, small = Sizes(4096, 512, 1000), Sizes(512, 64, 100)
    yield Case("product-linear", "products", "linear model: H @ v", full, small, "output", "product")

    many = (  # classes
        (Sizes(2048, 1024, 32000), Sizes(256, 64, 2000)),
        (Sizes(1024, 512, 128256), Sizes(256, 64, 8000)),
    )
    linear = {
        "linear": ("linear model: whole Hessian", "dense", Sizes(4096, 64, 64), Sizes(512, 16, 16)),
        "list": ("linear model: 64 blocks of a list", "blocks", Sizes(4096, 256, 1000), Sizes(512, 64, 100)),
        "diagonal": ("linear model: all diagonal blocks", "diagonal blocks", Sizes(2048, 256, 256), Sizes(512, 64, 32)),
        "norms": ("linear model: norms of all blocks", "norms", Sizes(1000, 64, 200), Sizes(200, 32, 40)),
        "ratio-1k": ("linear model: ratio()", "ratio", Sizes(1000, 500, 1000), Sizes(200, 50, 100)),
        "ratio-32k": ("linear model: ratio()", "ratio", *many[0]),
        "ratio-128k": ("linear model: ratio()", "ratio", *many[1]),
        "approximations-32k": ("linear model: approximations()", "approximations", *many[0]),
        "approximations-128k": ("linear model: approximations()", "approximations", *many[1]),
        "narrow": ("linear model: whole Hessian, few features", "dense", Sizes(2000, 4, 512), Sizes(500, 4, 128)),
    }
    for name, (title, quantity, full, small) in linear.items():
        pairs = 64 if quantity == "blocks" else 0
        yield Case(name, "linear models", title, full, small, "output", quantity, pairs=pairs)
    full = Sizes(4096, 4096, 128256)  # the output layer of a language model
    yield Case("ratio-llm", "linear models", "linear model: ratio()", full, None, "output", "ratio", gpu=True)

    networks = {
        "wide": ("hidden layer, many units", "hidden", "dense", Sizes(4096, 64, 10, 128), Sizes(512, 32, 10, 32)),
        "wide-norms": ("norms of hidden blocks", "hidden", "norms", Sizes(1000, 64, 10, 64), Sizes(200, 32, 10, 32)),
        "one-unit": ("whole Hessian, m = 1", "all", "dense", Sizes(5000, 1000, 1000, 1), Sizes(500, 100, 100, 1)),
        "few-samples": ("whole Hessian, N < C", "all", "dense", Sizes(64, 16, 1000, 4), Sizes(32, 16, 100, 4)),
        "tiny": ("whole Hessian, a call's overhead", "all", "dense", Sizes(32, 8, 3, 4), Sizes(32, 8, 3, 4)),
    }
    for name, (title, part, quantity, full, small) in networks.items():
        yield Case(name, "networks of other shapes", title, full, small, part, quantity)

    deep, small = Sizes(2000, 784, 10, (256, 128)), Sizes(200, 40, 5, (16, 12))
    title = "first of three layers: all diagonal blocks"
    yield Case("deep-diagonal", "deep networks", title, deep, small, "0", "diagonal blocks")
    for name, which in zip("012", ("first", "second", "last"), strict=True):
        title = f"{which} of three layers: ratio()"
        yield Case(f"deep-ratio-{name}", "deep networks", title, deep, small, name, "ratio")
    yield Case("deep-product", "deep networks", "three layers: H @ v", deep, small, quantity="product")
    deep, small = Sizes(2000, 32, 10, (16, 16)), Sizes(200, 8, 5, (6, 4))
    yield Case("deep-dense", "deep networks", "three layers: whole Hessian", deep, small)

    for name, (part, quantity, *sides) in SWITCHES.items():
        for side, sizes in zip(("below", "above"), sides, strict=True):
            title, methods = f"{quantity} of {part}, {side} a switch", ("hessext", "plain")
            yield Case(f"{name}-{side}", "switches", title, sizes, None, part, quantity, methods=methods)

    yield Case("growth", "growth", "whole Hessian", GROWTH, GROWTH, methods=GROWTH_METHODS)
    for letter, values in VARIED.items():
        for value in values:
            sizes = GROWTH._replace(**{letter: value})
            small = sizes if value in values[:3:2] else None
            name = f"growth-{letter}{value}"
            yield Case(name, "growth", "whole Hessian", sizes, small, varied=letter, methods=GROWTH_METHODS)


# Sizes below and above each switch of the algorithm, by the name of their walk in walks.py.
SWITCHES: dict[str, tuple[Part, Quantity, Sizes, Sizes]] = {
    "class-tiles": ("output", "norms", Sizes(4, 4, 2048), Sizes(4, 4, 2049)),
    "class-work": ("output", "norms", Sizes(128, 16, 512), Sizes(129, 16, 512)),
    "ratio-tiles": ("output", "ratio", Sizes(256, 32, 32768), Sizes(256, 32, 32769)),
    "ratio-products": ("output", "ratio", Sizes(512, 64, 4000), Sizes(513, 64, 4000)),
    "ratio-samples": ("output", "ratio", Sizes(3172, 16, 64), Sizes(3173, 16, 64)),
    "strip": ("hidden", "norms", Sizes(256, 200, 4, 16), Sizes(257, 200, 4, 16)),
    "feature-pairs": ("output", "dense", Sizes(32, 723, 3), Sizes(32, 724, 3)),
    "sliced-pairs": ("output", "dense", Sizes(50000, 90, 4), Sizes(50000, 91, 4)),
    "slice": ("output", "dense", Sizes(46080, 20, 8), Sizes(46081, 20, 8)),
    "span": ("output", "dense", Sizes(9216, 8, 32), Sizes(9217, 8, 32)),
    "product-thin": ("all", "product", Sizes(2000, 64, 500, 64), Sizes(2000, 64, 500, 65)),
    "product-samples": ("output", "product", Sizes(1048, 64, 1000), Sizes(1049, 64, 1000)),
}

CASES = {case.name: case for case in _all()}


@dataclass(frozen=True)
class Problem:
    """The tensors of one case. Nothing is precomputed: a method is timed from these to its result."""

    case: Case
    weights: dict[str, Tensor]  # the parameters by layer [units, inputs], in torch's order
    x: Tensor  # [samples, features]
    y: Tensor  # int64 [samples], or float targets [samples, classes] for mse
    vector: Tensor | None = None  # of quantity "product"
    pairs: Tensor | None = None  # (P, 2) int64 of quantity "blocks"

    @property
    def hidden_weight(self) -> Tensor | None:
        """W [units, features] of the only hidden layer."""
        return self.weights.get("hidden")

    @property
    def output_weight(self) -> Tensor:
        """V [classes, units or features]."""
        return list(self.weights.values())[-1]

    @property
    def tensors(self) -> list[Tensor]:
        """All inputs."""
        return [t for t in (*self.weights.values(), self.x, self.y, self.vector, self.pairs) if t is not None]

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.x.device

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Problem:
        """Return the same problem with floating-point inputs in `dtype`, and on `device` if given."""

        def cast(t: Tensor | None) -> Tensor | None:
            return t if t is None else t.to(device, dtype if t.is_floating_point() else None)

        weights = {name: cast(weight) for name, weight in self.weights.items()}
        return Problem(self.case, weights, *map(cast, (self.x, self.y, self.vector, self.pairs)))


def make(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Problem:
    """Draw x ~ N(0, 1) and weights ~ N(0, 1/fan_in), with uniform labels (one-hot targets for mse).

    Values are drawn in float32 on the CPU, so that every dtype and device has the same numbers.
    """
    g = torch.Generator().manual_seed(seed)
    N, d, C, _ = case.sizes
    x = torch.randn(N, d, generator=g)
    *hidden, (last, (rows, cols)) = case.layers.items()
    weights = {name: torch.randn(*shape, generator=g) / shape[1] ** 0.5 for name, shape in hidden}
    while (near := nearest_kink(x, weights.values()) < KINK_MARGIN).any():
        x[near] = torch.randn(int(near.sum()), d, generator=g)
    weights[last] = torch.randn(rows, cols, generator=g) / cols**0.5
    y = torch.randint(C, (N,), generator=g)
    if case.loss == "mse":
        y = torch.nn.functional.one_hot(y, C).float()
    vector = torch.randn(case.result_shape, generator=g) if case.quantity == "product" else None
    pairs = torch.randint(C, (case.pairs, 2), generator=g) if case.pairs else None
    return Problem(case, weights, x, y, vector, pairs).to(dtype, device)


def nearest_kink(x: Tensor, weights: Iterable[Tensor]) -> Tensor:
    """Least |z| [samples] over all hidden units of a ReLU network, in float64."""
    a, nearest = x.double(), x.new_full((len(x),), torch.inf, dtype=torch.float64)
    for weight in weights:
        z = a @ weight.double().T
        nearest, a = torch.minimum(nearest, z.abs().amin(1)), z.relu()
    return nearest


def necessary_bytes(problem: Problem) -> int:
    """Bytes to read every input once and to write the result once."""
    result = prod(problem.case.result_shape) * problem.x.element_size()
    return result + sum(t.numel() * t.element_size() for t in problem.tensors)


def necessary_flops(problem: Problem) -> float:
    """Flops (2 per multiply-add) of the weighted outer products alone, with every saving that is possible.

    Both symmetries are used, across blocks and inside a block. For ReLU only those samples count at which both units of
    a pair are active, as counted on this problem. Forward pass, weights and mirrored writes are left out. Norms count
    blocks or the Gram form, whichever is less. Ratios and approximations count logits, and half of each matrix over
    pairs of samples. Products count the passes through the network.
    """
    case = problem.case
    if case.deep:
        return _flops_of_depth(problem)
    N, d, C, m = case.sizes
    if case.quantity == "product":
        return N * (6 * m * d + 14 * C * m) if m else 6 * N * C * d
    if case.quantity in ("ratio", "approximations"):
        return 2 * N * d * C + N * N * d + 3 * N * N * C
    if case.quantity in ("blocks", "diagonal blocks"):  # each of one layer, and symmetric
        return float((case.pairs or C) * d * (d + 1) * N)
    if not m:
        blocks = d * (d + 1) * N * (C * (C + 1) / 2 if case.loss == "cross_entropy" else 1)
        return min(blocks, N * N * (C * C / 2 + d)) if case.quantity == "norms" else blocks

    active = (problem.x @ problem.hidden_weight.T > 0).double()
    both = active.T @ active  # [m, m] samples where units i and l are active
    unordered, ordered, own = float(both.triu().sum()), float(both.sum()), float(both.diagonal().sum())
    hidden = unordered * d * (d + 1)
    if case.quantity == "norms":
        return min(hidden, N * N * (d + m * (m + 1) / 2))
    if case.loss == "cross_entropy":
        output, cross = unordered * C * (C + 1), ordered * d * C * 2
    else:  # Q is constant: the output part is one m x m matrix, and only the residual meets every class
        output, cross = unordered * 2, own * d * C * 2 + ordered * d * 2
    parts = {"hidden": hidden, "output": output, "cross": cross}
    return parts.get(case.part, sum(parts.values()))


def _flops_of_depth(problem: Problem) -> float:
    """`necessary_flops` of a network with several hidden layers."""
    case, units, features, a = problem.case, {}, {}, problem.x
    for name, weight in problem.weights.items():
        z = a @ weight.T
        on = z > 0 if name != str(len(problem.weights) - 1) else torch.ones_like(z, dtype=torch.bool)
        features[name] = (a != 0).sum(1).double()
        units[name], a = on.sum(1).double(), z.relu()
    if case.quantity == "product":
        first, *others = case.parameters.values()
        return len(a) * (6 * first + 14 * sum(others))
    names = list(problem.weights) if case.part == "all" else [case.part]
    if case.quantity == "diagonal blocks":
        (name,) = names
        return float((units[name] * features[name] * (features[name] + 1)).sum())
    flops = 0.0
    for number, name in enumerate(names):
        u, f = units[name], features[name]
        flops += float((u * (u + 1) / 2 * f * (f + 1)).sum())
        for other in names[number + 1 :]:
            flops += float((2 * u * f * units[other] * features[other]).sum())
    if case.quantity == "ratio":
        rows, cols = case.layers[case.part]
        flops = min(flops, len(a) ** 2 * (cols + rows * (rows + 1) / 2))
    return flops
