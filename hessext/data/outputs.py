"""Curvature and gradient of a loss where the part of a model that is differentiated ends.

That is at the logits f, or at the inputs a of a linear layer f = V a + b that gives them, the head. There the loss is
the quadratic v^T a + (a - a_0)^T M (a - a_0) / 2 up to higher orders, with v = V^T r and M = V^T B V, the weights of
(14): many classes are never differentiated. All is of the sum over samples; what a mean divides by is known in the end.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hessext import _ops
from hessext._memory import require
from hessext._ops import Curvature, Kind
from hessext._random import generator
from hessext.model.losses import Loss, OutputDerivatives
from hessext.model.network import Layer

from .symmetric import SymmetricMatrices

_WORK = 64 << 20  # bytes of logits formed at once
_BLOCKS = 256 << 20  # bytes of curvature formed at once


class Outputs:
    """The loss as a function of logits, or of the inputs of the head, of samples that are given with each call."""

    def __init__(self, loss: Loss, head: Layer | None) -> None:
        self.loss, self.head = replace(loss, reduction="sum"), head

    def gradient(self, a: Tensor, y: Tensor) -> Tensor:
        """r or V^T r (N, D) at outputs a (N, D)."""
        pieces = []
        for rows in self._pieces(a):
            residual = self._derivatives(a[rows], y[rows]).residual()
            pieces.append(residual if self.head is None else self.head.pulled(residual))
        return torch.cat(pieces)

    def product(self, a: Tensor, y: Tensor, v: Tensor, M: SymmetricMatrices | None = None) -> Tensor:
        """B_n v or V^T B_n V v of vectors v (R, N, D); M is `quadratic`, if it is there."""
        if M is not None:
            return M.product(v)
        result = torch.empty_like(v)
        for rows in self._pieces(a):
            output = self._derivatives(a[rows], y[rows])
            for into, vector in zip(result[:, rows], v[:, rows], strict=True):
                into.copy_(self._through_logits(output, vector))
        return result

    def spread(self, a: Tensor, y: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """What couples places wherever B_n may, of vectors v (N, D).

        With a softmax it is c_n w w^T in place of B_n, whose entries may be too small to be seen.
        """
        if not self.loss.softmax:
            return self.product(a, y, v[None])[0]
        like = a[:, :1].expand(-1, len(w))
        along = w if self.head is None else self.head.pulled(w[None])[0]
        return torch.outer(self.loss.scale(y, like) * (v @ along), along)

    def random_classes(self, a: Tensor) -> Tensor:
        """The vector w (C,) of `spread`."""
        C = a.shape[1] if self.head is None else len(self.head.weight)
        w = torch.randn(C, generator=generator("mixing", 0), dtype=torch.float64) / C**0.5
        return w.to(a)

    def worth_quadratic(self, rows: int) -> bool:
        """Whether M costs less than that many products through the head."""
        if self.head is None or not self.loss.softmax:
            return False
        C, d = self.head.weight.shape
        return C * d * d / 2 + rows * d * d < 2 * rows * C * d

    def quadratic(self, a: Tensor, y: Tensor) -> SymmetricMatrices:
        """M_n (N, d, d), an assembly over the classes whose features are the rows of V.

        With t the most probable class, u = sum_{c != t} p_c (V_c - V_t) and 1 - p_t the sum of the others,
            M = sum_{c != t} p_c V_c V_c^T - u V_t^T - V_t u^T - (1 - p_t) V_t V_t^T - u u^T
        for V up to a common shift; every summand is small where one class dominates.
        """
        V = self.head.weight.to(a.dtype, copy=True)
        V -= V.mean(0)  # in place: the head may be the largest of all tensors
        (_, d), N = V.shape, len(a)
        size = SymmetricMatrices.numbers(N, d) * a.element_size()
        require(size, f"the curvature at the head's inputs of {N} samples", a.device)
        M = SymmetricMatrices.empty(N, d, a)
        for rows in self._pieces(a, most=_BLOCKS // (d * d * a.element_size())):
            o = self._derivatives(a[rows], y[rows])
            top = V[o.top]
            u = _ops.softmax_shift(o.probs, o.top, V)
            q = o.probs.scatter_(1, o.top[:, None], 0).mul_(o.scale[:, None])
            number = torch.arange(len(q), device=a.device)
            given = Curvature(Kind.GIVEN, len(q), len(q), True, entries=q)
            pairs = torch.stack([number, number], 1)
            blocks = _ops.blocks(pairs, False, V, False, V, False, True, *given)
            left = torch.stack([-u - top, -u - o.rest[:, None] * top], 2)
            M[rows].set(blocks.baddbmm_(o.scale[:, None, None] * left, torch.stack([u, top], 1)))
        return M

    def _pieces(self, a: Tensor, most: int = 1 << 62) -> list[slice]:
        """Samples whose logits fit into the memory of this module, `most` at a time."""
        C = a.shape[1] if self.head is None else len(self.head.weight)
        step = max(1, min(most, _WORK // (C * a.element_size())))
        return [slice(n, min(n + step, len(a))) for n in range(0, len(a), step)]

    def _derivatives(self, a: Tensor, y: Tensor) -> OutputDerivatives:
        like = a if self.head is None else a.new_empty(()).expand(len(a), len(self.head.weight))
        return self.loss.output(lambda: a.clone() if self.head is None else self.head.outputs(a), y, like)

    def _through_logits(self, output: OutputDerivatives, v: Tensor) -> Tensor:
        if self.head is None:
            return output.product_(v.clone())
        return self.head.pulled(output.product_(replace(self.head, bias=None).outputs(v)))
