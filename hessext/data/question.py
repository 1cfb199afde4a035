"""What is asked of layers of any network, and what is known of each batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hessext import _checks
from hessext.model.linear import LinearLayer
from hessext.model.losses import Loss
from hessext.model.targets import of_logits

from .runs import Forward, Record
from .symmetric import SymmetricMatrices
from .tail import Tail


@dataclass(eq=False)
class Question:
    """What is asked: all that the layers' inputs and curvature are computed from."""

    model: nn.Module
    layers: list[LinearLayer]
    argument: str  # that names the layers
    loss: Loss
    forward: Forward | None
    memory: int
    dtype: torch.dtype | None = None  # None: that of the layers, but float32 at least
    device: torch.device | None = None  # None: where the model is


@dataclass(eq=False)
class Piece:
    """One batch, the rows of the head's outputs that are its logits, its targets, and what is kept of its tail."""

    batch: Any
    rows: Tensor | None  # (M,); None without a head
    y: Tensor | None
    places: list[slice]  # of each layer, among those of all batches
    tail: Tail | None = None
    quadratic: SymmetricMatrices | None = None  # M_n of `Outputs`


def targets_of(record: Record, k: int, loss: Loss) -> Tensor | None:
    """Targets of all rows of the logits of batch k, in one axis; None where there are none."""
    logits = record.logits.detach()
    try:
        if not logits.numel():
            raise ValueError(f"model: expected logits of at least one sample; got {_checks.shape_text(logits.shape)}")
        _checks.finite("model: logits", logits)
        return of_logits(record.targets, logits, replace(loss, reduction="sum"))
    except (TypeError, ValueError) as error:
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"batch {k}: {error}") from None


def tensors_in(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in dicts, lists and tuples, with what they are called by."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from tensors_in(f"{name}[{key!r}]", one)
    elif isinstance(value, list | tuple):
        for key, one in enumerate(value):
            yield from tensors_in(f"{name}[{key}]", one)
