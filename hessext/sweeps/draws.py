"""One random draw of a sweep."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from hessext import _core
from hessext._api import linear, one_hidden
from hessext._memory import require
from hessext.matrix.hessian import Hessian

# Points of each set that integrates a draw's expectation (theory.given_weights). The integration error has mean 0 and
# enters the paired differences: it widens the error bars and biases nothing.
EXPECTATION_POINTS = 256


class Case(NamedTuple):
    """A model at initialization and its loss."""

    title: str
    layers: tuple[str, ...]
    loss: str
    paired: bool  # compare each draw with its expectation at the same weights; unpaired, the tails are too heavy

    @property
    def network(self) -> bool:
        """Whether there is a hidden layer."""
        return "hidden" in self.layers


CASES = {
    1: Case("linear model, MSE", ("output",), "mse", False),
    2: Case("linear model, cross-entropy", ("output",), "cross_entropy", False),
    3: Case("one hidden ReLU layer, MSE", ("hidden", "output"), "mse", False),
    4: Case("one hidden ReLU layer, cross-entropy", ("hidden", "output"), "cross_entropy", True),
}


class Point(NamedTuple):
    """Sizes C, N, d, m of a model and its data; m = 0 without a hidden layer."""

    classes: int
    samples: int
    features: int
    hidden: int

    @property
    def gamma(self) -> float:
        """d / N."""
        return self.features / self.samples

    @property
    def text(self) -> str:
        """The sizes, as a message has them."""
        return ", ".join(f"{name} {size}" for name, size in self._asdict().items() if size)


class Task(NamedTuple):
    """What a draw depends on, and nothing else."""

    case: int
    seed: int
    dtype: str
    point: Point
    draw: int


class Row(NamedTuple):
    """One layer in one draw: the block means of BlockMatrix.ratio(), times 1/d where blocks are d x d.

    expected_*: their expectation over x at the draw's weights; None in cases that are not paired.
    instruction_set: hessext's and torch's. With these and the version of torch equal, a draw has the same bits.
    """

    case: int
    seed: int
    dtype: str
    classes: int
    samples: int
    features: int
    hidden: int
    draw: int
    layer: str
    diagonal: float
    off_diagonal: float
    ratio: float
    expected_diagonal: float | None
    expected_off_diagonal: float | None
    instruction_set: str
    torch_version: str

    @property
    def task(self) -> Task:
        """The draw that the row belongs to."""
        return Task(self.case, self.seed, self.dtype, Point(*self[3:7]), self.draw)

    @property
    def machine(self) -> tuple[str, str]:
        """What the draw's bits depend on besides the task."""
        return self.instruction_set, self.torch_version


def draw(task: Task, activation: str = "relu") -> tuple[Hessian, tuple[Tensor, ...]]:
    """Return the Hessian of a draw and its weights, (W (C, d),) or (W (m, d), V (C, m)).

    x ~ N(0, I), labels are uniform and weights are N(0, 1/fan-in). Numbers are drawn in float32 for either dtype. Cases
    1 and 2 have the same numbers, and so have 3 and 4. Raises MemoryError.
    """
    case, (C, N, d, m), dtype = CASES[task.case], task.point, getattr(torch, task.dtype)
    require((N * d + (m or C) * d + C * m) * dtype.itemsize, f"a draw ({task.point.text})")
    g = torch.Generator().manual_seed(_stream(task))

    def normal(rows: int, cols: int, variance: float = 1.0) -> Tensor:
        return torch.randn(rows, cols, generator=g, device="cpu").mul_(variance**0.5).to(dtype)

    if not case.network:
        W = normal(C, d, 1 / d)
        return linear(W, normal(N, d), loss=case.loss), (W,)  # no label enters this Hessian
    W, V, x = normal(m, d, 1 / d), normal(C, m, 1 / m), normal(N, d)
    y = torch.randint(C, (N,), generator=g, device="cpu")
    return one_hidden(W, V, x, y, activation=activation, loss=case.loss), (W, V)


def compute(task: Task) -> list[Row]:
    """Return one row for each layer of a draw."""
    case, (_, N, d, _) = CASES[task.case], task.point
    H, weights = draw(task)
    if case.paired:
        from hessext.theory import given_weights  # scipy takes a second to load

        expected = given_weights(*weights, N, loss=case.loss, points=EXPECTATION_POINTS, seed=_stream(task))._asdict()
    machine = f"{_core.isa()}/{torch.backends.cpu.get_cpu_capability()}", torch.__version__
    rows = []
    for layer in case.layers:
        scale = 1 / d if layer == "hidden" or not case.network else 1.0
        diagonal, off_diagonal, ratio = H[layer].ratio()
        means = expected[layer][:2] if case.paired else (None, None)
        sizes = (task.case, task.seed, task.dtype, *task.point, task.draw, layer)
        rows.append(Row(*sizes, diagonal * scale, off_diagonal * scale, ratio, *means, *machine))
    return rows


def _stream(task: Task) -> int:
    """Seed of a draw. Draws of a point have distinct seeds, which hashes of torch's 32 bits would not guarantee."""
    first = hashlib.blake2b(repr((task.seed, *task.point)).encode(), digest_size=4).digest()
    return (int.from_bytes(first, "little") + task.draw) % 2**32


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread in torch, hessext and numpy's BLAS, so that a draw's bits do not depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(before)
