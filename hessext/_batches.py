"""Data that is read batch by batch, each time it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._losses import BinaryCrossEntropy
from ._network import moved, own_precision
from ._problem import Data, Problem, checked

_SMALL = 8 << 20  # numbers of a result whose sum is kept in float64
_PIECE = 128 << 20  # bytes of samples, and of what is computed from them, that are worked on at once


def _unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(eq=False)
class Batches(Data):
    """(x, y) of a DataLoader or of another iterable; H is their sum over the sum of what the loss divides by.

    Small batches are put together and large ones split: a piece costs a product however small it is.
    """

    source: Iterable[Any]
    memory: int  # bytes that samples, and what is computed from them, may take where all are kept
    features: Callable[[Tensor], Tensor] = field(default=_unchanged)  # of what a batch has as x

    results = 2

    def __post_init__(self) -> None:
        if isinstance(self.source, Iterator):
            raise TypeError(
                "x: expected batches that can be read again, as those of a list or a DataLoader; got a "
                f"{type(self.source).__name__}, which ends after one pass"
            )
        if isinstance(self.loss, BinaryCrossEntropy):
            for name in ("weight", "pos_weight"):
                t = getattr(self.loss, name)
                if t is not None and t.numel() != 1:
                    raise ValueError(f"loss.{name}: expected one number with batches; got shape {tuple(t.shape)}")
                if t is not None:  # without the axes of a batch
                    self.loss = replace(self.loss, **{name: t.reshape(())})
        next(self._read())  # its errors are better raised now

    def __reduce__(self) -> tuple:
        """Pickle no samples but those that `source` holds itself."""
        return Batches, tuple(getattr(self, f.name) for f in fields(self))

    @property
    def numel(self) -> int:
        """Parameters; batches are moved when they are read."""
        return self.network.numel

    def to(self, device: torch.device, dtype: torch.dtype) -> Batches:
        """Return the same batches for parameters elsewhere."""
        self.network.check_unchanged()
        return replace(self, network=moved(self.network, device, dtype), loss=moved(self.loss, device, dtype))

    @own_precision
    def sum(self, compute: Callable[[Problem, Tensor | None], Tensor], out: Tensor | None = None) -> Tensor:
        """One pass over the batches; what is small is added in float64. Only with `out` does compute write to it."""
        self.network.check_unchanged()
        result, spare, divisor = None, None, 0.0
        summed = replace(self.loss, reduction="sum")
        for x, y in self._pieces():
            problem = Problem(self.network, summed, x, y)
            if result is None:
                part = compute(problem, out)
                result = part.double() if part.numel() <= _SMALL else part
            else:
                part = compute(problem, spare)
                result += part
                spare = None if out is None else part
            divisor += float(self.loss.divisor(y, problem.like_logits))
            del problem, x, y, part  # before the next piece is read
        if self.loss.reduction != "sum":
            if not divisor:
                raise ValueError("y: expected labels whose weights do not sum to 0; all are ignored or weigh nothing")
            result.div_(divisor)
        return result.to(self.network.like.dtype) if out is None else out.copy_(result)

    def in_memory(self) -> Problem:
        """All batches, read once and kept."""
        return self._kept

    @cached_property
    def _kept(self) -> Problem:
        pieces, samples = [], 0
        for piece in self._pieces():
            samples += len(piece[0])
            pieces = [*pieces, piece] if self._bytes(samples) <= self.memory else []
        needed = self._bytes(samples)
        if needed > self.memory:
            raise MemoryError(
                f"norms keep all samples: {needed} bytes ({needed / 2**30:.1f} GiB) for {samples} of them, and "
                f"memory={self.memory} allows fewer"
            )
        _checks.memory(needed, f"{samples} samples", self.network.like.device)
        return checked(self.network, self.loss, *_together(pieces))

    def _bytes(self, samples: int) -> int:
        """Of these samples: inputs, hidden units with two derivatives, logits, probabilities, residual and targets."""
        network = self.network
        units = 0 if network.hidden is None else 4 * len(network.hidden[0])
        return samples * (network.inputs + units + 4 * network.classes) * network.like.element_size()

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Inputs (n, d) and targets of all samples in their order, n at most what _PIECE holds."""
        most = max(1, _PIECE // self._bytes(1))
        held: list[tuple[Tensor, Tensor | None]] = []
        count = 0
        for problem in self._read():
            splits = problem.x.split(most), [None] * -(-len(problem.x) // most)
            if problem.y is not None:
                splits = splits[0], problem.y.split(most)
            for x, y in zip(*splits, strict=True):
                if held and count + len(x) > most:
                    piece, held, count = _together(held), [], 0  # what was put together is not kept
                    yield piece
                    del piece
                held.append((x, y))
                count += len(x)
        yield _together(held)

    def _read(self) -> Iterator[Problem]:
        """Yield checked batches, whose samples are all in one axis."""
        before, k = "", -1
        summed = replace(self.loss, reduction="sum")  # a batch may have no label that counts
        like = self.network.like
        for k, batch in enumerate(self.source):
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                got = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
                raise TypeError(f"x: expected a tensor, or a list or loader of batches (x, y); batch {k} is a {got}")
            x, y = (
                t.to(like.device, like.dtype if t.is_floating_point() else t.dtype) if isinstance(t, Tensor) else t
                for t in batch
            )
            try:
                problem = checked(self.network, summed, self.features(x), y)
            except (TypeError, ValueError) as error:
                raise (TypeError if isinstance(error, TypeError) else ValueError)(f"batch {k}: {error}") from None
            form = "None" if problem.y is None else f"{problem.y.dtype} of {problem.y.ndim} axes"
            if k and form != before:
                raise ValueError(f"batch {k}: y: expected {before}, as in the batches before; got {form}")
            before = form
            yield problem
            del batch, x, y, problem  # before the next batch is read
        if k < 0:
            raise ValueError("x: expected at least one batch; got none")


def _together(pieces: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    if len(pieces) == 1:
        return pieces[0]
    x, y = zip(*pieces, strict=True)
    return torch.cat(x), None if y[0] is None else torch.cat(y)
