"""Curvature and gradient of a loss where the part of a model that is differentiated ends: THEORY (h).

That is at the logits f, or at the inputs a of a linear layer f = V a + b that gives them, the head. There the loss is
the quadratic v^T a + (a - a_0)^T M (a - a_0) / 2 up to higher orders, with v = V^T r and M = V^T B V, the weights of
(14): many classes are never differentiated. All is of the sum over samples; what a mean divides by is known in the end.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hessext import _ops
from hessext._memory import require
from hessext._ops import Curvature, Kind
from hessext._random import generator
from hessext.model.losses import Loss, OutputDerivatives
from hessext.model.network import Affine

_WORK = 64 << 20  # bytes of logits or of curvature formed at once


class Outputs:
    """The loss as a function of logits, or of the inputs of the head, of samples that are given with each call."""

    def __init__(self, loss: Loss, head: Affine | None) -> None:
        self.loss, self.head = replace(loss, reduction="sum"), head

    def gradient(self, a: Tensor, y: Tensor) -> Tensor:
        """r or V^T r (N, D) at outputs a (N, D)."""
        pieces = []
        for rows in self._pieces(a, 1):
            residual = self._derivatives(a[rows], y[rows]).residual()
            pieces.append(residual if self.head is None else residual @ self.head[0])
        return torch.cat(pieces)

    def product(self, a: Tensor, y: Tensor, v: Tensor, M: Tensor | None = None) -> Tensor:
        """B_n v or V^T B_n V v of vectors v (R, N, D); M is `quadratic`, if it is there."""
        if M is not None:
            return torch.bmm(M, v.permute(1, 2, 0)).permute(2, 0, 1)
        result = torch.empty_like(v)
        for rows in self._pieces(a, 1):
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
        along = w if self.head is None else w @ self.head[0]
        return torch.outer(self.loss.scale(y, like) * (v @ along), along)

    def random_classes(self, a: Tensor) -> Tensor:
        """The vector w (C,) of `spread`."""
        C = a.shape[1] if self.head is None else len(self.head[0])
        w = torch.randn(C, generator=generator("mixing", 0), dtype=torch.float64) / C**0.5
        return w.to(a)

    def worth_quadratic(self, rows: int) -> bool:
        """Whether M costs less than that many products through the head."""
        if self.head is None or not self.loss.softmax:
            return False
        C, d = self.head[0].shape
        return C * d * d / 2 + rows * d * d < 2 * rows * C * d

    def quadratic(self, a: Tensor, y: Tensor) -> Tensor:
        """M_n (N, d, d), formed over the classes for d (d + 1) / 2 entries each."""
        V, _ = self.head
        (C, d), N = V.shape, len(a)
        require(N * d * d * a.element_size(), f"the curvature at the head's inputs of {N} samples", a.device)
        M = a.new_empty(N, d, d)
        pairs = torch.triu_indices(d, d, device=a.device).T.contiguous()
        i, j = pairs.unbind(1)
        for rows in self._pieces(a, d * d / C):
            o = self._derivatives(a[rows], y[rows])
            some = a[rows]
            shift = _ops.softmax_shift(o.probs, o.top, V)
            closed = Curvature(Kind.HIDDEN, d, d, True, C, True, o.scale, o.probs, o.top, o.rest, V)
            entries = _ops.curvature_entries(pairs, *closed._replace(shift=shift, slope=torch.ones_like(some)))
            M[rows, i, j] = entries.T
            M[rows, j, i] = entries.T
        return M

    def _pieces(self, a: Tensor, times: float) -> list[slice]:
        """Samples whose logits, or so many times as much, fit into the memory of this module."""
        C = a.shape[1] if self.head is None else len(self.head[0])
        step = max(1, int(_WORK / (C * max(1, times) * a.element_size())))
        return [slice(n, min(n + step, len(a))) for n in range(0, len(a), step)]

    def _derivatives(self, a: Tensor, y: Tensor) -> OutputDerivatives:
        like = a if self.head is None else a.new_empty(()).expand(len(a), len(self.head[0]))
        return self.loss.output(lambda: a.clone() if self.head is None else F.linear(a, *self.head), y, like)

    def _through_logits(self, output: OutputDerivatives, v: Tensor) -> Tensor:
        f = v.contiguous() if self.head is None else v @ self.head[0].T
        if output.probs is None:
            f = output.scale[:, None] * f
        else:
            f = f.clone() if f.data_ptr() == v.data_ptr() else f
            _ops.softmax_product_(f, output.probs, output.scale, output.top)
        return f if self.head is None else f @ self.head[0]
