"""Classes that are split over ranks: each rank has some rows of the last weight, and all of them the same samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hessext._memory import require
from hessext._tensors import once
from hessext.model.losses import OutputDerivatives
from hessext.model.network import Layer, Network

from .group import Group, process_group
from .headers import checksum
from .ranks import Ranks
from .samples import Samples


class Rows(NamedTuple):
    """The rows of a weight on this rank; `first` is None where their order is that of the ranks."""

    here: Tensor
    first: int | None
    group: Any
    total: int | None = None  # rows on all ranks, where that is known


def rows_of(name: str, t: Any) -> Rows | None:
    """Rows of a DTensor with Shard(0), or of (rows, first row, group); None for what is not split.

    Raises ValueError, TypeError.
    """
    if isinstance(t, tuple | list) and len(t) == 3:
        here, first, group = t
        if not isinstance(here, Tensor) or not isinstance(first, int):
            kinds = ", ".join(type(part).__name__ for part in t)
            raise TypeError(f"{name}: expected (rows on this rank, first row, group); got ({kinds})")
        return Rows(here, first, process_group(name, group))
    if type(t).__name__ not in ("DTensor", "Parameter") or not hasattr(t, "placements"):
        return None
    try:
        from torch.distributed.tensor import DTensor, Shard
    except ImportError:
        raise TypeError(f"{name}: expected torch 2.5 or later for a DTensor; got {torch.__version__}") from None
    data = t.detach()
    if not isinstance(data, DTensor):
        raise TypeError(f"{name}: expected a tensor or a torch.distributed.tensor.DTensor; got {type(t).__name__}")
    placements, mesh = data.placements, data.device_mesh
    split = [dim for dim, placement in enumerate(placements) if not placement.is_replicate()]
    if len(split) != 1 or type(placements[split[0]]) is not Shard or placements[split[0]].dim != 0:
        raise ValueError(
            f"{name}: expected a DTensor with Shard(0) in one dimension of its mesh, and replicated in others; got "
            f"{placements}"
        )
    return Rows(data.to_local(), None, mesh.get_group(split[0]), data.shape[0])


def own_rows(name: str, rows: Rows, ranks: Ranks) -> tuple[Tensor, tuple[int, int] | None]:
    """The rows of this rank, and (first row, rows on all ranks), from what the ranks have; None where all are here.

    Raises ValueError, on all ranks.
    """
    ranks.classes = Group(rows.group)
    with ranks.operation("linear"):
        counts = ranks.class_notes(f"rows of {name}", [len(rows.here), rows.first])
        given = [first for _, first in counts]
        at = sum(n for n, _ in counts[: ranks.classes.rank]) if rows.first is None else rows.first
        total = sum(n for n, _ in counts)
        spans = sorted((first, first + n) for n, first in counts if first is not None)
        covers = not spans or [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
        if not covers or (spans and None in given) or rows.total not in (None, total):
            raise ValueError(
                f"{name}: expected rows that follow one another and are all there; got {counts} (rows, first row) of "
                f"{rows.total or total}"
            )
    return rows.here, None if ranks.classes.size == 1 else (at, total)


def own_vector(name: str, v: Any, network: Network, size: int) -> Tensor:
    """What a DTensor has for the rows of the weight that are here, `size` numbers for each. Raises ValueError."""
    here, rows = v.detach().to_local(), len(network.like)
    if network.split is None or here.shape[:1] != (rows * size,):
        raise ValueError(
            f"{name}: expected a DTensor only where classes are split over ranks, and as its rows are: "
            f"{rows} x {size} numbers here; got {tuple(here.shape)}"
        )
    return here.contiguous()


def refuse_split(name: str, t: Any) -> None:
    """Refuse a DTensor where rows cannot be split. Raises TypeError."""
    if hasattr(t, "placements"):
        raise TypeError(
            f"{name}: expected a plain tensor; got a DTensor: rows are split over ranks in the weight of a linear model"
            " or of a head alone (DTensor.full_tensor() makes it plain)"
        )


@dataclass(eq=False)
class SplitSamples(Samples):
    """Samples of a linear model of whose classes this rank has some; what needs them all goes through its `ranks`."""

    ranks: Ranks = field()

    @classmethod
    def of_same(cls, samples: Samples, ranks: Ranks) -> SplitSamples:
        """Of samples that all ranks of the classes have. Raises ValueError where they do not."""
        if samples.loss.kind == "binary_cross_entropy":
            raise ValueError("loss: expected cross-entropy or MSE where classes are split over ranks; got binary")
        sums = checksum(samples.x, samples.y), len(samples)
        if len({tuple(note) for note in ranks.class_notes("checksum of x and y", list(sums))}) > 1:
            raise ValueError(
                "x: expected the same samples on all ranks over which classes are split; got others. FSDP2 shards "
                "weights in this way, too, but gives each rank samples of its own: gather its weight "
                "(DTensor.full_tensor()) and split the samples with group="
            )
        return cls(samples.network, samples.loss, samples.x, samples.y, ranks)

    def __reduce__(self) -> tuple:
        """Pickle this rank's rows and the samples."""
        _, arguments = super().__reduce__()
        return SplitSamples, (*arguments, self.ranks)

    def to(self, device: torch.device, dtype: torch.dtype) -> SplitSamples:
        """Return the same elsewhere."""
        there = super().to(device, dtype)
        return SplitSamples(there.network, there.loss, there.x, there.y, self.ranks)

    @property
    def rows(self) -> slice:
        """The classes that are here."""
        first = self.network.split[0]
        return slice(first, first + len(self.network.like))

    def all_classes(self, t: Tensor, dim: int) -> Tensor:
        """What each rank has for its classes, put together."""
        shape = list(t.shape)
        shape[dim] = self.network.classes
        require(t.element_size() * torch.Size(shape).numel(), f"{tuple(shape)} numbers of all classes", t.device)
        result = t.new_zeros(shape)
        result.narrow(dim, self.rows.start, t.shape[dim]).copy_(t)
        return self.ranks.class_sum(result)

    @property
    @once
    def output(self) -> OutputDerivatives:
        """Derivatives of the loss with respect to the logits of the classes that are here."""
        if not self.loss.softmax:
            o = self.loss.output(_no_residual, self.y, self.like_logits)
            return OutputDerivatives(o.scale, _no_residual)
        logits = self.network.layers[0].outputs(self.x)
        least = torch.finfo(logits.dtype).min
        largest = logits.amax(1) if logits.shape[1] else logits.new_full((len(logits),), least)
        whole = self.ranks.class_largest(largest.clone())
        own = logits.argmax(1) + self.rows.start if logits.shape[1] else torch.zeros_like(whole, dtype=torch.int64)
        last = torch.iinfo(torch.int64).max
        top = -self.ranks.class_largest(-torch.where(largest == whole, own, last))
        p = logits.sub_(whole[:, None]).exp_()
        here = ((top >= self.rows.start) & (top < self.rows.stop)).nonzero()[:, 0]
        p[here, top[here] - self.rows.start] = 0
        others = self.ranks.class_sum(p.sum(1, dtype=torch.float64))
        of_top = 1 / (1 + others)
        p.mul_(of_top.to(p.dtype)[:, None])
        p[here, top[here] - self.rows.start] = of_top.to(p.dtype)[here]
        return _SplitSoftmax(self.scale, _no_residual, p, top, (others * of_top).to(p.dtype), self)

    def product(self, v: Tensor, some: slice) -> Tensor:
        """c_n (p_n v_n - p_n (p_n . v_n)) of the classes that are here, v_n centred at the top class first."""
        o = self.output
        p, top, here = o.probs[some], o.top[some], self.rows
        inside = (top >= here.start) & (top < here.stop)
        number = inside.nonzero()[:, 0]
        at_top = v.new_zeros(len(v))
        at_top[number] = v[number, top[number] - here.start]
        v = v - self.ranks.class_sum(at_top)[:, None]
        mean = self.ranks.class_sum(torch.sum(p * v, 1, dtype=torch.float64)).to(v.dtype)
        return v.sub_(mean[:, None]).mul_(p).mul_(o.scale[some, None])

    @property
    def probabilities(self) -> Tensor:
        """p_n (N, C) of all classes."""
        return self.all_classes(self.output.probs, 1)

    def curvature_entries(self, row: int, col: int, pairs: Tensor, term: str) -> Tensor:
        """Q_n[i, j] (P, N) of pairs (P, 2), whose probabilities are sent to all ranks."""
        i, j = pairs.unbind(1)
        like, N = self.network.like, len(self)
        if term == "residual":
            return like.new_zeros(len(pairs), N)
        o = self.output
        if o.probs is None:
            return (i == j).to(like.dtype)[:, None] * o.scale
        classes, at = pairs.flatten().unique(return_inverse=True)
        p = self.ranks.class_sum(self._probabilities_of(classes))[at].view(len(pairs), 2, N)
        own = o.top == i[:, None]
        rest = torch.where(own, o.rest, 1 - p[:, 0])
        return torch.where((i == j)[:, None], p[:, 0] * rest, -p[:, 0] * p[:, 1]) * o.scale

    def _probabilities_of(self, classes: Tensor) -> Tensor:
        """p_n of some classes (k, N), 0 for those that are not here."""
        result = self.network.like.new_zeros(len(classes), len(self))
        here = ((classes >= self.rows.start) & (classes < self.rows.stop)).nonzero()[:, 0]
        result[here] = self.output.probs.T[classes[here] - self.rows.start]
        return result

    def own_diagonal(self, some: slice) -> Tensor:
        """Q_n[i, i] (k, N) of some of the classes that are here."""
        o = self.output
        if o.probs is None:
            return o.scale.expand(len(self.network.like[some]), -1)
        p = o.probs.T[some]
        number = torch.arange(self.rows.start + some.start, self.rows.start + some.start + len(p), device=p.device)
        return p * torch.where(o.top == number[:, None], o.rest, 1 - p) * o.scale

    def whole(self) -> Samples:
        """The same samples with all rows of the weight, on every rank."""
        (layer,) = self.network.layers
        weight, bias = (None if t is None else self.all_classes(t, 0) for t in layer.affine)
        network = Network((Layer(layer.name, weight, bias),), by_parameter=self.network.by_parameter)
        return Samples(network, self.loss, self.x, self.y)


@dataclass(eq=False)
class _SplitSoftmax(OutputDerivatives):
    samples: SplitSamples | None = None

    def product_(self, v: Tensor, sample: slice = slice(None)) -> Tensor:
        """As of OutputDerivatives, for the classes that are here."""
        return self.samples.product(v, sample)


def _no_residual() -> Tensor:
    raise AssertionError("a linear model has no residual term")


def split(samples: Samples, ranks: Ranks) -> Samples:
    """Samples of the classes that are here, where these are split."""
    return samples if samples.network.split is None else SplitSamples.of_same(samples, ranks)
