"""Parameters as they come: checked, copied where they are small, lifted where they are in half precision."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks, _hints
from ._memory import require
from ._tensors import lifted, lifted_like
from .data.classes import refuse_split
from .model.activations import Activation
from .model.network import Layer

_COPIED = 64 << 20  # bytes of the largest weight that is copied


class Given(NamedTuple):
    """A layer's name, and its parameters as they came, with the names that messages call them by."""

    name: str
    weight_name: str
    weight: Tensor
    bias_name: str
    bias: Tensor | None
    activation: Activation | None = None
    bias_first: bool = False


def chain(given: list[Given]) -> tuple[Layer, ...]:
    """Check the parameters of layers that follow one another, and copy them if small."""
    layers: list[Layer] = []
    for layer in given:
        for parameter_name, t in ((layer.weight_name, layer.weight), (layer.bias_name, layer.bias)):
            refuse_split(parameter_name, t)
        before = lifted_like(layers[-1].weight) if layers else None
        cols = None if before is None else before.shape[0]
        hint = _hints.of_weight(layer.weight, before)
        weight = _checks.matrix(layer.weight_name, layer.weight, cols=cols, like=before, half=True, hint=hint)
        bias = layer.bias
        if bias is not None:
            bias = _checks.vector(layer.bias_name, bias, size=len(weight), like=lifted_like(weight), half=True)
        layers.append(_snapshot(layer, weight, bias, keep_half=len(given) == 1))
    return tuple(layers)


def _snapshot(given: Given, weight: Tensor, bias: Tensor | None, *, keep_half: bool) -> Layer:
    """Return a layer with its own parameters: the Hessian is that of the moment it was asked for.

    A language model's head is gigabytes: it is not copied, and a change in place is noticed. In half precision it is
    kept as it is (`keep_half`) and lifted where it is used; other weights are lifted now.
    """
    dtype = lifted(weight.dtype)
    size = weight.numel() * weight.element_size()
    bias = None if bias is None else bias.to(dtype, copy=True)
    if dtype != weight.dtype and (size <= _COPIED or not keep_half):
        require(weight.numel() * dtype.itemsize, f"the weight in {dtype}", weight.device)
        weight = weight.to(dtype, memory_format=torch.contiguous_format)
    elif size <= _COPIED:
        weight = weight.clone(memory_format=torch.contiguous_format)
    elif not weight.is_contiguous():
        require(size, "a contiguous copy of the weight", weight.device)
        weight = weight.contiguous()
    return Layer(given.name, weight, bias, given.activation, given.bias_first)
