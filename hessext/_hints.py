"""What may have been meant by an argument that does not fit, for the end of a message; names that mean the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

_WEIGHTS = "weights are (outputs, inputs), as nn.Linear has them"
PROBABILITIES = nn.Softmax, nn.LogSoftmax, nn.Sigmoid, nn.LogSigmoid


def positional(most: int, **activation: Callable[[object], bool]) -> Callable[[Callable], Callable]:
    """Let a function say what more arguments than these may have been meant for: a loss, weights, its activation."""

    def decorated(function: Callable) -> Callable:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if len(args) > most:
                names = ", ".join(list(signature(function).parameters)[:most])
                raise TypeError(
                    f"{function.__name__}: expected {names}, and all else by name; got {len(args)} arguments"
                    f"{_of_more(args, most, activation)}"
                )
            return function(*args, **kwargs)

        return run

    return decorated


def also_named(**others: str) -> Callable[[Callable], Callable]:
    """Let arguments of a function be given by a second name, too, which is the value of the first one here."""

    def decorated(function: Callable) -> Callable:
        takes = signature(function)
        names = list(takes.parameters)
        needed = [p.name for p in takes.parameters.values() if p.default is p.empty]

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            for own, other in others.items():
                if other in kwargs and (own in kwargs or own in names[: len(args)]):
                    raise TypeError(f"{function.__name__}: {own} and {other} are one argument; got both")
                if other in kwargs:
                    kwargs[own] = kwargs.pop(other)
            try:
                takes.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}({', '.join(needed)}): {error}") from None
            return function(*args, **kwargs)

        return run

    return decorated


def _of_more(args: tuple, most: int, activation: dict[str, Callable[[object], bool]]) -> str:
    for name, is_activation in activation.items():
        if is_activation(args[most]):
            return f" (an activation is passed as {name}=)"
    if isinstance(args[most], str | nn.Module):
        return " (a loss is passed as loss=)"
    weights = args[:-2]
    if len(weights) != most - 1 or not all(isinstance(t, Tensor) for t in args) or any(t.ndim != 2 for t in weights):
        return ""
    names = [f"W{k}" for k in range(1, len(weights) + 1)]
    fitting = "one_hidden(W1, W2, x, y)" if len(weights) == 2 else f"feed_forward([{', '.join(names)}], x, y)"
    return f" ({len(weights)} weights: hessext.{fitting})"


def of_other_type(value: object) -> str:
    """Where a tensor is expected."""
    if type(value).__module__ == "numpy":
        return " (torch.from_numpy makes it one)"
    if isinstance(value, Dataset):
        return " (a DataLoader makes batches of it)"
    if isinstance(value, nn.Module):
        return " (hessext.hessian takes modules)"
    if not isinstance(value, list | tuple) or not value:
        return ""
    if all(isinstance(t, Tensor) and t.ndim == 2 for t in value):
        return " (hessext.feed_forward takes a list of weights)"
    inner = value
    while isinstance(inner, list | tuple) and inner:
        inner = inner[0]
    return " (torch.tensor makes it one)" if isinstance(inner, int | float) else ""


def of_weight(weight: object, before: Tensor | None) -> str:
    """Where a weight does not take the outputs of the layer before it."""
    if before is None or not isinstance(weight, Tensor) or weight.ndim != 2:
        return ""
    (rows, cols), (outputs, inputs) = weight.shape, before.shape
    if rows == inputs:
        return f" ({_WEIGHTS}, in the order in which they are applied: are both transposed, or in another order?)"
    if rows == outputs:
        return f" ({_WEIGHTS}: its transpose would fit)"
    return f" ({_WEIGHTS}: the transpose of the one before would fit)" if cols == inputs else ""


def of_inputs(x: object, y: object, weight: Tensor) -> str:
    """Where the first weight does not take the samples x."""
    if not isinstance(x, Tensor):
        return ""
    outputs, inputs = weight.shape
    if not x.is_floating_point():
        return " (are x and y swapped?)" if isinstance(y, Tensor) and y.is_floating_point() else ""
    if x.ndim > 2 and math.prod(x.shape[1:]) == inputs:
        return " (x.flatten(1) would fit, and nn.Flatten() at the start of a model makes it so)"
    if x.ndim == 2 and len(x) == inputs:
        return " (samples are rows: its transpose would fit)"
    return f" ({_WEIGHTS}: the transpose of the weight would fit)" if x.shape[-1:] == (outputs,) else ""


def of_targets(y: object, x: Tensor, layers: int, classes: int) -> str:
    """Where targets are not those of samples x."""
    swapped = isinstance(y, Tensor) and layers == 1 and x.ndim == 2 and y.shape[:1] == (classes,) != x.shape[:1]
    return " (are the weight and x swapped?)" if swapped else ""


def of_places(y: Tensor, shape: tuple[int, ...], classes: int) -> str:
    """Where targets are not those of a batch whose samples have this shape."""
    if len(shape) > 1 and y.shape == (shape[0], classes, *shape[1:]):
        return " (classes are the last axis here: y.movedim(1, -1))"
    return " (does the model flatten its inputs?)" if len(shape) > 1 and y.ndim == 1 else ""


def of_batch(batch: object) -> str:
    """Where a batch is no pair (x, y): how forward= takes it apart."""
    if isinstance(batch, Mapping) and len(batch) > 1:
        *inputs, last = map(repr, batch)
        if "labels" in batch:  # as data of transformers have it
            return " (" + forward("model(**batch).logits", "batch['labels']") + ")"
        return f" ({forward(f'model(batch[{inputs[0]}])', f'batch[{last}]')})"
    if isinstance(batch, tuple | list) and len(batch) > 2:
        return f" ({forward('model(*batch[:-1])', 'batch[-1]')})"
    if isinstance(batch, Tensor):
        return " (x and y are two arguments, or one pair in a list, [(x, y)])"
    return ""


def of_answer(result: object) -> str:
    """Where a model returns more than logits: how forward= picks them, if it is plain which they are."""
    if isinstance(result, Mapping):
        form, entries = "[{!r}]", result.items()
    elif isinstance(result, tuple | list):
        form, entries = "[{!r}]", enumerate(result)
    else:
        form, entries = ".{}", getattr(result, "__dict__", {}).items()
    found = [key for key, value in entries if _may_be_logits(value)]
    if not found:
        return ""
    found = next(([key] for key in ("logits", "out") if key in found), found)
    if len(found) == 1:
        return ". forward= picks them: " + forward(f"model(batch[0]){form.format(found[0])}", "batch[1]")
    some = forward(f"model(batch[0]){'.name' if form == '.{}' else '[...]'}", "batch[1]")
    return f". forward= picks one of {', '.join(map(form.format, found))}: {some}"


def forward(logits: str, targets: str) -> str:
    """The argument forward= that picks these out of a model's answer and a batch."""
    return f"forward=lambda model, batch: ({logits}, {targets})"


