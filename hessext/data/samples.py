"""Samples in memory, and the passes through the network that every part of the Hessian needs, each done once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hessext import _checks, _hints, _ops
from hessext._memory import require
from hessext._products import linear, multiply
from hessext._tensors import Cache, Watch, compact, map_tensors, moved, once, own_precision
from hessext.model import targets
from hessext.model.activations import Derivatives
from hessext.model.losses import Loss, OutputDerivatives
from hessext.model.network import Network

from . import curvature
from .data import Data

_WIDE = 32 << 20  # bytes of a layer's outputs in float64
LEAST, MOST = 2.0**-50, 2.0**50  # features in float32 whose products with one another and curvature are in its range


@dataclass(eq=False)
class Samples(Data):
    """Checked inputs and targets, with what the forward and the backward pass give for them.

    Layer l maps a_{l-1} to z_l = W_l a_{l-1} + b_l and a_l = act_l(z_l); a_0 is x, the last z are the logits f. Layers
    are numbered from 0.
    """

    x: Tensor  # (N, d)
    y: Tensor | None

    def __post_init__(self) -> None:
        self._watch = Watch(x=self.x, y=self.y)
        self.cache = Cache(self.x)
        self._largest: dict[int, float] = {}

    @classmethod
    def of(cls, network: Network, loss: Loss, x: Tensor, y: Tensor | None) -> Samples:
        """Check data and loss, and make every position of a sequence a sample. Raises as `hessext.linear`."""
        hint = _hints.of_inputs(x, y, network.layers[0].weight)
        x, largest = _checks.samples("x", x, network.inputs, network.like, hint)
        hint = _hints.of_targets(y, x, len(network.layers), network.classes)
        y = targets.checked_targets(y, x.shape[:-1], network.classes, loss, x, hint)
        if y is None and network.last:
            raise ValueError("y: the Hessian of a network depends on the targets; expected those of the loss; got None")
        if x.ndim > 2:
            last = x.ndim - 2
            if loss.kind == "binary_cross_entropy":
                loss = loss.flattened((*x.shape[:-1], network.classes) if y is None else y.shape, last)
            x, y = x.flatten(0, last), None if y is None else y.flatten(0, last)
        if x.stride(1) != 1 and x.shape[1] > 1:  # the core steps over rows, not over columns
            x = x.contiguous()
        found = cls(network, loss, x, None if y is None else y.contiguous())
        found._largest[0] = largest
        return found

    def __len__(self) -> int:
        return self.x.shape[0]

    def divided(self, loss: Loss, total: float) -> Samples:
        """The same samples, of a mean as of this loss, but divided by `total`."""
        return replace(self, loss=replace(self.loss, reduction=loss.reduction, total=total))

    def whole(self) -> Samples:
        """The same samples with all classes, which are here."""
        return self

    @property
    def probabilities(self) -> Tensor:
        """p_n (N, C) of all classes."""
        return self.output.probs

    def check_unchanged(self) -> None:
        """Raise RuntimeError if what is not copied (x, y, large weights) was changed in place after this was made."""
        self._watch.check()
        self.network.check_unchanged()

    def __reduce__(self) -> tuple:
        """Pickle the arguments alone: what is computed from them can be computed again."""
        self.check_unchanged()
        return Samples, (self.network, *(map_tensors(compact, t) for t in (self.loss, self.x, self.y)))

    @own_precision
    def sum(self, compute: Callable[[Samples, Tensor | None], Tensor], out: Tensor | None = None) -> Tensor:
        """Return compute(self, out): one piece is all of the data, in float64 where float32 is too narrow."""
        if self.in_range is self:
            return compute(self, out)
        result = compute(self.in_range, None).to(self.x.dtype)
        return result if out is None else out.copy_(result)

    def in_memory(self) -> Samples:
        """Return itself."""
        return self

    @property
    def numel(self) -> int:
        """Parameters, inputs and targets."""
        return self.network.numel + self.x.numel() + (0 if self.y is None else self.y.numel())

    def to(self, device: torch.device, dtype: torch.dtype) -> Samples:
        """Return the same samples and parameters elsewhere."""
        self.check_unchanged()
        return Samples(*(moved(t, device, dtype) for t in (self.network, self.loss, self.x, self.y)))

    # ----------------------------------------------------------------------------------------------- forward pass

    def features(self, layer: int) -> Tensor:
        """Inputs a_{l-1} of a layer (N, cols)."""
        return self._activated[layer - 1][0] if layer else self.x

    def largest(self, layer: int) -> float:
        """As above."""
        if layer not in self._largest:
            self._largest[layer] = super().largest(layer)
        return self._largest[layer]

    @property
    def in_range(self) -> Samples:
        """The same samples, in float64 where features are beyond what float32 can hold products of."""
        widened = self._widened  # not self, which its own cache would keep alive
        return self if widened is None else widened

    @property
    @once
    def _widened(self) -> Samples | None:
        """In float64, where float32 is too narrow."""
        if self.x.dtype == torch.float32:
            sizes = [self.largest(layer) for layer in range(len(self.network.layers))]
            if max(sizes) > MOST or min(size or 1.0 for size in sizes) < LEAST:
                return self.to(self.device, torch.float64)
        return None

    def slope(self, layer: int) -> Tensor:
        """act'(z) (N, K) of a layer's outputs."""
        return self._activated[layer][1]

    def through(self, layer: int, t: Tensor, some: slice | Tensor = slice(None)) -> Tensor:
        """act'(z_l) t of rows t (R, K), each of its own sample; 0 where a unit is off, whatever t is."""
        slope = self.slope(layer)
        slope = slope.index_select(0, some) if isinstance(some, Tensor) else slope[some]
        return self.network.layers[layer].activation.through(slope, t)

    @once
    def active(self, layer: int) -> float:
        """Share of units with act'(z) != 0, from some samples: the core leaves the others out.

        On a GPU, where a look at them would be a wait, z is taken to be as often negative as positive.
        """
        if self.x.is_cuda:
            some = self.network.layers[layer].activation.evaluate(torch.tensor([-1.0, 1.0]))[1]
        else:
            slope = self.slope(layer)
            some = slope[:: -(-len(slope) // 64)]
        return some.count_nonzero().item() / some.numel()

    @property
    @once
    def _activated(self) -> list[Derivatives]:
        """(a, act', act'') (N, K) of each layer with an activation.

        Of several layers they come from float64, some samples at a time: else the roundings of one layer, and what a
        narrow layer makes of them, would grow in all that follow.
        """
        layers = self.network.layers[:-1]
        if len(layers) < 2:
            return [layer.activation.evaluate(linear(self.x, *layer.affine)) for layer in layers]
        affine = [[None if t is None else t.double() for t in layer.affine] for layer in layers]
        widest = max(max(layer.weight.shape) for layer in layers)
        pieces: list[list[Derivatives]] = [[] for _ in layers]
        for a in self.x.split(max(1, _WIDE // (8 * widest))):
            for layer, parameters, found in zip(layers, affine, pieces, strict=True):
                derivatives = layer.activation.evaluate(linear(a.double(), *parameters))
                found.append(tuple(None if t is None else t.to(self.x.dtype) for t in derivatives))
                a = derivatives[0]
        return [
            tuple(None if some[0] is None else torch.cat(some) for some in zip(*found, strict=True)) for found in pieces
        ]

    @property
    def like_logits(self) -> Tensor:
        """A tensor of the logits' shape and dtype, without memory of its own."""
        return self.x.new_empty(()).expand(len(self), self.network.classes)

    @property
    @once
    def output(self) -> OutputDerivatives:
        """Derivatives of the loss with respect to the logits."""
        last = self.network.last
        features, layer, like = self.features(last), self.network.layers[last], self.like_logits

        def logits() -> Tensor:  # must not keep self alive
            require(2 * like.numel() * like.element_size(), "logits and their derivatives", like.device)
            return layer.outputs(features)

        output = self.loss.output(logits, self.y, like)
        # On a GPU this look at N numbers, each between 0 and 1 or nan, would be a wait.
        if output.rest is not None and output.rest.is_cpu and not math.isfinite(output.rest.sum().item()):
            raise ValueError(f"x: expected logits that {like.dtype} can hold; got some that overflow")
        return output

    @property
    @once
    def scale(self) -> Tensor:
        """c_n (N,) of the softmax: the curvature of l_n is c_n (diag p_n - p_n p_n^T)."""
        return self.loss.scale(self.y, self.like_logits)

    @property
    def counted(self) -> Tensor:
        """Which samples (N,) the loss counts: those that are not ignored and have a weight."""
        return self.scale != 0 if self.loss.softmax else (self.output.columns != 0).any(1)

    @property
    @once
    def shift(self) -> Tensor | None:
        """sum_c p_c (V_c - V_top) (N, m) of the softmax, V the output weight; None without one."""
        o = self.output
        return None if o.probs is None else _ops.softmax_shift(o.probs, o.top, self.network.layers[-1].weight)

    # ---------------------------------------------------------------------------------------------- backward pass

    @property
    @once
    def residual(self) -> Tensor:
        """r_n = d loss / d f_n (N, C)."""
        return self.output.residual()

    @once
    def gradient(self, layer: int) -> Tensor:
        """g_l = d loss / d z_l (N, K)."""
        return self.residual if layer == self.network.last else self.through(layer, self._pulled_back(layer))

    @once
    def bend(self, layer: int) -> Tensor | None:
        """act''(z_l) W_{l+1}^T g_{l+1} (N, K), what the activation's own curvature adds; None where act'' vanishes."""
        second = self._activated[layer][2]
        return None if second is None else second * self._pulled_back(layer)

    def bends(self, layer: int) -> bool:
        """Whether the activation of this layer or of a later one adds to S_l beside the Gauss-Newton term."""
        return any(self.bend(k) is not None for k in range(layer, self.network.last))

    def _pulled_back(self, layer: int) -> Tensor:
        """W_{l+1}^T g_{l+1} = d loss / d a_l (N, K)."""
        return multiply(self.gradient(layer + 1), self.network.layers[layer + 1].weight)

    # -------------------------------------------------------------------------------------------------- curvature

    @once
    def factor(self, layer: int) -> Tensor:
        """F_l (N, C, K) with S_l = c_n F_l^T F_l, the Gauss-Newton term."""
        return curvature.factor(self, layer)

    def curvature_entries(self, row: int, col: int, pairs: Tensor, term: str) -> Tensor:
        """Q_n[i, j] (P, N) of pairs (P, 2) between two layers, the earlier one first, where it has no closed form."""
        return curvature.Entries(self, row, col, term)(pairs)
