"""A feed-forward network as a list of layers, and its parameters as blocks in torch's order. No data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from hessext._products import linear, multiply
from hessext._tensors import Watch, compact, lifted_like, map_tensors

from .activations import Activation

_LIFTED = 16 << 20  # bytes of a weight in half precision that are lifted at once

Affine = tuple[Tensor, Tensor | None]  # weight (rows, cols), bias (rows,)


@dataclass(frozen=True, eq=False)
class Layer:
    """An affine map z = W a + b and the activation of its outputs; the last layer has none, its z are the logits."""

    name: str
    weight: Tensor  # (rows, cols)
    bias: Tensor | None = None  # (rows,)
    activation: Activation | None = None
    bias_first: bool = False  # in torch's parameter order, as where the weight was registered anew

    @property
    def affine(self) -> Affine:
        """Weight and bias."""
        return self.weight, self.bias

    def outputs(self, a: Tensor) -> Tensor:
        """W a + b (N, rows) of inputs a (N, cols); a weight in half precision is lifted some rows at a time."""
        if self.weight.dtype == a.dtype:
            return linear(a, *self.affine)
        result = a.new_empty(len(a), len(self.weight))
        for rows, weight in self.lifted(self.weight, a.dtype):
            result[:, rows] = linear(a, weight, None if self.bias is None else self.bias[rows])
        return result

    def pulled(self, r: Tensor) -> Tensor:
        """R W (N, cols) of rows (N, rows)."""
        if self.weight.dtype == r.dtype:
            return multiply(r, self.weight)
        result = r.new_zeros(len(r), self.weight.shape[1])
        for rows, weight in self.lifted(self.weight, r.dtype):
            result.addmm_(r[:, rows], weight)
        return result

    @staticmethod
    def lifted(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Some rows of a weight in half precision at a time, in one and the same memory."""
        step = max(1, _LIFTED // (dtype.itemsize * weight.shape[1]))
        buffer = weight.new_empty(min(step, len(weight)), weight.shape[1], dtype=dtype)
        for first in range(0, len(weight), step):
            rows = slice(first, min(first + step, len(weight)))
            yield rows, buffer[: rows.stop - first].copy_(weight[rows])

    def name_of(self, part: str) -> str:
        """Name of the "weight" or the "bias"; a module that is itself the layer has no name of its own."""
        return f"{self.name}.{part}" if self.name else part


class ParameterGroup(NamedTuple):
    """Parameters of one layer as blocks, one for each row of its map: weights, bias, or both (weights first)."""

    name: str
    layer: int  # which of the network's layers
    blocks: int  # rows of the map
    cols: int  # weights in a block, 0 for a bias alone
    bias: bool  # whether the bias is the last parameter of a block
    start: int  # number of the first weight in torch's parameter order
    start_bias: int  # number of the first bias

    @property
    def size(self) -> int:
        """Parameters in a block."""
        return self.cols + self.bias

    @property
    def numel(self) -> int:
        """Number of parameters."""
        return self.blocks * self.size

    def positions(self, device: torch.device | None = None) -> Tensor:
        """Where the blocks' parameters stand in torch's order, (blocks * size,), block after block."""
        row = torch.arange(self.blocks, device=device)[:, None]
        weights = self.start + row * self.cols + torch.arange(self.cols, device=device)
        return torch.cat([weights, self.start_bias + row] if self.bias else [weights], 1).flatten()


@dataclass(eq=False)
class Network:
    """Layers in the order in which they are applied; parameters are checked, and copied if small."""

    layers: tuple[Layer, ...]
    # Layers in torch's order, in which a model registers them; None: as they are applied.
    registered: tuple[int, ...] | None = None
    by_parameter: bool = False  # whether `Hessian.layers` are a model's parameters, or whole layers
    # The first of the last layer's rows that are here, and how many there are, where other ranks have the others.
    split: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.registered is None:
            self.registered = tuple(range(len(self.layers)))
        weight = self.layers[-1].weight
        self.last = len(self.layers) - 1  # number of the output layer
        self.inputs = self.layers[0].weight.shape[1]  # d, the number of features of a sample
        self.classes = weight.shape[0] if self.split is None else self.split[1]  # C, the number of logits
        self.like = lifted_like(weight)  # a tensor of the results' dtype and device, shaped as the last weight
        names = [layer.name_of("weight") if self.by_parameter else f"{layer.name}_weight" for layer in self.layers]
        self._watch = Watch(**{name: layer.weight for name, layer in zip(names, self.layers, strict=True)})

    def check_unchanged(self) -> None:
        """Raise RuntimeError if a weight was changed in place after this was made."""
        self._watch.check()

    def __reduce__(self) -> tuple:
        """Pickle the parameters alone."""
        self.check_unchanged()
        return Network, tuple(map_tensors(compact, getattr(self, f.name)) for f in fields(self))

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """Name -> tensor in torch's parameter order."""
        found = {}
        for number in self.registered:
            layer = self.layers[number]
            parts = [("weight", layer.weight), ("bias", layer.bias)]
            for part, t in reversed(parts) if layer.bias_first else parts:
                if t is not None:
                    found[layer.name_of(part)] = t
        return found

    @cached_property
    def whole(self) -> tuple[ParameterGroup, ...]:
        """Weights and bias of each layer together, layers in torch's order."""
        found, start = [], 0
        for number in self.registered:
            layer = self.layers[number]
            rows, cols = layer.weight.shape
            rows = self.classes if number == self.last else rows
            starts = (start + rows, start) if layer.bias_first else (start, start + rows * cols)
            group = ParameterGroup(layer.name, number, rows, cols, layer.bias is not None, *starts)
            found.append(group)
            start += rows * group.size
        return tuple(found)

    @cached_property
    def groups(self) -> dict[str, ParameterGroup]:
        """Every name that can be asked for: layers, and their weights and biases alone."""
        found = {}
        for group in self.whole:
            layer = self.layers[group.layer]
            found[group.name] = group
            found[layer.name_of("weight")] = group._replace(name=layer.name_of("weight"), bias=False)
            if group.bias:
                found[layer.name_of("bias")] = group._replace(name=layer.name_of("bias"), cols=0)
        return found

    @cached_property
    def numel(self) -> int:
        """Number of parameters."""
        return sum(group.numel for group in self.whole)
