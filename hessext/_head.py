"""The Hessian of the last linear layer of any network: a linear model of the features that reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ._api import output_layer
from ._memory import require
from ._tensors import version
from .matrix.hessian import Hessian
from .model import losses
from .model.losses import LossLike
from .model.trace import check_forward

Forward = Callable[[nn.Module, Any], Tensor | None]


def head(
    model: nn.Module,
    module: nn.Module | str,
    batches: Iterable[Any],
    loss: LossLike = "cross_entropy",
    *,
    forward: Forward | None = None,
) -> Hessian:
    """Hessian of a loss in one nn.Linear whose outputs are the logits, (3), (5), all that comes before it held fixed.

    The model runs once over the batches, without gradients; what the layer is given is kept, (samples, d). H has one
    layer of the module's name, H["lm_head"] or H["lm_head.weight"]; other uses of a tied weight are held fixed, too.
    Features, weights and floating targets become float32 (float64 where the layer is): half precision is fine.

    Args:
        model: any module, in evaluation mode.
        module: the nn.Linear, or its name in `model.named_modules()`.
        batches: an iterable of (x, y), a DataLoader for example; y as in `linear`, shaped (B,) or (B, T) for logits
            (B, C) or (B, T, C), or (B, C), (B, T, C). T may differ from batch to batch.
        loss: as in `linear`; a mean is over the samples of all batches, of class weights and ignored labels too.
        forward: for batches of another form: forward(model, batch) runs the model and returns the targets, or None,
            for a language model `F.pad(batch["labels"][:, 1:], (0, 1), value=-100)`, say.
            By default x, y = batch and model(x), which must return the layer's outputs.

    Raises:
        ValueError: a model in training mode, no such module, no batch, a layer that is not called once in each batch or
            does not give the model's output, targets of another shape; TypeError: not an nn.Linear, or one with hooks;
            MemoryError: the features do not fit. As `linear` otherwise.
    """
    name, layer = _find(model, module)
    losses.resolve(loss)
    dtype = torch.promote_types(torch.float32, layer.weight.dtype)
    features, targets, size = [], [], 0
    with torch.no_grad():
        for k, batch in enumerate(batches):
            x, y = _run(model, layer, batch, forward, dtype)
            shape = x.shape[:-1]
            if not shape or (y is not None and y.shape[: len(shape)] != shape):
                got = "None" if y is None else tuple(y.shape)
                raise ValueError(f"batches: expected targets of {tuple(shape)} samples in batch {k}; got {got}")
            features.append(x.flatten(0, -2))
            size += x.numel() * dtype.itemsize
            require(size, "the features so far, put together,", x.device)
            if y is not None:
                y = y.to(x.device, dtype if y.is_floating_point() else y.dtype)
                targets.append(y.flatten(0, len(shape) - 1))
    if not features or len(targets) not in (0, len(features)):
        got = f"targets of {len(targets)} of {len(features)}" if features else "none"
        raise ValueError(f"batches: expected at least one, and targets of all or of none; got {got}")
    weight, bias = (None if p is None else p.detach().to(dtype) for p in (layer.weight, layer.bias))
    y = torch.cat(targets) if targets else None
    return output_layer(name, weight, bias, torch.cat(features), y, loss, by_parameter=True)


def _find(model: nn.Module, module: nn.Module | str) -> tuple[str, nn.Linear]:
    """Return the layer and its name."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module; got {type(model).__name__}")
    if model.training:
        raise ValueError(
            "model: expected evaluation mode (call model.eval()), where dropout and batch normalization do not act on "
            "the batch; got training mode"
        )
    if not isinstance(module, nn.Module | str):
        raise TypeError(f"module: expected an nn.Linear or its name; got {type(module).__name__}")
    modules = dict(model.named_modules(remove_duplicate=False))
    found = next((name for name, m in modules.items() if module in (name, m)), None)
    if found is None:
        layers = [repr(name) for name, m in modules.items() if type(m) is nn.Linear]
        got = repr(module) if isinstance(module, str) else f"another {type(module).__name__}"
        raise ValueError(
            f"module: expected one of model's, such as {', '.join(layers[-3:]) or 'no nn.Linear'}; got {got}"
        )
    layer = modules[found]
    if type(layer) is not nn.Linear:
        raise TypeError(f"module: expected an nn.Linear; got {type(layer).__name__} {found!r}")
    check_forward("module", found, layer)
    return found, layer


def _run(
    model: nn.Module, layer: nn.Linear, batch: Any, forward: Forward | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Return the layer's inputs on a batch (..., d), copied, in dtype, and the targets."""
    calls: list[tuple[Tensor, Tensor, int]] = []

    def keep(_: nn.Module, args: tuple, kwargs: dict, logits: Tensor) -> None:
        x = args[0] if args else kwargs["input"]  # may be changed in place when the model goes on
        calls.append((x.detach().to(dtype, copy=True), logits, version(logits)))

    handle = layer.register_forward_hook(keep, with_kwargs=True)
    try:
        result, y = _pair(model, batch) if forward is None else (None, forward(model, batch))
    finally:
        handle.remove()
    if len(calls) != 1:
        raise ValueError(f"module: expected a layer that is called once in each batch; got {len(calls)} calls")
    ((x, logits, before),) = calls
    same = result is logits or (isinstance(result, Tensor) and torch.equal(result, logits))
    if forward is None and not (same and version(logits) == before):
        raise ValueError(
            "module: expected a layer whose outputs are what model(x) returns, the logits; for others pass "
            f"forward=, which runs the model on a batch and returns its targets; got {_described(result)}"
        )
    if y is not None and not isinstance(y, Tensor):
        raise TypeError(f"batches: expected targets that are a torch.Tensor; got {type(y).__name__}")
    if y is not None and (y.is_meta or y.layout != torch.strided):
        raise TypeError(f"batches: expected targets that are a dense tensor with values; got {y.layout} on {y.device}")
    return x, y


def _pair(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(
            "batches: expected pairs (x, y), or forward=, which runs the model on a batch and returns its targets; "
            f"got {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        )
    return model(batch[0]), batch[1]


def _described(result: Any) -> str:
    return f"a tensor {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
