"""Inputs of the linear layer that gives a model's logits, and the targets, over all batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hessext import _hints
from hessext._memory import require
from hessext._progress import steps
from hessext._tensors import version
from hessext.model.linear import LinearLayer
from hessext.model.pruned import masked_kept

from .forward import check_function, default_forward, described, logits_of
from .runs import input_of, same_random_numbers

Forward = Callable[[nn.Module, Any], Tensor | tuple[Any, Tensor | None] | None]

_LEFT_OFF = {"softmax": lambda f: f.softmax(-1), "log_softmax": lambda f: f.log_softmax(-1), "sigmoid": torch.sigmoid}


def collected(
    model: nn.Module, one: LinearLayer, batches: Iterable[Any], forward: Forward | None
) -> tuple[Tensor, Tensor | None]:
    """Inputs of the layer (N, d) and targets of all batches; the model runs once, without gradients."""
    check_function(forward)
    dtype = torch.promote_types(torch.float32, one.weight.dtype)
    features, targets, size = [], [], 0
    training = any(m.training for m in model.modules())
    with torch.no_grad(), masked_kept(model):
        for k, batch in enumerate(steps(batches, unit="batches")):
            with same_random_numbers(one.weight.device) if training else nullcontext():
                a, t = _run(model, one, batch, forward, dtype)
            shape = a.shape[:-1]
            if not shape or (t is not None and t.shape[: len(shape)] != shape):
                hint = "" if t is None else _hints.of_places(t, shape, len(one.weight))
                got = "None" if t is None else tuple(t.shape)
                raise ValueError(f"batches: expected targets of {tuple(shape)} samples in batch {k}; got {got}{hint}")
            features.append(a.flatten(0, -2))
            size += a.numel() * dtype.itemsize
            require(size, "the features so far, put together,", a.device)
            if t is not None:
                t = t.to(a.device, dtype if t.is_floating_point() else t.dtype)
                targets.append(t.flatten(0, len(shape) - 1))
    if not features or len(targets) not in (0, len(features)):
        got = f"targets of {len(targets)} of {len(features)}" if features else f"none{_hints.of_end(batches)}"
        raise ValueError(f"batches: expected at least one, and targets of all or of none; got {got}")
    return torch.cat(features), torch.cat(targets) if targets else None


def _run(
    model: nn.Module, one: LinearLayer, batch: Any, forward: Forward | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Return the layer's inputs on a batch (..., d), copied, in dtype, and the targets."""
    calls: list[tuple[Tensor, Tensor, int]] = []

    def keep(_: nn.Module, args: tuple, kwargs: dict, outputs: Tensor) -> None:
        x = input_of(args, kwargs)  # may be changed in place when the model goes on
        x = x.full_tensor() if hasattr(x, "placements") else x  # as torch's parallel styles hand it over
        calls.append((x.detach().to(dtype, copy=True), outputs, version(outputs)))

    handle = one.module.register_forward_hook(keep, with_kwargs=True)
    try:
        y = (forward or default_forward)(model, batch)
    finally:
        handle.remove()
    if len(calls) != 1:
        hint = _hints.of_calls(len(calls), forward is None)
        raise ValueError(f"module: expected a layer that is called once in each batch; got {len(calls)} calls{hint}")
    ((x, outputs, before),) = calls
    if isinstance(y, tuple | list):
        if len(y) != 2:
            raise TypeError(
                f"forward: expected a function that returns targets, or logits and targets; got {described(y)}"
            )
        result, y = y
        source = "model(x)" if forward is None else "forward"
        _check_logits(model, logits_of(result), outputs, version(outputs) != before, one, source)
    if y is not None and not isinstance(y, Tensor):
        hint = _hints.of_other_type(y)
        raise TypeError(f"batches: expected targets that are a torch.Tensor; got {type(y).__name__}{hint}")
    if y is not None and (y.is_meta or y.layout != torch.strided):
        raise TypeError(f"batches: expected targets that are a dense tensor with values; got {y.layout} on {y.device}")
    return x, y


def _check_logits(
    model: nn.Module, logits: Tensor, outputs: Tensor, changed: bool, one: LinearLayer, source: str
) -> None:
    """Refuse logits that are not the outputs of the layer, which may have been changed in place."""
    same = logits is outputs or (logits.shape == outputs.shape and torch.equal(logits, outputs.to(logits.dtype)))
    if same and not changed:
        return
    found = (
        "this one, changed in place" if same else described(logits) if logits.shape != outputs.shape else "another one"
    )
    layer = f"hessext.layer(model, {one.name!r}, ...)"
    made = [name for name, make in _LEFT_OFF.items() if not changed and _are(logits, make(outputs))]
    if made:
        found = f"their {made[0]}"
        advice = f"{_hints.of_probabilities(model)}; for 'mse' {layer} takes it"
    elif _of_fewer_places(logits, outputs):
        advice = (
            "forward= may run the model and return the targets alone, of all places (-100 where there is none), or the "
            f"logits of all places with these; {layer} takes it as it is"
        )
    else:
        advice = f"Name the last layer, or take this one as {layer}"
    raise ValueError(
        f"module: expected a layer whose outputs are what {source} returns, the logits; {one.name!r} gives "
        f"{described(outputs)}, and {source} returns {found}. {advice}"
    )


def _of_fewer_places(logits: Tensor, outputs: Tensor) -> bool:
    """Whether logits may be those of some of the places (N, T) of a layer's outputs."""
    (n, *some, c), (samples, *places, classes) = logits.shape, outputs.shape
    return (n, c) == (samples, classes) and len(some) == len(places) and some != places


def _are(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are the same but for rounding, which is that of the largest entry."""
    if found.shape != expected.shape or not found.numel():
        return False
    return torch.allclose(found, expected.to(found.dtype), rtol=1e-2, atol=1e-3 * float(expected.abs().max()))
