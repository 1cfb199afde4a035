"""The targets that a loss takes. Every error names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hessext import _checks

from .losses import Loss


def checked_targets(y: Tensor | None, shape: tuple[int, ...], C: int, loss: Loss, like: Tensor) -> Tensor | None:
    """Return y detached: labels (N,) or targets (N, C) for samples shaped (N,), labels (N, T) ... for (N, T).

    Labels are int64, in [0, C) or ignored; targets have like's dtype.
    None passes where loss.needs_targets is False. The loss's weights are checked too, and a mean over labels without
    weight, which is nan in torch, is refused. Binary cross-entropy takes targets of the samples' shape, too, and makes
    labels such.
    """
    if y is None and loss.needs_targets:
        raise ValueError("y: this loss's class weights, ignore_index or pos_weight need targets; got None")
    if loss.kind == "binary_cross_entropy":
        check_single_logit(C)
        y = None if y is None else _binary_targets(y, shape, loss, like)
        for name, weight in (("loss.weight", loss.weight), ("loss.pos_weight", loss.pos_weight)):
            if weight is not None:
                _broadcast(name, weight, (*shape, 1) if y is None else y.shape, like)
        return y
    if loss.weight is not None:
        _checks.vector("loss.weight", loss.weight, size=C, like=like)
    if y is None:
        return None
    _checks.tensor("y", y)
    misshapen = y.ndim != len(shape) + y.is_floating_point()  # labels cast to float, or integer one-hot targets
    if misshapen or not (y.is_floating_point() or y.dtype == torch.int64):
        text, error = _checks.shape_text, ValueError if misshapen else TypeError
        wanted = f"int64 labels {text(shape)} or {like.dtype} targets {text((*shape, C))}"
        raise error(f"y: expected {wanted}; got {y.dtype}{' ' + text(y.shape) if misshapen else ''}")
    if y.is_floating_point():
        if loss.kind == "cross_entropy" and loss.ignore_index >= 0:
            raise ValueError(
                f"y: ignore_index={loss.ignore_index} needs int64 labels {_checks.shape_text(shape)}; got {y.dtype}"
            )
        return _checks.floats("y", y, (*shape, C), like)
    _checks.layout("y", y, shape, like)
    _labels(y, C, loss, like)
    return y


def flattened(y: Tensor, C: int, loss: Loss) -> Tensor:
    """Return targets of samples in any number of axes with all samples in one: (N, C) of each class, else (N,)."""
    per_class = y.is_floating_point() and loss.kind != "binary_cross_entropy"
    return y.reshape(-1, C) if per_class else y.reshape(-1)


def check_single_weights(loss: Loss, where: str = "") -> None:
    """Refuse weights of binary cross-entropy that are given sample by sample."""
    if loss.kind != "binary_cross_entropy":
        return
    for name in ("weight", "pos_weight"):
        t = getattr(loss, name)
        if t is not None and t.numel() != 1:
            raise ValueError(f"loss.{name}: expected one number{where}; got shape {tuple(t.shape)}")


def check_divisor(total: Tensor | float) -> None:
    """Refuse a mean over labels that weigh nothing."""
    if not total:
        raise ValueError("y: expected labels whose weights do not sum to 0; all are ignored or weigh nothing")


def check_single_logit(C: int) -> None:
    """Refuse binary cross-entropy of several logits: each has a curvature of its own."""
    if C != 1:
        raise ValueError(f"loss: binary cross-entropy is supported for one logit, C = 1; got a model with C = {C}")


def _binary_targets(y: Tensor, shape: tuple[int, ...], loss: Loss, like: Tensor) -> Tensor:
    """Return the targets of one logit in like's dtype, (*shape) or (*shape, 1): any numbers, or labels 0 and 1."""
    _checks.tensor("y", y)
    shapes = " or ".join(map(_checks.shape_text, (shape, (*shape, 1))))
    wanted = f"{like.dtype} targets, or int64 or bool labels, {shapes}"
    if y.shape not in (shape, (*shape, 1)):
        raise ValueError(f"y: expected {wanted}; got {_checks.shape_text(y.shape)}")
    if y.is_floating_point():
        return _checks.floats("y", y, y.shape, like)
    if y.dtype not in (torch.int64, torch.bool):
        raise TypeError(f"y: expected {wanted}; got {y.dtype}")
    _checks.layout("y", y, y.shape, like)
    _labels(y, 2, loss, like)
    return y.to(like.dtype)


def _broadcast(name: str, t: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Refuse what is not finite, not of like's dtype and device, or does not broadcast to shape."""
    _checks.floats(name, t, t.shape, like)
    if t.ndim > len(shape) or any(a not in (1, b) for a, b in zip(t.shape[::-1], shape[::-1], strict=False)):
        wanted, got = map(_checks.shape_text, (shape, t.shape))
        raise ValueError(f"{name}: expected a shape that broadcasts to {wanted}; got {got}")


def _labels(y: Tensor, C: int, loss: Loss, like: Tensor) -> None:
    if _checks.captured(y):
        return
    low, high = _checks.bounds(y)
    ignored = loss.ignore_index is not None and low <= loss.ignore_index <= high
    if ignored:
        kept = y[y != loss.ignore_index]
        low, high = _checks.bounds(kept) if len(kept) else (0, 0)
    if low < 0 or high >= C:
        raise ValueError(f"y: expected labels in [0, {C}); got {low if low < 0 else high}")
    by_weight = loss.kind == "cross_entropy" and loss.reduction == "mean" and (ignored or loss.weight is not None)
    if by_weight:
        check_divisor(loss.divisor(y, like))
