"""A network, its data and its loss: the forward pass, done once, and what each part of the Hessian is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks, _ops
from ._activations import Derivatives
from ._losses import Loss, OutputCurvature
from ._network import Layer, Network, Watch, compact, map_tensors, moved, own_precision
from ._ops import Curvature, Kind

Term = Literal["full", "gauss_newton", "residual"]


@dataclass(eq=False)
class Data(ABC):
    """What a Hessian is a sum over: samples in memory, or batches that are read when they are needed."""

    network: Network
    loss: Loss

    results = 1  # tensors of a result's size that `sum` needs

    @property
    def device(self) -> torch.device:
        """Of the parameters and of what is computed."""
        return self.network.like.device

    @abstractmethod
    def sum(self, compute: Callable[[Problem, Tensor | None], Tensor], out: Tensor | None = None) -> Tensor:
        """Return the sum of what compute(problem, out) gives for each part of the data, in `out` if given."""

    @abstractmethod
    def in_memory(self) -> Problem:
        """All of the data as one problem. Raises MemoryError where it does not fit."""

    @property
    @abstractmethod
    def numel(self) -> int:
        """Numbers that `to` copies."""

    @abstractmethod
    def to(self, device: torch.device, dtype: torch.dtype) -> Data:
        """Return the same elsewhere. Raises ValueError where a value is beyond the range of dtype."""

    def replicated(self, row: Layer, col: Layer) -> bool:
        """Without softmax all output blocks (i, i) are one and the same, the core writes them alone; others vanish."""
        return self.network.part(row, col) == Kind.OUTPUT and self.loss.kind != "cross_entropy"


@dataclass(eq=False)
class Problem(Data):
    """Checked arguments of a Hessian and, as they are asked for, the tensors it is assembled from."""

    x: Tensor  # (N, d)
    y: Tensor | None

    def __post_init__(self) -> None:
        self._watch = Watch(x=self.x, y=self.y)

    def check_unchanged(self) -> None:
        """Raise RuntimeError if what is not copied (x, y, large weights) was changed in place after this was made."""
        self._watch.check()
        self.network.check_unchanged()

    def __reduce__(self) -> tuple:
        """Pickle the arguments alone: what is computed from them can be computed again."""
        self.check_unchanged()
        return Problem, (self.network, *(map_tensors(compact, t) for t in (self.loss, self.x, self.y)))

    @own_precision
    def sum(self, compute: Callable[[Problem, Tensor | None], Tensor], out: Tensor | None = None) -> Tensor:
        """One part, all of the data."""
        return compute(self, out)

    def in_memory(self) -> Problem:
        """Itself."""
        return self

    @property
    def numel(self) -> int:
        """Parameters, inputs and targets."""
        return self.network.numel + self.x.numel() + (0 if self.y is None else self.y.numel())

    def to(self, device: torch.device, dtype: torch.dtype) -> Problem:
        """Return the same problem elsewhere."""
        self.check_unchanged()
        return Problem(*(moved(t, device, dtype) for t in (self.network, self.loss, self.x, self.y)))

    # ----------------------------------------------------------------------------------------------- forward pass

    @cached_property
    def _hidden(self) -> Derivatives:
        return self.network.activation.evaluate(F.linear(self.x, *self.network.hidden))

    @property
    def features(self) -> Tensor:
        """Input of the output layer (N, m), or (N, d) for a linear model."""
        return self.x if self.network.hidden is None else self._hidden[0]

    @cached_property
    def curvature(self) -> OutputCurvature:
        """Derivatives of the loss with respect to the logits."""
        features, output, like = self.features, self.network.output, self.like_logits  # `logits` must not keep self

        def logits() -> Tensor:
            _checks.memory(2 * like.numel() * like.element_size(), "logits and their derivatives", like.device)
            return F.linear(features, *output)

        curvature = self.loss.output(logits, self.y, like)
        # a look at N numbers, which would make a GPU wait
        if curvature.rest is not None and curvature.rest.is_cpu and not curvature.rest.isfinite().all():
            raise ValueError(f"x: expected logits that {like.dtype} can hold; got some that overflow")
        return curvature

    @property
    def like_logits(self) -> Tensor:
        """Of the logits' shape and dtype; it has no memory of its own."""
        return self.x.new_empty(()).expand(len(self.x), self.network.classes)

    @cached_property
    def scale(self) -> Tensor:
        """c_n (N,) of the softmax: the curvature of l_n is c_n (diag p_n - p_n p_n^T)."""
        return self.loss.scale(self.y, self.like_logits)

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
        return None if second is None else second * (self.residual @ self.network.output[0])

    @cached_property
    def shift(self) -> Tensor | None:
        """sum_c p_c (V_c - V_top) (N, m) of the softmax, None without one."""
        c = self.curvature
        return None if c.probs is None else _ops.softmax_shift(c.probs, c.top, self.network.output[0])

    # ------------------------------------------------------------------------------------------ parts of H

    def features_of(self, layer: Layer) -> Tensor:
        """The layer's features without the bias (N, cols)."""
        features = self.x if layer.kind == "hidden" else self.features
        return features if layer.cols else features[:, :0]

    def curvature_of(self, part: Kind, term: Term) -> Curvature:
        """What Q_n of this part is made of."""
        self.check_unchanged()
        c, gauss_newton, residual = self.curvature, term != "residual", term != "gauss_newton"
        if part == Kind.OUTPUT:
            classes = self.network.classes
            return Curvature(int(part), classes, classes, True, classes, gauss_newton, c.scale, c.probs, c.top, c.rest)
        weight = self.network.output[0]
        gram = weight.T @ weight if c.probs is None and part == Kind.HIDDEN else None
        classes, units = weight.shape
        return Curvature(
            int(part),
            units,
            units if part == Kind.HIDDEN else classes,
            part == Kind.HIDDEN,
            classes,
            gauss_newton,
            c.scale,
            c.probs,
            c.top,
            c.rest,
            weight,
            gram,
            self.shift,
            self.slope,
            self.bend if residual and part == Kind.HIDDEN else None,
            self.residual if residual and part == Kind.CROSS else None,
        )

    def arguments(self, row: Layer, col: Layer, term: Term) -> tuple:
        """The operators' arguments for the part of H in which two layers meet; hidden rows come first."""
        part = self.network.part(row, col)
        features = self.features_of(row), row.ones, self.features_of(col), col.ones
        return *features, row == col, *self.curvature_of(part, term)


def checked(network: Network, loss: Loss, x: Tensor, y: Tensor | None) -> Problem:
    """Check data and loss, and make every position of a sequence a sample. Raises as `hessext.linear`."""
    x = _checks.samples("x", x, network.inputs, network.like)
    y = _checks.targets(y, x.shape[:-1], network.classes, loss, x)
    if y is None and network.hidden is not None:
        raise ValueError("y: the Hessian of a network depends on the targets; expected those of the loss; got None")
    if x.ndim > 2:
        last = x.ndim - 2
        if loss.kind == "binary_cross_entropy":
            loss = loss.flattened((*x.shape[:-1], 1) if y is None else y.shape, last)
        x, y = x.flatten(0, last), None if y is None else y.flatten(0, last)
    if x.stride(1) != 1 and x.shape[1] > 1:  # the core steps over rows, not over columns
        x = x.contiguous()
    return Problem(network, loss, x, None if y is None else y.contiguous())
