"""All places where one linear layer of a network is applied, as data that a Hessian is a sum over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hessext._ops import Kind
from hessext._tensors import own_precision
from hessext.model.linear import LinearLayer
from hessext.model.losses import Loss
from hessext.model.network import Layer, Network

from .curvature import rows_in_turn
from .data import Data
from .question import Question
from .tails import Tails

_SLAB = 256 << 20  # bytes of whole rows of S in hand


class OneLayer(Data):
    """Places of one layer of any network, in memory: what a Hessian of this layer alone is a sum over."""

    def __init__(self, layer: LinearLayer, loss: Loss, device: torch.device, dtype: torch.dtype) -> None:
        parameters = (None if t is None else t.to(device, dtype) for t in (layer.weight, layer.bias))
        own = Layer(layer.name, *parameters, bias_first=layer.bias_first)
        super().__init__(Network((own,), by_parameter=True), loss)

    def kind(self, row: int, col: int) -> Kind:
        """Q_n has no closed form."""
        return Kind.GIVEN

    @own_precision
    def sum(self, compute: Callable[[OneLayer, Tensor | None], Tensor], out: Tensor | None = None) -> Tensor:
        """Return compute(self, out): one piece is all of the data."""
        return compute(self, out)

    def in_memory(self) -> OneLayer:
        """Return itself."""
        return self

    def bends(self, layer: int) -> bool:
        """Whether there may be more to S_n than its Gauss-Newton term."""
        return True


class NoPlaces(OneLayer):
    """What a rank without batches has in their place: one that counts for nothing."""

    def __init__(self, layer: LinearLayer, loss: Loss, device: torch.device, dtype: torch.dtype) -> None:
        self._layer = layer
        super().__init__(layer, loss, device, dtype)
        self.counted = torch.zeros(1, dtype=torch.bool, device=device)

    def __len__(self) -> int:
        return 1

    def check_unchanged(self) -> None:
        """There is nothing that could change but the weight, which does not matter."""

    numel = 0

    def to(self, device: torch.device, dtype: torch.dtype) -> NoPlaces:
        """Return the same elsewhere."""
        return NoPlaces(self._layer, self.loss, device, dtype)

    def features(self, layer: int) -> Tensor:
        """Zeros (1, cols)."""
        return self.network.like.new_zeros(1, self.network.inputs)

    def curvature_product(self, layer: int, term: str, v: Tensor) -> Tensor:
        """Zeros (1, K)."""
        return torch.zeros_like(v)

    def curvature_entries(self, row: int, col: int, pairs: Tensor, term: str) -> Tensor:
        """Zeros (P, 1)."""
        return self.network.like.new_zeros(len(pairs), 1)


class Places(OneLayer):
    """H = sum_n S_n (x) a_n a_n^T over the places n of one layer; `TailCurvature` forms S_n in rows."""

    def __init__(self, tails: Tails, number: int) -> None:
        self._tails, self._number = tails, number
        super().__init__(tails.layers[number], tails.loss, tails.device, tails.dtype)

    @property
    def layer(self) -> LinearLayer:
        """The layer in the model."""
        return self._tails.layers[self._number]

    @property
    def question(self) -> Question:
        """What the places are collected from, with the batches."""
        return self._tails.question

    @property
    def batches(self) -> list[Any]:
        """All batches, as they came."""
        return [piece.batch for piece in self._tails.pieces]

    def __len__(self) -> int:
        return len(self._tails.features[self._number])

    def __reduce__(self) -> tuple:
        """Pickle what the tails are computed from."""
        return Places, (self._tails, self._number)

    def check_unchanged(self) -> None:
        """Raise RuntimeError where the model or the batches were changed in place after this was made."""
        self._tails.check_unchanged()

    @property
    def numel(self) -> int:
        """The model's parameters; the layer's inputs are collected anew."""
        return sum(p.numel() for p in self._tails.runner.parameters)

    def to(self, device: torch.device, dtype: torch.dtype) -> Places:
        """Return the places of the same layer of the model elsewhere, run there on the same batches."""
        return Places(self._tails.elsewhere(device, dtype), self._number)

    @property
    def counted(self) -> Tensor | None:
        """Which places the loss counts (N,); None where they are not those of the logits, as it is not known then."""
        return self._tails.counted(self._number)

    def features(self, layer: int) -> Tensor:
        """Inputs a_n (N, cols) at all places."""
        return self._tails.features[self._number]

    def curvature_product(self, layer: int, term: str, v: Tensor) -> Tensor:
        """S_n v_n (N, K) of vectors v (N, K)."""
        return self._tails.curvature.product(self._number, v, term)

    def curvature_entries(self, row: int, col: int, pairs: Tensor, term: str) -> Tensor:
        """S_n[i, j] (P, N) of pairs (P, 2)."""
        like = self.network.like
        out = like.new_empty(len(pairs), len(self))
        few = 2 + _SLAB // (like.shape[0] * len(self) * like.element_size())  # pairs begin and end within rows
        for units, where in rows_in_turn(pairs, few):
            rows = self._tails.curvature.rows(self._number, units, term)
            for row, some in zip(rows, where, strict=True):
                out[some] = row.T.contiguous()[pairs[some, 1]]
        return out
