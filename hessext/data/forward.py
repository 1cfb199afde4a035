"""Calling a model on a batch, and what its answer is taken for."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import Tensor, nn

from hessext import _hints
from hessext.model.losses import Loss

_OF_PROBABILITIES = {"SoftmaxBackward0": "softmax", "SigmoidBackward0": "sigmoid"}  # autograd's names
_OF_THE_DEVICE = re.compile("CUDA error|out of memory|not enough memory|can't allocate")
_OF_INPUTS = re.compile(  # what torch says of tensors that do not fit
    r"\b[Ee]xpected\b|mat1 and mat2|size mismatch, got|same (dtype|device)|should be the same|not implemented for '|"
    "index out of range in self|must match the size of tensor|is invalid for input of size|tensors used as indices|"
    "running_mean should contain"
)


def check_function(forward: Any) -> None:
    """Refuse what is no function of a model and a batch; None is the default one."""
    if forward is None:
        return
    if not callable(forward):
        raise TypeError(f"forward: expected a function, forward(model, batch); got {type(forward).__name__}")
    try:
        arguments = signature(forward)
    except ValueError:  # of a function that does not say
        return
    try:
        arguments.bind(None, None)
    except TypeError:
        raise TypeError(
            f"forward: expected a function of two arguments, forward(model, batch); got {arguments}"
        ) from None


def default_forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Run the model on a pair (x, y). Raises ValueError and TypeError where it is none, or x is not what it takes.

    Errors of another cause in the model come as they are.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(
            "batches: expected pairs (x, y), or forward=, which runs the model on a batch and returns logits and "
            f"targets; got {described(batch)}{_hints.of_batch(batch)}"
        )
    x, y = batch
    try:
        return model(x), y
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        hint = _hints.of_model_inputs(x, model)
        if not _blames(error, x, model, hint):
            raise
        cause = str(error).split("\n")[0]
        got = f"{described(x)} of {x.dtype}" if isinstance(x, Tensor) else described(x)
        kind = ValueError if isinstance(x, Tensor) else TypeError
        raise kind(f"x: expected what model(x) takes; got {got}{hint}: {cause}") from error


def _blames(error: Exception, x: Any, model: nn.Module, hint: str) -> bool:
    """Whether an error in model(x) shows that x is not what the model takes; others are the model's own."""
    text = str(error)
    if _OF_THE_DEVICE.search(text):
        return False
    if _OF_INPUTS.search(text) or text.startswith(f"{type(model).forward.__qualname__}() "):
        return True
    if isinstance(x, Tensor):
        return bool(hint) and type(error) is RuntimeError  # torch's own kind
    return re.search(rf"\b{type(x).__name__}\b", text) is not None


def logits_of(result: Any) -> Tensor:
    """The logits (..., C) that a model returns, or has in its answer as .logits. Raises TypeError for anything else."""
    logits = getattr(result, "logits", result)  # as models of transformers return them
    if not isinstance(logits, Tensor) or logits.ndim < 2 or not logits.is_floating_point():
        squeezed = isinstance(logits, Tensor) and logits.ndim == 1 and logits.is_floating_point()
        hint = " (one logit of N samples is (N, 1), without a squeeze)" if squeezed else _hints.of_answer(result)
        raise TypeError(f"model: expected logits (..., C) of at least two axes; got {described(logits)}{hint}")
    return logits


def warn_of_probabilities(model: nn.Module, logits: Tensor, loss: Loss) -> None:
    """Say so where the last step of the model makes probabilities of logits, as the loss does itself."""
    made = None if logits.grad_fn is None else _OF_PROBABILITIES.get(logits.grad_fn.name())
    if made and loss.kind != "mse":
        warnings.warn(
            f"model: expected logits, of which {loss.kind} makes probabilities itself; got the outputs of a {made}. "
            f"The Hessian is that of both, one after the other. {_hints.of_probabilities(model)}",
            stacklevel=_outside(),
        )


def _outside() -> int:
    """The stacklevel, for a function that warns, of the first caller outside of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] == __package__.partition(".")[0]:
        frame, level = frame.f_back, level + 1
    return level


def described(value: Any) -> str:
    """What came in place of a tensor or of another one, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return type(value).__name__ + (f" of {len(value)}" if isinstance(value, tuple | list | Mapping) else "")