def _may_be_logits(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1 and value.is_floating_point()


def of_model_inputs(x: object, model: nn.Module) -> str:
    """Where a model does not take x."""
    if isinstance(x, Mapping):
        return f" ({forward('model(**batch[0])', 'batch[1]')} passes its entries by name)"
    if isinstance(x, tuple | list) and any(isinstance(t, Tensor) for t in x):
        return f" ({forward('model(*batch[0])', 'batch[1]')} passes its entries one by one)"
    if not isinstance(x, Tensor):
        return of_other_type(x)
    own = next(model.parameters(), x)
    if x.device != own.device:
        return f" on {x.device}, and the model is on {own.device} (.to moves either)"
    both = x.is_floating_point() and own.is_floating_point()
    return f", and the model has {own.dtype} (.to converts either)" if both and x.dtype != own.dtype else ""


def of_probabilities(model: nn.Module) -> str:
    """Where a model's last step makes probabilities of logits."""
    last = model[-1] if isinstance(model, nn.Sequential) and len(model) else None
    how = ", as model[:-1] does" if isinstance(last, PROBABILITIES) else ""
    return f"The cross-entropies take logits: leave that step off{how}"


def of_calls(calls: int, own: bool) -> str:
    """Where a layer is not called once in a pass, of the model's own forward or of a function that runs it."""
    return "" if own or calls else " (does forward= run the model that it is given?)"


def of_end(batches: object) -> str:
    """Where there is no batch."""
    return " (an iterator is at its end after one pass)" if isinstance(batches, Iterator) else ""
