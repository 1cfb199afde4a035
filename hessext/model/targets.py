"""The targets that a loss takes. Every error names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hessext import _checks, _hints

from .losses import Loss

_ONE_LOGIT = " (of one logit, 'binary_cross_entropy' takes labels 0 and 1)"
_BY_LONG = " (y.long() makes labels of it)"
_OF_NUMBERS = " (labels stand for one-hot targets; numbers to be met are float targets, one for each logit)"
_ROUNDED = 0.02  # by which the sum of probabilities in half precision, or of two digits each, may differ from 1


def checked_targets(
    y: Tensor | None, shape: tuple[int, ...], C: int, loss: Loss, like: Tensor, hint: str = ""
) -> Tensor | None:
    """Return y detached: labels (N,) or targets (N, C) for samples shaped (N,), labels (N, T) ... for (N, T).

    Labels are int64, in [0, C) or ignored; one-hot matrices of integers or bools become labels. Targets have like's
    dtype; those of cross-entropy are probabilities, unless the loss takes any numbers. None passes where
    loss.needs_targets is False. The loss's weights are checked too, and a mean over labels without weight, which is nan
    in torch, is refused. Binary cross-entropy takes a target for each logit, of a single one in the samples' shape,
    too, and makes labels such. A message on the shape ends with the hint.
    """
    if y is None and loss.needs_targets:
        raise ValueError("y: this loss's class weights, ignore_index or pos_weight need targets; got None")
    if loss.kind == "binary_cross_entropy":
        y = None if y is None else _binary_targets(y, shape, C, loss, like)
        for name, weight in (("loss.weight", loss.weight), ("loss.pos_weight", loss.pos_weight)):
            if weight is not None:
                _broadcast(name, weight, (*shape, C) if y is None else y.shape, like)
        return y
    if loss.weight is not None:
        _checks.vector("loss.weight", loss.weight, size=C, like=like)
    if y is None:
        return None
    _checks.tensor("y", y)
    if y.shape == (*shape, C) and y.dtype in (torch.int64, torch.bool) and y.device == like.device:
        y = _labels_of_one_hot(y)
    hint = hint or _shape_hint(y, shape, C, loss)
    misshapen = y.ndim != len(shape) + y.is_floating_point()
    if misshapen or not (y.is_floating_point() or y.dtype == torch.int64):
        text, error = _checks.shape_text, ValueError if misshapen else TypeError
        wanted = f"int64 labels {text(shape)} or {like.dtype} targets {text((*shape, C))}"
        got = f" {text(y.shape)}{hint}" if misshapen else _OF_NUMBERS if loss.kind == "mse" else _BY_LONG
        raise error(f"y: expected {wanted}; got {y.dtype}{got}")
    if y.is_floating_point():
        if loss.kind == "cross_entropy" and loss.ignore_index >= 0:
            raise ValueError(
                f"y: ignore_index={loss.ignore_index} needs int64 labels {_checks.shape_text(shape)}; got {y.dtype}"
            )
        y = _checks.floats("y", y, (*shape, C), like, hint=hint)
        _check_probabilities(y, loss)
        return y
    _checks.layout("y", y, shape, like, hint)
    _labels(y, C, loss, like)
    return y


def of_logits(y: Tensor | None, logits: Tensor, loss: Loss) -> Tensor | None:
    """Checked targets of logits (..., C), on their device, of all samples in one axis: (N, C) or (N,)."""
    shape, C = logits.shape[:-1], logits.shape[-1]
    if isinstance(y, Tensor) and not y.is_meta:
        y = y.to(logits.device, logits.dtype if y.is_floating_point() else y.dtype)
    y = checked_targets(y, shape, C, loss, logits)
    per_class = y is not None and y.is_floating_point() and (loss.kind != "binary_cross_entropy" or C > 1)
    return None if y is None else y.reshape(-1, C) if per_class else y.reshape(-1)


def _check_probabilities(y: Tensor, loss: Loss) -> None:
    """Refuse targets (..., C) of cross-entropy that are no probabilities, unless the loss takes any numbers."""
    if loss.kind != "cross_entropy" or loss.unnormalized or _checks.captured(y):
        return
    low, sums = _checks.bounds(y)[0], _checks.bounds(y.sum(-1))
    if low < 0:
        got = f"entries down to {low:.3g}"
    elif max(abs(total - 1) for total in sums) > _ROUNDED:
        got = "rows that sum to " + " and ".join(f"{total:.3g}" for total in dict.fromkeys(sums))
    else:
        return
    raise ValueError(
        f"y: expected class probabilities, no entry below 0 and the sum of each row 1; got {got}. Logits need a "
        "softmax first, labels are int64, several labels of one sample take nn.BCEWithLogitsLoss(); for torch's "
        "cross-entropy of any numbers give loss=hessext.UnnormalizedCrossEntropyLoss()"
    )


def _labels_of_one_hot(y: Tensor) -> Tensor:
    """Labels (...) of a one-hot matrix (..., C) of integers or bools."""
    if not _checks.captured(y) and not _is_one_hot(y):
        raise ValueError(
            f"y: expected one-hot rows in {y.dtype} {_checks.shape_text(y.shape)}, a single 1 in each; got others. "
            "Several labels of one sample take nn.BCEWithLogitsLoss(), numbers to be met take float targets"
        )
    return y.long().argmax(-1)


def _is_one_hot(y: Tensor) -> bool:
    return bool(((y == 0) | (y == 1)).all() and (y.sum(-1) == 1).all())


def _may_be_labels(y: Tensor) -> bool:
    return _checks.captured(y) or y.is_meta or bool((y == y.round()).all())


def _shape_hint(y: Tensor, shape: tuple[int, ...], C: int, loss: Loss) -> str:
    """What makes targets of y, where its shape is none of theirs and that is plain."""
    if y.shape == (*shape, C):
        integers = not (y.is_floating_point() or y.is_complex() or y.dtype in (torch.int64, torch.bool))
        if not integers or _checks.captured(y) or y.is_meta:
            return ""
        return _BY_LONG if _is_one_hot(y) else _OF_NUMBERS if loss.kind == "mse" else ""
    if hint := _hints.of_places(y, shape, C):
        return hint
    if len(shape) > 1 and y.shape == (shape[0], C, *shape[2:]) and not y.is_floating_point():
        return " (are classes the second axis of the logits? here they are the last)"
    if y.shape not in (shape, (*shape, 1)) or (y.shape == shape and y.dtype == torch.int64):
        return ""
    if C == 1 and loss.kind == "cross_entropy":
        return _ONE_LOGIT
    if C == 1:
        return " (y[..., None] is of one logit)" if y.shape == shape and y.is_floating_point() else ""
    if y.is_floating_point() and (loss.kind == "mse" or not _may_be_labels(y)):
        return f" (one number for each sample, which has {C} logits)"
    if loss.kind == "mse":
        return _OF_NUMBERS
    column, kind = "" if y.shape == shape else "[..., 0]", "" if y.dtype == torch.int64 else ".long()"
    return f" (y{column}{kind} makes labels of it)"


def of_any_samples(loss: Loss, C: int) -> Loss:
    """The loss without the axes of its samples. Refuses weights of binary cross-entropy that differ among these."""
    if loss.kind != "binary_cross_entropy":
        return loss
    weights = {}
    for name in ("weight", "pos_weight"):
        t = getattr(loss, name)
        if t is not None and t.numel() != 1 and (t.numel() != C or t.shape[-1] != C):
            wanted = "one number" if C == 1 else f"one number, or one for each of {C} logits"
            raise ValueError(f"loss.{name}: expected {wanted}, for samples in batches; got shape {tuple(t.shape)}")
        weights[name] = t if t is None else t.reshape(() if t.numel() == 1 else (C,))
    return replace(loss, **weights)


def check_divisor(total: Tensor | float) -> None:
    """Refuse a mean over labels that weigh nothing."""
    if not total:
        raise ValueError("y: expected labels whose weights do not sum to 0; all are ignored or weigh nothing")


def binary_shapes(shape: tuple[int, ...], C: int) -> list[tuple[int, ...]]:
    """The shapes that targets of binary cross-entropy may have: one for each logit."""
    return [shape, (*shape, 1)] if C == 1 else [(*shape, C)]


def _binary_targets(y: Tensor, shape: tuple[int, ...], C: int, loss: Loss, like: Tensor) -> Tensor:
    """Return a target for each logit, in like's dtype: any numbers, or labels 0 and 1."""
    _checks.tensor("y", y)
    shapes = binary_shapes(shape, C)
    wanted = f"{like.dtype} targets, or int64 or bool labels, {' or '.join(map(_checks.shape_text, shapes))}"
    if y.shape not in shapes:
        hint = " (the class of each sample is that of 'cross_entropy')" if y.shape == shape else ""
        raise ValueError(f"y: expected {wanted}; got {_checks.shape_text(y.shape)}{hint}")
    if y.is_floating_point():
        return _checks.floats("y", y, y.shape, like)
    if y.dtype not in (torch.int64, torch.bool):
        raise TypeError(f"y: expected {wanted}; got {y.dtype} (y.long() makes labels of it)")
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
    kept, (low, high) = y, _checks.bounds(y)
    ignored = loss.ignore_index is not None and low <= loss.ignore_index <= high
    if ignored:
        kept = y[y != loss.ignore_index]
        low, high = _checks.bounds(kept) if len(kept) else (0, 0)
    if low < 0 or high >= C:
        wrong = low if low < 0 else high
        raise ValueError(f"y: expected labels in [0, {C}); got {wrong}{_label_hint(kept, low, high, C, loss)}")
    by_weight = loss.kind == "cross_entropy" and loss.reduction == "mean" and (ignored or loss.weight is not None)
    if by_weight:
        check_divisor(loss.divisor(y, like))


def _label_hint(y: Tensor, low: int, high: int, C: int, loss: Loss) -> str:
    """What labels outside of [0, C) may have been meant as."""
    if loss.kind == "mse":
        return _OF_NUMBERS
    if loss.kind == "cross_entropy" and C == 1:
        return _ONE_LOGIT
    if C == 2 and (low, high) == (-1, 1) and y.all():
        return " ((y + 1) // 2 makes labels 0 and 1 of -1 and 1)"
    if loss.kind == "cross_entropy" and low < 0:
        return f" (nn.CrossEntropyLoss(ignore_index={low}) leaves it out)"
    return " (y - 1, if they start at 1)" if (low, high) == (1, C) else ""
