"""Data that is read batch by batch, each time it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hessext import _hints
from hessext._memory import require
from hessext._progress import bar_of, counted, inside_tqdm, length, shares
from hessext._tensors import moved, own_precision
from hessext.model import targets
from hessext.model.losses import Loss

from .data import Data
from .forward import described
from .samples import Samples

SMALL = 8 << 20  # numbers of a result whose sum is kept in float64
_PIECE = 128 << 20  # bytes of samples, and of what is computed from them, that are worked on at once
_READING = 0.5  # share of reading in a bar


@dataclass(eq=False)
class Batches(Data):
    """(x, y) of a DataLoader or of another iterable; H is their sum over the sum of what the loss divides by.

    Small batches are put together and large ones split: a piece costs a product however small it is.
    """

    source: Iterable[Any]
    memory: int  # bytes that samples, and what is computed from them, may take where all are kept
    before: Callable[[Tensor], Tensor] | None = None  # makes the network's inputs of a batch's x; None: they are x

    bar: str | None = None  # name of a bar over each pass, where tqdm is around the batches

    results = 2

    def __post_init__(self) -> None:
        if self.bar is None:
            self.source, self.bar = inside_tqdm(self.source)
        if isinstance(self.source, Iterator):
            raise TypeError(
                "x: expected batches that can be read again, as those of a list or a DataLoader; got "
                f"{type(self.source).__name__}, which ends after one pass (list(...) of it keeps them)"
            )
        self.loss = targets.of_any_samples(self.loss, self.network.classes)
        next(self._read())  # its errors are better raised now

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and copy no samples but those that `source` holds itself."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def _summed(self) -> Loss:
        """The loss of a part of the data: what a mean divides by is known in the end."""
        return replace(self.loss, reduction="sum")

    @property
    def numel(self) -> int:
        """Parameters; batches are moved when they are read."""
        return self.network.numel

    def to(self, device: torch.device, dtype: torch.dtype) -> Batches:
        """Return the same batches for parameters elsewhere."""
        self.network.check_unchanged()
        result = copy(self)  # what was checked is not read again
        own = self.network, self.loss, self.before
        result.network, result.loss, result.before = (moved(t, device, dtype) for t in own)
        return result

    @own_precision
    def sum(self, compute: Callable[[Samples, Tensor | None], Tensor], out: Tensor | None = None) -> Tensor:
        """One pass over the batches; what is small is added in float64. Only with `out` does compute write to it."""
        self.network.check_unchanged()
        result, spare, divisor, summed = None, None, 0.0, self._summed
        number = length(self.source)
        with bar_of(self.bar), shares(None if number is None else number + _READING) as begin:
            for x, y in self._pieces(begin):
                samples = Samples(self.network, summed, x, y)
                if result is None:
                    part = samples.sum(compute, out)
                    result = part.double() if part.numel() <= SMALL else part
                else:
                    part = samples.sum(compute, spare)
                    result += part
                    spare = None if out is None else part
                divisor += float(self.loss.divisor(y, samples.like_logits))
                del samples, x, y, part  # before the next piece is read
        if self.loss.reduction != "sum":
            targets.check_divisor(divisor)
            result.div_(divisor)
        return result.to(self.network.like.dtype) if out is None else out.copy_(result)

    def in_memory(self) -> Samples:
        """All batches, read once and kept."""
        return self._kept

    @cached_property
    def _kept(self) -> Samples:
        pieces, samples = [], 0
        with bar_of(self.bar):
            for piece in self._pieces():
                samples += len(piece[0])
                pieces = [*pieces, piece] if self._bytes(samples) <= self.memory else []
        needed = self._bytes(samples)
        if needed > self.memory:
            raise MemoryError(
                f"norms keep all samples: {needed} bytes ({needed / 2**30:.1f} GiB) for {samples} of them, and "
                f"memory={self.memory} allows fewer"
            )
        require(needed, f"{samples} samples", self.network.like.device)
        return Samples.of(self.network, self.loss, *_together(pieces))

    def _bytes(self, samples: int) -> int:
        """Of these samples: inputs, hidden units with two derivatives, logits, probabilities, residual and targets."""
        outputs = sum(len(layer.weight) for layer in self.network.layers)
        return samples * (self.network.inputs + 4 * outputs) * self.network.like.element_size()

    def _pieces(self, begin: Callable[[float], None] = lambda work: None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Inputs (n, d) and targets of all samples in their order, n at most what _PIECE holds.

        `begin` is told the work that begins, of which a batch has 1 and the last look for one has the rest.
        """
        most = max(1, _PIECE // self._bytes(1))
        held: list[tuple[Tensor, Tensor | None]] = []
        count, work = 0, 0.0
        begin(_READING)
        for samples in self._read():
            splits = samples.x.split(most), [None] * -(-len(samples.x) // most)
            if samples.y is not None:
                splits = splits[0], samples.y.split(most)
            for x, y in zip(*splits, strict=True):
                if held and count + len(x) > most:
                    piece, held, count = _together(held), [], 0  # what was put together is not kept
                    begin(work)
                    yield piece
                    del piece
                    work = 0.0
                held.append((x, y))
                count += len(x)
                work += (1 - _READING) * len(x) / len(samples)
            begin(_READING)
        begin(work)
        yield _together(held)

    def _read(self) -> Iterator[Samples]:
        """Yield checked batches, whose samples are all in one axis."""
        before, k, summed, like = "", -1, self._summed, self.network.like
        for k, batch in enumerate(counted(self.source, "batches")):
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                hint = _hints.of_batch(batch) if isinstance(batch, Tensor) else ""
                raise TypeError(
                    f"x: expected a tensor, or a list or loader of batches (x, y); batch {k} is {described(batch)}"
                    f"{hint or ' (hessext.layer and hessext.head take others with forward=)'}"
                )
            x, y = (
                t.to(like.device, like.dtype if t.is_floating_point() else t.dtype) if isinstance(t, Tensor) else t
                for t in batch
            )
            try:
                samples = Samples.of(self.network, summed, x if self.before is None else self.before(x), y)
            except (TypeError, ValueError) as error:
                raise (TypeError if isinstance(error, TypeError) else ValueError)(f"batch {k}: {error}") from None
            form = "None" if samples.y is None else f"{samples.y.dtype} of {samples.y.ndim} axes"
            if k and form != before:
                raise ValueError(f"batch {k}: y: expected {before}, as in the batches before; got {form}")
            before = form
            yield samples
            del batch, x, y, samples  # before the next batch is read
        if k < 0:
            raise ValueError("x: expected at least one batch; got none")


def _together(pieces: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    if len(pieces) == 1:
        return pieces[0]
    x, y = zip(*pieces, strict=True)
    return torch.cat(x), None if y[0] is None else torch.cat(y)
