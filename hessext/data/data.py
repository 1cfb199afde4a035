"""What a Hessian is a sum over, in whatever form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessext import _checks
from hessext._ops import Kind
from hessext.model.losses import Loss
from hessext.model.network import Network

from .ranks import Ranks

if TYPE_CHECKING:
    from .samples import Samples


@dataclass(eq=False)
class Data(ABC):
    """What a Hessian is a sum over: samples in memory, or batches that are read when they are needed."""

    network: Network
    loss: Loss

    results = 1  # tensors of a result's size that `sum` needs
    ranks = Ranks()  # that have samples, or classes, of their own

    @property
    def first_class(self) -> int:
        """The first class that is here, where the ranks have split them."""
        return self.network.split[0] if self.network.split else 0

    @property
    def counts(self) -> list[int]:
        """Samples in memory of each rank."""
        return [len(self.in_memory())]

    @property
    def logits_apart(self) -> bool:
        """Whether d2 l_n / df2 is diagonal with entries of their own: binary cross-entropy of several logits."""
        return self.loss.kind == "binary_cross_entropy" and self.network.classes > 1

    @property
    def device(self) -> torch.device:
        """Device of the parameters and of what is computed."""
        return self.network.like.device

    def kind(self, row: int, col: int) -> Kind:
        """Closed form of Q_n between two layers, the earlier one first."""
        last = self.network.last
        if row == last:
            return Kind.OUTPUT
        if row < last - 1:
            return Kind.GIVEN
        return Kind.CROSS if col == last else Kind.HIDDEN

    @abstractmethod
    def sum(self, compute: Callable[[Samples, Tensor | None], Tensor], out: Tensor | None = None) -> Tensor:
        """Return the sum of what compute(samples, out) gives for each piece of the data, in `out` if given."""

    @abstractmethod
    def in_memory(self) -> Samples:
        """All of the data. Raises MemoryError where it does not fit."""

    def largest(self, layer: int) -> float:
        """The largest magnitude of a layer's inputs, of data in memory; 1 on a GPU, which would be waited for."""
        features = self.features(layer)
        return _checks.largest(features) if features.is_cpu else 1.0

    @property
    def in_range(self) -> Data:
        """Itself, or the same in float64 where float32 is too narrow."""
        return self

    @property
    @abstractmethod
    def numel(self) -> int:
        """Numbers that `to` copies."""

    @abstractmethod
    def to(self, device: torch.device, dtype: torch.dtype) -> Data:
        """Return the same elsewhere. Raises ValueError where a value is beyond the range of dtype."""
