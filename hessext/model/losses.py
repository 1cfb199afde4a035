"""Losses and their derivatives with respect to the logits f_n of each sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hessext import _ops


@dataclass(eq=False)
class OutputDerivatives:
    """First and second derivative of the per-sample losses l_n, whose sum is the loss, at logits f_n.

    d2 l_n / df2 is scale_n (diag p_n - p_n p_n^T), or, where there is no p, diag scale_n, which is scale_n I for one
    number; `residual()` forms the (N, C) gradients d l_n / df.
    """

    scale: Tensor  # (N,), or (N, C); may be zero (ignored) or, with negative weights or targets, negative
    residual: Callable[[], Tensor]
    probs: Tensor | None = None  # (N, C) softmax(f_n)
    top: Tensor | None = None  # (N,) int64 most probable class of each sample
    rest: Tensor | None = None  # (N,) 1 - p_top, formed as the sum of the other probabilities

    @property
    def columns(self) -> Tensor:
        """scale_n as a row for each sample, (N, 1) or (N, C)."""
        return self.scale if self.scale.ndim == 2 else self.scale[:, None]

    def product_(self, v: Tensor, sample: Tensor | slice = slice(None)) -> Tensor:
        """d2 l_n / df2 v of rows v (R, C), each of its own sample, in place where there is a softmax."""
        if self.probs is None:
            return self.columns[sample] * v
        v = v.contiguous()
        _ops.softmax_product_(v, self.probs[sample], self.scale[sample], self.top[sample])
        return v


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """torch's cross-entropy: all its options make l_n = -t_n . log softmax(f_n) with targets t_n (C,).

    Labels y (N,) give t_n = k_n ((1 - s) w_y e_y + s w / C) with k_n = 1 / sum w_y, or 0 where y is ignored;
    probabilities y (N, C) give t_n = ((1 - s) y_n + s / C) w / N, for class weights w and label smoothing s.
    Reduction "sum" drops the normalizers. With c_n = sum_c t_nc, d l_n / df = c_n p_n - t_n.
    """

    reduction: str = "mean"
    weight: Tensor | None = None
    label_smoothing: float = 0.0
    ignore_index: int = -100
    unnormalized: bool = False  # whether float targets y_n may be other than probabilities
    total: float | None = None  # what a mean divides by, where more samples than those at hand are its own

    kind = "cross_entropy"
    softmax = True  # d2 l_n / df2 is c_n (diag p - p p^T); otherwise it is c_n I

    @property
    def needs_targets(self) -> bool:
        """Whether the curvature depends on y. Without y every sample counts, as a target of total one."""
        return self.weight is not None or self.ignore_index >= 0

    def value(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the scalar loss, differentiable, in the dtype of the logits (N, C)."""
        return F.cross_entropy(
            logits,
            y.to(logits.dtype) if y.is_floating_point() else y,
            weight=None if self.weight is None else self.weight.to(logits),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def output(self, logits: Callable[[], Tensor], y: Tensor | None, like: Tensor) -> OutputDerivatives:
        """Curvature and residual at fresh logits (N, C), of like's shape and dtype, for checked targets y."""
        probs = logits()
        top, rest = _ops.softmax_(probs)
        plain = y is None or self._is_plain(y)
        scale = self._uniform(probs) if plain else self._weighted(y, probs)

        def residual() -> Tensor:
            if y is None:
                raise _no_targets()
            if y.is_floating_point():
                hit, spread = self._shares(y, probs)
                return _target_residual(probs, scale, top, (y * hit).add_(spread))
            label = y if plain else self.kept(y, probs)[0]
            if not self.label_smoothing:
                return _ops.label_residual(probs, scale, label, top, rest)
            hit, spread = self._label_shares(y, probs)
            targets = torch.outer(spread, self._class_weights(probs)).scatter_add_(1, label[:, None], hit[:, None])
            return _target_residual(probs, scale, top, targets)

        return OutputDerivatives(scale, residual, probs, top, rest)

    def divisor(self, y: Tensor | None, like: Tensor) -> Tensor | int:
        """What the sum over samples is divided by: N, the sum of the labels' weights, or 1; arguments as of `scale`."""
        if self.reduction == "sum":
            return 1
        if self.total is not None:
            return self.total
        return like.shape[0] if y is None or y.is_floating_point() else self.kept(y, like)[1].sum()

    def scale(self, y: Tensor | None, like: Tensor) -> Tensor:
        """c_n (N,), the total of the targets t_n, for checked y; `like` (N, C) has the logits' sizes, dtype."""
        return self._uniform(like) if y is None or self._is_plain(y) else self._weighted(y, like)

    def _uniform(self, like: Tensor) -> Tensor:
        return like.new_full((like.shape[0],), 1 / self.divisor(None, like))

    def _weighted(self, y: Tensor, like: Tensor) -> Tensor:
        if y.is_floating_point():
            hit, spread = self._shares(y, like)
            return y @ hit + spread.sum()
        hit, spread = self._label_shares(y, like)
        return hit if spread is None else hit + spread * self._class_weights(like).sum()

    def _is_plain(self, y: Tensor) -> bool:
        # worth a look where it costs a microsecond, not where it would wait for a GPU: _weighted covers this case, too
        options = self.weight is not None or self.label_smoothing or self.ignore_index >= 0
        return not options and y.is_cpu and not y.is_floating_point() and y.min().item() >= 0

    def kept(self, y: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (N,) with ignored ones as class 0; their weights w_y in like's dtype, 0 where ignored."""
        keep = y != self.ignore_index
        label = y * keep
        return label, keep.to(like.dtype) if self.weight is None else self.weight.to(like)[label] * keep

    def _label_shares(self, y: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """t_n = hit_n e_y + spread_n w, both (N,)."""
        _, weights = self.kept(y, like)
        total = self.divisor(y, like)
        if not self.label_smoothing:
            return weights / total, None
        spread = (y != self.ignore_index).to(like.dtype) * (self.label_smoothing / like.shape[1] / total)
        return weights / total * (1 - self.label_smoothing), spread

    def _shares(self, y: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """t_n = y_n hit + spread, both (C,)."""
        classes = self._class_weights(like) / self.divisor(y, like)
        return classes * (1 - self.label_smoothing), classes * (self.label_smoothing / len(classes))

    def _class_weights(self, like: Tensor) -> Tensor:
        return torch.ones_like(like[0]) if self.weight is None else self.weight.to(like)


def _target_residual(probs: Tensor, scale: Tensor, top: Tensor, targets: Tensor) -> Tensor:
    """Return scale p - targets, (N, C), formed in targets, whose rows sum to scale.

    A row of gradients sums to zero, so where the top entry cancels it is minus the sum of the others.
    """
    top = top.unsqueeze(1)
    residual = targets.neg_().addcmul_(probs, scale.unsqueeze(1))
    at_top = residual.gather(1, top)
    others = residual.scatter_(1, top, 0).sum(1, keepdim=True)
    # a top class below 1/2 does not cancel, and among many classes its few digits would drown in the sum
    return residual.scatter_(1, top, torch.where(probs.gather(1, top) > 0.5, -others, at_top))


def _no_targets() -> ValueError:
    return ValueError("y: the residual needs targets; got None")


@dataclass(frozen=True, eq=False)
class BinaryCrossEntropy:
    """torch's BCEWithLogitsLoss, (1): l_n = -k sum_c w_nc (v_nc y_nc log p_nc + (1 - y_nc) log(1 - p_nc)).

    p = sigmoid(f); weights w and v (`pos_weight`) broadcast to the targets; k = 1 / (N C), or 1 for reduction "sum".
    With t = k w v y and u = k w (1 - y) of each logit, d l_n / df = u p - t (1 - p) and d2 l_n / df2 is the diagonal
    matrix of (u + t) p (1 - p), where 1 - p = sigmoid(-f).
    """

    reduction: str = "mean"
    weight: Tensor | None = None
    pos_weight: Tensor | None = None
    total: float | None = None  # as of CrossEntropy

    kind = "binary_cross_entropy"
    softmax = False  # d2 l_n / df2 is diagonal, with entries of their own for several logits
    ignore_index = None

    @property
    def needs_targets(self) -> bool:
        """Whether the curvature depends on y."""
        return self.pos_weight is not None

    def flattened(self, shape: Sequence[int], last: int) -> BinaryCrossEntropy:
        """Return the loss of targets of this shape whose axes up to the `last` are made one; its weights broadcast."""
        weights = (t if t is None else t.expand(shape).flatten(0, last) for t in (self.weight, self.pos_weight))
        return BinaryCrossEntropy(self.reduction, *weights, self.total)

    def value(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the scalar loss, differentiable, in the dtype of the logits (N, C)."""
        weight, pos_weight = (None if t is None else t.to(logits) for t in (self.weight, self.pos_weight))
        return F.binary_cross_entropy_with_logits(
            logits.view(y.shape), y.to(logits.dtype), weight, reduction=self.reduction, pos_weight=pos_weight
        )

    def divisor(self, y: Tensor | None, like: Tensor) -> float:
        """What the sum over samples is divided by: N C or 1."""
        if self.reduction == "sum":
            return 1
        return like.numel() if self.total is None else self.total

    def output(self, logits: Callable[[], Tensor], y: Tensor | None, like: Tensor) -> OutputDerivatives:
        """Curvature and residual at logits (N, C), of like's shape and dtype, for checked targets y."""
        f = logits()
        p, rest = f.sigmoid(), f.neg().sigmoid()
        weight = _of_logits(self.weight, like) / self.divisor(y, like)

        def shares() -> tuple[Tensor, Tensor]:
            """t and u."""
            if y is None:
                raise _no_targets()
            label = _of_logits(y, like)
            return weight * _of_logits(self.pos_weight, like) * label, weight * (1 - label)

        def residual() -> Tensor:
            hit, miss = shares()
            return miss * p - hit * rest

        total = sum(shares()) if self.needs_targets else weight
        curvature = p * rest * total
        return OutputDerivatives(curvature.squeeze(1) if like.shape[1] == 1 else curvature, residual)


def _of_logits(t: Tensor | None, logits: Tensor) -> Tensor:
    """What broadcasts to the targets, (N,) of one logit, so that it broadcasts to the logits (N, C); 1 for None."""
    if t is None:
        return logits.new_ones(1, 1)
    return t.to(logits).reshape(-1, 1) if logits.shape[1] == 1 else t.to(logits)


@dataclass(frozen=True)
class SquaredError:
    """factor ||f_n - y_n||^2 summed over samples, for targets y (N, C) or labels y (N,), which stand for e_y.

    reduction: "samples" (factor 1 / N), "mean" (torch's mean over all elements, 1 / (N C)) or "sum" (1).
    """

    reduction: str = "samples"
    total: float | None = None  # as of CrossEntropy

    kind = "mse"
    softmax = False
    weight = None
    ignore_index = None
    needs_targets = False

    def value(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the scalar loss, differentiable, in the dtype of the logits (N, C)."""
        if not y.is_floating_point():
            y = torch.zeros_like(logits).scatter(1, y[:, None], 1.0)
        return (logits - y.to(logits.dtype)).square().sum() / self.divisor(y, logits)

    def output(self, logits: Callable[[], Tensor], y: Tensor | None, like: Tensor) -> OutputDerivatives:
        """Curvature and residual at logits (N, C), of like's shape and dtype, for checked targets y.

        The curvature is that of any logits: they are formed for the residual alone.
        """
        factor = 2 / self.divisor(y, like)

        def residual() -> Tensor:
            if y is None:
                raise _no_targets()
            f = logits()
            f = f.sub_(y) if y.is_floating_point() else f.scatter_add_(1, y[:, None], f.new_full((len(y), 1), -1.0))
            return f.mul_(factor)

        return OutputDerivatives(like.new_full((len(like),), factor), residual)

    def divisor(self, y: Tensor | None, like: Tensor) -> float:
        """What the sum over samples is divided by: N, N C or 1; `like` is shaped as the logits."""
        if self.total is not None and self.reduction != "sum":
            return self.total
        return {"samples": len(like), "mean": like.numel(), "sum": 1}[self.reduction]


Loss = CrossEntropy | BinaryCrossEntropy | SquaredError
