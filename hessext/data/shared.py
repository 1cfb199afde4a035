"""Samples that are split over ranks: each rank has its own, and H is the sum over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hessext._tensors import own_precision
from hessext.model import targets
from hessext.model.losses import Loss
from hessext.model.network import Network

from .batches import SMALL, Batches
from .classes import split
from .data import Data
from .headers import checksum
from .ranks import Ranks
from .samples import Samples


@dataclass(eq=False)
class Shared(Data):
    """The samples of this rank, and the ranks that have the others.

    Its own in memory are divided by the divisor of all ranks, `loss.total`; sums over batches are divided in the end.
    """

    local: Data
    ranks: Ranks = field()
    divided: bool  # whether no rank has batches

    @classmethod
    def of(
        cls, network: Network, loss: Loss, ranks: Ranks, x: Any, y: Any, batches: Callable[[Loss], Batches] | None
    ) -> Shared:
        """Of samples x, y, of batches, or of none, x = None, on this rank. Raises as `hessext.linear`, on all ranks."""
        signature(ranks, network, loss)
        summed = replace(loss, reduction="sum")
        own: Data | None = None
        if batches is not None:
            own = batches(summed)
        elif x is not None:
            own = Samples.of(network, summed, x, y)
        having = ranks.notes("samples", ["batches" if batches else None if own is None else "samples"])
        if all(kind == [None] for kind in having):
            raise ValueError("x: expected samples on one rank at least; got none")
        divided = ["batches"] not in having
        if own is None:
            own = nothing(network, loss)
        elif divided:
            divisor = float(loss.divisor(own.y, own.like_logits))
        if divided:
            total = sum(ranks.notes("divisor", divisor if own.loss.total is None else 0.0))
            if loss.reduction != "sum":
                targets.check_divisor(total)
            if own.loss.total is None:
                own = own.divided(loss, total)
            own = split(own, ranks)
        elif network.split:
            raise ValueError("x: expected tensors, not batches, where classes are split over ranks")
        return cls(network, loss, own, ranks, divided)

    def __reduce__(self) -> tuple:
        """Pickle this rank's samples; they come back to ranks of the same number and order."""
        return Shared, tuple(getattr(self, f.name) for f in fields(self))

    @property
    def results(self) -> int:  # type: ignore[override]
        """Tensors of a result's size that `sum` needs."""
        return self.local.results

    @property
    def numel(self) -> int:
        """Numbers that `to` copies on this rank."""
        return self.local.numel

    def kind(self, row: int, col: int) -> Any:
        """Closed form of Q_n between two layers."""
        return self.local.kind(row, col)

    @cached_property
    def counts(self) -> list[int]:
        """Samples of each rank, one at least."""
        return self.ranks.notes("samples in memory", len(self.in_memory()))

    def to(self, device: torch.device, dtype: torch.dtype) -> Shared:
        """Return the same elsewhere."""
        local = self.local.to(device, dtype)
        return Shared(local.network, self._loss_like(local), local, self.ranks, self.divided)

    def _loss_like(self, local: Data) -> Loss:
        if not hasattr(self.loss, "pos_weight") and self.loss.weight is None:
            return self.loss
        return replace(local.loss, reduction=self.loss.reduction, total=None)

    @own_precision
    def sum(self, compute: Callable[[Samples, Tensor | None], Tensor], out: Tensor | None = None) -> Tensor:
        """The sum over this rank's samples, added up over the ranks; what is small is added in float64."""
        divisor = 0.0

        def counted(samples: Samples, out: Tensor | None) -> Tensor:
            nonlocal divisor
            if not self.divided and samples.loss.total is None:
                divisor += float(self.loss.divisor(samples.y, samples.like_logits))
            return compute(samples, out)

        result = self.local.sum(counted, out)
        total = self.ranks.sum(result.double() if result.numel() <= SMALL else result.contiguous())
        if not self.divided and self.loss.reduction != "sum":
            divisor = sum(self.ranks.notes("divisor", divisor))
            targets.check_divisor(divisor)
            total.div_(divisor)
        return total.to(result.dtype) if out is None else out.copy_(total)

    def in_memory(self) -> Samples:
        """Samples of this rank, divided by the divisor of all ranks."""
        return self.local if self.divided else self._kept

    @cached_property
    def _kept(self) -> Samples:
        samples = self.local.in_memory()
        absent = samples.loss.total is not None
        own = 0.0 if absent else float(self.loss.divisor(samples.y, samples.like_logits))
        total = sum(self.ranks.notes("divisor", own))
        if self.loss.reduction != "sum":
            targets.check_divisor(total)
        return samples if absent else samples.divided(self.loss, total)


def nothing(network: Network, loss: Loss) -> Samples:
    """What a rank without samples has in their place: one that the loss does not count, divided by infinity."""
    like = network.like
    reduction = loss.reduction if loss.reduction != "sum" else "mean"
    loss = replace(loss, reduction=reduction, total=math.inf)
    if loss.kind == "binary_cross_entropy":  # without weights of samples
        loss = replace(loss, weight=None, pos_weight=None)
        y = like.new_zeros(1, network.classes)
    else:
        y = torch.zeros(1, dtype=torch.int64, device=like.device)
    return Samples(network, loss, like.new_zeros(1, network.inputs), y)


def signature(ranks: Ranks, network: Network, loss: Loss) -> None:
    """Make sure that all ranks have the same weights and loss."""
    if ranks.alone:
        return
    parameters = [t for layer in network.layers for t in layer.affine]
    options = [str(getattr(loss, f.name)) for f in fields(loss) if f.name not in ("weight", "pos_weight")]
    weights = checksum(loss.weight) if loss.kind == "cross_entropy" else 0
    shapes = [list(layer.weight.shape) for layer in network.layers][:16]
    same = [loss.kind, options, str(network.like.dtype), shapes, checksum(*parameters), weights]
    if network.split:  # rows differ from rank to rank of the classes
        sums = ranks.class_notes("rows", same[-2])
        same[3:5] = [network.inputs, network.classes], sum(sums) % (1 << 62)
    ranks.agree("weights and loss (kind, options, dtype, shapes, checksums)", same)
    ranks.signature = (same[-2] * 31 + same[-1]) % (1 << 62)
