"""The map whose Hessian is asked for, without data: its layers, and their parameters in torch's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, wraps
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import _checks
from ._activations import Activation
from ._ops import Kind

Affine = tuple[Tensor, Tensor | None]  # weight (rows, cols), bias (rows,)


class Layer(NamedTuple):
    """Rows of one affine map as blocks of parameters: its weights, its bias, or both (weights first)."""

    name: str
    kind: Literal["hidden", "output"]
    blocks: int  # rows of the map: m hidden units, C classes
    cols: int  # weights in a block, 0 for a bias alone
    ones: bool  # whether the bias is the last parameter of a block
    start: int  # number of the first weight in torch's parameter order
    start_bias: int  # number of the first bias

    @property
    def size(self) -> int:
        """Parameters in a block."""
        return self.cols + self.ones


def version(t: Tensor | None) -> int:
    """torch's count of changes in place; inference tensors have none."""
    return 0 if t is None or t.is_inference() else t._version


def own_precision(method: Callable) -> Callable:
    """Let a method of something on a `device` run outside of autocast, which computes in half precision."""

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        kind = self.device.type
        if not torch.is_autocast_enabled(kind):
            return method(self, *args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return method(self, *args, **kwargs)

    return run


class Watch:
    """What is not copied must not change: the tensors' versions when this was made."""

    def __init__(self, **tensors: Tensor | None) -> None:
        self._tensors, self._versions = tensors, [version(t) for t in tensors.values()]

    def check(self) -> None:
        """Raise RuntimeError if one was changed in place since."""
        for (name, t), before in zip(self._tensors.items(), self._versions, strict=True):
            if version(t) != before:
                raise RuntimeError(
                    f"{name} was changed in place after the Hessian was made; pass a copy, {name}.clone()"
                )


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Change a tensor, or the tensors in a layer, a network or a loss; return anything else as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(change, v) for v in value)
    if is_dataclass(value) and not isinstance(value, Activation):
        return replace(value, **{f.name: map_tensors(change, getattr(value, f.name)) for f in fields(value)})
    return value


def compact(t: Tensor) -> Tensor:
    """A tensor that does not keep a larger one: a pickle has all of its memory."""
    return t.clone() if t.untyped_storage().nbytes() > t.numel() * t.element_size() else t


def moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Its tensors on a device, floats in dtype. Raises ValueError where one is beyond the range of dtype."""

    def move(t: Tensor) -> Tensor:
        result = t.to(device, dtype if t.is_floating_point() else t.dtype)
        if t.is_floating_point():
            _checks.finite(f"dtype: {dtype} does not hold all values", result)
        return result

    return map_tensors(move, value)


@dataclass(eq=False)
class Network:
    """f = V act(W x + b) + c, or f = V x + c without a hidden layer; parameters are checked, and copied if small."""

    output: Affine
    hidden: Affine | None = None
    activation: Activation | None = None
    names: Mapping[str, str] | None = None  # "hidden", "output", in torch's order -> the module's name in the model

    def __post_init__(self) -> None:
        self._watch = Watch(**{f"{kind}_weight": weight for kind, (weight, _) in self.affine.items()})

    def check_unchanged(self) -> None:
        """Raise RuntimeError if a weight was changed in place after this was made."""
        self._watch.check()

    def __reduce__(self) -> tuple:
        """Pickle the parameters alone."""
        self.check_unchanged()
        return Network, tuple(map_tensors(compact, getattr(self, f.name)) for f in fields(self))

    @property
    def like(self) -> Tensor:
        """A tensor of the parameters' dtype and device."""
        return self.output[0]

    @cached_property
    def affine(self) -> dict[str, Affine]:
        """The layers in torch's order, which is the one in which a model registers them."""
        layers = {"output": self.output} if self.hidden is None else {"hidden": self.hidden, "output": self.output}
        return {kind: layers[kind] for kind in self.names or layers}

    def name_of(self, kind: str, part: str = "") -> str:
        """Name of a layer, "hidden" or "output", or of its "weight" or "bias"."""
        module = kind if self.names is None else self.names[kind]
        return ".".join(filter(None, (module, part)))

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """Name -> tensor in torch's parameter order."""
        parts = {}
        for kind, (weight, bias) in self.affine.items():
            parts[self.name_of(kind, "weight")] = weight
            if bias is not None:
                parts[self.name_of(kind, "bias")] = bias
        return parts

    @cached_property
    def whole(self) -> list[Layer]:
        """The layers, weights and bias together, in torch's order."""
        found, start = [], 0
        for kind, (weight, bias) in self.affine.items():
            rows, cols = weight.shape
            found.append(Layer(self.name_of(kind), kind, rows, cols, bias is not None, start, start + rows * cols))
            start += rows * found[-1].size
        return found

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Every name that can be asked for: layers, and their weights and biases alone."""
        found = {}
        for layer in self.whole:
            found[layer.name] = layer
            name = self.name_of(layer.kind, "weight")
            found[name] = layer._replace(name=name, ones=False)
            if layer.ones:
                name = self.name_of(layer.kind, "bias")
                found[name] = layer._replace(name=name, cols=0)
        return found

    @property
    def numel(self) -> int:
        """Number of parameters."""
        last = self.whole[-1]
        return last.start + last.blocks * last.size

    @property
    def classes(self) -> int:
        """C, the number of logits."""
        return self.output[0].shape[0]

    @property
    def inputs(self) -> int:
        """d, the number of features of a sample."""
        return (self.hidden or self.output)[0].shape[1]

    def part(self, row: Layer, col: Layer) -> Kind:
        """Which part of H two layers meet in."""
        if row.kind != col.kind:
            return Kind.CROSS
        return Kind.HIDDEN if row.kind == "hidden" else Kind.OUTPUT
