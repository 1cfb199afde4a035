"""The loss of given logits as autograd differentiates it.

Cross entropy is differentiated as  sum_n c_n log1p(sum_{j != top} e^{f_nj - f_n,top}) + sum_j t_nj (f_n,top - f_nj),
t_n being torch's weighted, smoothed target and c_n = sum_j t_nj. That is torch's function, but the derivatives of
log_softmax itself lose p (1 - p) where one class dominates, even in float64. Binary cross entropy is the sum over all
logits f_nc of that of the two logits 0 and f_nc with t = k w (1 - y, v y), k, w and v being torch's 1 / (N C) or 1,
weight and pos_weight.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hessext.model.losses import Loss


def scalar_loss(loss: Loss, logits: Tensor, y: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The scalar loss of (N, C) logits; logits give the classes that cross entropy is anchored at."""
    N, C = logits.shape
    if loss.kind == "binary_cross_entropy":
        y = torch.zeros_like(logits) if y is None else y.detach().to(logits.dtype)
        w, v = (torch.ones_like(y) if t is None else t.to(logits) for t in (loss.weight, loss.pos_weight))
        t = torch.stack([(1 - y) * w, v * y * w], -1).view(N * C, 2) / loss.divisor(y, logits)
        two = _softmax_loss(t, F.pad(logits.reshape(-1, 1), (1, 0)))
        return lambda f: two(F.pad(f.reshape(-1, 1), (1, 0)))
    if y is None:  # only where the Hessian does not depend on it
        y = torch.zeros(N, dtype=torch.int64, device=logits.device)
    labels = not y.is_floating_point()
    target = (F.one_hot(y.clamp(0, C - 1), C) if labels else y.detach()).to(logits.dtype)
    if loss.kind == "mse":
        count = loss.divisor(y, logits)
        return lambda f: (f - target).square().sum() / count
    weight = torch.ones_like(target[0]) if loss.weight is None else loss.weight.to(logits)
    kept = (y != loss.ignore_index)[:, None] if labels else 1
    hit = weight[y.clamp(0, C - 1)][:, None] if labels else weight  # torch weighs a label's whole term by its class
    t = ((1 - loss.label_smoothing) * target * hit + loss.label_smoothing / C * weight) * kept
    t = t / loss.divisor(y, logits)
    return _softmax_loss(t, logits)


def _softmax_loss(t: Tensor, logits: Tensor) -> Callable[[Tensor], Tensor]:
    """- sum_n t_n . log softmax(f_n) for targets t (N, C), anchored at the largest of the logits."""
    top = logits.argmax(1, keepdim=True)
    other = torch.ones_like(logits).scatter_(1, top, 0.0)

    def value(f: Tensor) -> Tensor:
        shifted = f - f.gather(1, top)
        others = (other * shifted.exp()).sum(1)
        return (t.sum(1) * others.log1p()).sum() - (t * shifted).sum()

    return value
