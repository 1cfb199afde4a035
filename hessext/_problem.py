"""A model, its data and its loss: the forward pass, done once, and what each part of the Hessian is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import _checks, _ops
from ._activations import Activation, Derivatives
from ._losses import Loss, OutputCurvature
from ._ops import Curvature, Part

Term = Literal["full", "gauss_newton", "residual"]
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


def _map(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Change a tensor, or the tensors in a layer or a loss; return anything else as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_map(change, v) for v in value)
    if isinstance(value, Loss):
        return replace(value, **{f.name: _map(change, getattr(value, f.name)) for f in fields(value)})
    return value


def _compact(t: Tensor) -> Tensor:
    """A tensor that does not keep a larger one: a pickle has all of its memory."""
    return t.clone() if t.untyped_storage().nbytes() > t.numel() * t.element_size() else t


@dataclass(eq=False)
class Problem:
    """Checked arguments of a Hessian and, as they are asked for, the tensors it is assembled from."""

    x: Tensor  # (N, d)
    y: Tensor | None
    loss: Loss
    output: Affine
    hidden: Affine | None = None
    activation: Activation | None = None
    names: Mapping[str, str] | None = None  # "hidden", "output", in torch's order -> the module's name in the model

    def __post_init__(self) -> None:
        self._watched = {"x": self.x, "y": self.y, **{f"{k}_weight": weight for k, (weight, _) in self.affine.items()}}
        self._versions = [version(t) for t in self._watched.values()]

    def check_unchanged(self) -> None:
        """Raise RuntimeError if what is not copied (x, y, large weights) was changed in place after this was made."""
        for (name, t), before in zip(self._watched.items(), self._versions, strict=True):
            if version(t) != before:
                raise RuntimeError(
                    f"{name} was changed in place after the Hessian was made; pass a copy, {name}.clone()"
                )

    def __reduce__(self) -> tuple:
        """Pickle the arguments alone: what is computed from them can be computed again."""
        self.check_unchanged()
        return Problem, tuple(_map(_compact, getattr(self, f.name)) for f in fields(self))

    def to(self, device: torch.device, dtype: torch.dtype) -> Problem:
        """Return the same problem elsewhere. Raises ValueError where a value is beyond the range of dtype."""
        self.check_unchanged()

        def move(t: Tensor) -> Tensor:
            moved = t.to(device, dtype if t.is_floating_point() else t.dtype)
            if t.is_floating_point():
                _checks.finite(f"dtype: {dtype} does not hold all values", moved)
            return moved

        return Problem(*(_map(move, getattr(self, f.name)) for f in fields(self)))

    # ------------------------------------------------------------------------------------------------- parameters

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

    # ----------------------------------------------------------------------------------------------- forward pass

    @cached_property
    def _hidden(self) -> Derivatives:
        return self.activation.evaluate(torch.nn.functional.linear(self.x, *self.hidden))

    @property
    def features(self) -> Tensor:
        """Input of the output layer (N, m), or (N, d) for a linear model."""
        return self.x if self.hidden is None else self._hidden[0]

    @cached_property
    def curvature(self) -> OutputCurvature:
        """Derivatives of the loss with respect to the logits."""
        size = len(self.x) * self.classes * self.x.element_size()
        _checks.memory(2 * size, "logits and probabilities", self.x.device)
        return self.loss.output(torch.nn.functional.linear(self.features, *self.output), self.y)

    @property
    def classes(self) -> int:
        """C, the number of logits."""
        return self.output[0].shape[0]

    @cached_property
    def scale(self) -> Tensor:
        """c_n (N,) of the softmax: the curvature of l_n is c_n (diag p_n - p_n p_n^T)."""
        return self.loss.scale(self.y, self.x.new_empty(()).expand(len(self.x), self.classes))

    @cached_property
    def residual(self) -> Tensor:
        """r_n = d loss / d f_n (N, C)."""
        return self.curvature.residual()

    @cached_property
    def slope(self) -> Tensor:
        """act'(z) (N, m)."""
        return self._hidden[1]

    @cached_property
    def active(self) -> float:
        """Share of hidden units with act'(z) != 0, from some samples: the core leaves the others out."""
        some = self.slope[:: -(-len(self.slope) // 64)]
        return some.count_nonzero().item() / some.numel()

    @cached_property
    def bend(self) -> Tensor | None:
        """act''(z) (V^T r) (N, m), None where act'' vanishes."""
        second = self._hidden[2]
        return None if second is None else second * (self.residual @ self.output[0])

    @cached_property
    def shift(self) -> Tensor | None:
        """sum_c p_c (V_c - V_top) (N, m) of the softmax, None without one."""
        c = self.curvature
        return None if c.probs is None else _ops.softmax_shift(c.probs, c.top, self.output[0])

    # ------------------------------------------------------------------------------------------ parts of H

    def part(self, row: Layer, col: Layer) -> Part:
        """Which part of H two layers meet in."""
        if row.kind != col.kind:
            return Part.CROSS
        return Part.HIDDEN if row.kind == "hidden" else Part.OUTPUT

    def replicated(self, row: Layer, col: Layer) -> bool:
        """Without softmax all output blocks (i, i) are one and the same, the core writes them alone; others vanish."""
        return self.part(row, col) == Part.OUTPUT and self.loss.kind != "cross_entropy"

    def features_of(self, layer: Layer) -> Tensor:
        """The layer's features without the bias (N, cols)."""
        features = self.x if layer.kind == "hidden" else self.features
        return features if layer.cols else features[:, :0]

    def curvature_of(self, part: Part, term: Term) -> Curvature:
        """What Q_n of this part is made of."""
        self.check_unchanged()
        c, gauss_newton, residual = self.curvature, term != "residual", term != "gauss_newton"
        if part == Part.OUTPUT:
            return Curvature(gauss_newton, c.scale, c.probs, c.top, c.rest)
        weight = self.output[0]
        gram = weight.T @ weight if c.probs is None and part == Part.HIDDEN else None
        return Curvature(
            gauss_newton,
            c.scale,
            c.probs,
            c.top,
            c.rest,
            weight,
            gram,
            self.shift,
            self.slope,
            self.bend if residual and part == Part.HIDDEN else None,
            self.residual if residual and part == Part.CROSS else None,
        )

    def arguments(self, row: Layer, col: Layer, term: Term) -> tuple:
        """The operators' arguments for the part of H in which two layers meet; hidden rows come first."""
        part = self.part(row, col)
        features = self.features_of(row), row.ones, self.features_of(col), col.ones
        return int(part), *features, row == col, self.classes, *self.curvature_of(part, term)
