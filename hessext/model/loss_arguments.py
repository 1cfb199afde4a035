"""What is passed as a loss: a name, or a module of torch, which means what it means in torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hessext._tensors import lifted

from .losses import BinaryCrossEntropy, CrossEntropy, Loss, SquaredError


class UnnormalizedCrossEntropyLoss(nn.CrossEntropyLoss):
    """torch's nn.CrossEntropyLoss, whose float targets may be any numbers: l_n = -t_n . log softmax(f_n).

    torch takes targets with negative entries, or rows that do not sum to 1, without a word; hessext refuses them, as
    they are mistakes most of the time (logits, several labels of one sample), unless they come with this loss. Its
    curvature is c_n (diag p_n - p_n p_n^T), where c_n, the sum of t_n, may be 0 or negative. Options as in torch.
    """


LossLike = str | nn.CrossEntropyLoss | nn.BCEWithLogitsLoss | nn.MSELoss

_NAMED = {loss.kind: loss for loss in (CrossEntropy, BinaryCrossEntropy, SquaredError)}
_MODULES = (nn.CrossEntropyLoss, UnnormalizedCrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss)
_INSTEAD = {  # what a module of torch that is not supported, or a function, may be replaced by
    nn.NLLLoss: "nn.CrossEntropyLoss() of the logits, a model without its last log_softmax",
    nn.BCELoss: "nn.BCEWithLogitsLoss() of the logits, a model without its last sigmoid",
    nn.KLDivLoss: "nn.CrossEntropyLoss() with class probabilities as targets, whose Hessian in the logits is the same",
    F.cross_entropy: "nn.CrossEntropyLoss()",
    F.binary_cross_entropy_with_logits: "nn.BCEWithLogitsLoss()",
    F.mse_loss: "nn.MSELoss()",
}


def resolve(loss: LossLike) -> Loss:
    """Return the Loss of a name, "mse" being the mean over samples of ||f - y||^2, or of a torch loss module.

    Weights are copied. Raises ValueError for an unknown name, a reduction that gives no scalar or label_smoothing
    outside [0, 1], and TypeError for what is not exactly one of the modules: a subclass may compute anything.
    """
    if isinstance(loss, str):
        if loss not in _NAMED:
            raise ValueError(f"loss: expected 'cross_entropy', 'binary_cross_entropy' or 'mse'; got {loss!r}")
        return _NAMED[loss]()
    if any(loss is module for module in _MODULES):
        raise TypeError(f"loss: expected a name or an instance; got the class: {loss.__name__}() makes an instance")
    if type(loss) not in _MODULES:
        raise TypeError(_unsupported(loss))
    if loss.reduction not in ("mean", "sum"):
        raise ValueError(f"loss: a Hessian needs a scalar, reduction 'mean' or 'sum'; got {loss.reduction!r}")
    if type(loss) is nn.MSELoss:
        return SquaredError(loss.reduction)
    weight = _copied(loss.weight)
    if type(loss) is nn.BCEWithLogitsLoss:
        return BinaryCrossEntropy(loss.reduction, weight, _copied(loss.pos_weight))
    if not 0 <= loss.label_smoothing <= 1:
        raise ValueError(f"loss: expected label_smoothing between 0 and 1; got {loss.label_smoothing}")
    unnormalized = type(loss) is UnnormalizedCrossEntropyLoss
    return CrossEntropy(loss.reduction, weight, loss.label_smoothing, loss.ignore_index, unnormalized)


def _unsupported(loss: object) -> str:
    got = "a tensor" if isinstance(loss, Tensor) else getattr(loss, "__name__", None) or repr(loss)
    known = next((key for key in (loss, type(loss)) if key.__hash__ and key in _INSTEAD), None)
    hint = f". Try {_INSTEAD[known]}" if known else ""
    return (
        "loss: expected 'cross_entropy', 'binary_cross_entropy', 'mse', or an instance of nn.CrossEntropyLoss, "
        f"nn.BCEWithLogitsLoss or nn.MSELoss (not of a subclass); got {got}{hint}"
    )


def _copied(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.detach().to(lifted(weight.dtype), copy=True)
