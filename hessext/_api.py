"""The three ways to ask for a Hessian."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import _activations, _checks, _losses
from ._hessian import Hessian
from ._losses import Loss, LossLike
from ._problem import Affine, Problem

_COPIED = 64 << 20  # bytes of the largest weight that is copied


def linear(
    weight: Tensor, x: Tensor, y: Tensor | None = None, *, bias: Tensor | None = None, loss: LossLike = "cross_entropy"
) -> Hessian:
    """Hessian of a linear model f = W x + b: equations (3), (5). One layer, "output", C blocks of d (+1 with a bias).

    Args:
        weight: W (C, d), float32 or float64. It and the bias are copied; a weight above 64 MiB, x and y are not and
            must not be changed in place.
        x: inputs (N, d), of weight's dtype and device.
        y: labels (N,) int64, or class probabilities or regression targets (N, C); None where H does not depend on it.
            Of binary cross-entropy: targets (N,) or (N, 1), or labels 0 and 1 (N,), int64 or bool.
        bias: b (C,).
        loss: "cross_entropy" (mean over samples), "binary_cross_entropy" (of the logit's sigmoid, mean over samples;
            C = 1), "mse" (mean over samples of ||f - y||^2, no 1/2), or an nn.CrossEntropyLoss, nn.BCEWithLogitsLoss
            (C = 1) or nn.MSELoss with its own options, whose weights are copied.

    Raises:
        ValueError: a shape, device or value; TypeError: not a tensor, or its dtype. The argument is named.
    """
    return _linear(weight, bias, x, y, loss)


def one_hidden(
    hidden_weight: Tensor,
    output_weight: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    hidden_bias: Tensor | None = None,
    output_bias: Tensor | None = None,
    activation: str | nn.Module = "relu",
    loss: LossLike = "cross_entropy",
) -> Hessian:
    """Hessian of a network f = V act(W x + b) + c: equations (1), (8), (9), (11), (14), (15), (18).

    Layers "hidden" (m blocks of d, +1 with a bias) and "output" (C blocks of m, +1 with a bias).

    Args:
        hidden_weight: W (m, d), float32 or float64. Parameters are copied; weights above 64 MiB, x and y are not and
            must not be changed in place.
        output_weight: V (C, m).
        x: inputs (N, d).
        y: labels (N,) int64, or class probabilities or regression targets (N, C); for binary cross-entropy as in
            `linear`.
        hidden_bias: b (m,).
        output_bias: c (C,).
        activation: "relu", "leaky_relu", "identity", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu", "softplus", or
            torch's module of it. Derivatives at kinks are torch's: relu'(0) = 0.
        loss: as in `linear`.

    Raises:
        ValueError: a shape, device, value or name; TypeError: not a tensor, or its dtype. The argument is named.
    """
    return _one_hidden((hidden_weight, hidden_bias), (output_weight, output_bias), x, y, activation, loss)


def hessian(model: nn.Module, x: Tensor, y: Tensor | None, loss: LossLike = "cross_entropy") -> Hessian:
    """Hessian of a module: nn.Linear, alone or in nn.Sequential, or nn.Sequential(nn.Linear, activation, nn.Linear).

    `layers` are the names of `model.named_parameters()`; a module's name ("0") is its weight and bias together.

    Args:
        model: the module; it is read once, later training does not change the result (above 64 MiB: is an error).
        x: inputs (N, d), of the model's dtype and device.
        y: targets as in `linear`.
        loss: as in `linear`.

    Raises:
        TypeError: a module of another form, with tied parameters or with forward hooks.
        As `linear` and `one_hidden` otherwise.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module; got {type(model).__name__}")
    steps = dict(model.named_children()) if type(model) is nn.Sequential else {"": model}
    modules = list(steps.values())
    affine = [(name, module) for name, module in steps.items() if type(module) is nn.Linear]
    if [module for _, module in affine] != modules[::2] or len(modules) not in (1, 3):
        inside = ", ".join(type(m).__name__ for m in model.children())
        raise TypeError(
            "model: expected nn.Linear, alone or in nn.Sequential, or nn.Sequential(nn.Linear, activation, nn.Linear); "
            f"got {type(model).__name__}({inside})"
        )
    _check_plain(model, affine)
    if len(modules) == 1:
        return _linear(modules[0].weight, modules[0].bias, x, y, loss, {"output": affine[0][0]})
    (hidden, first), (output, last) = affine
    names = {"hidden": hidden, "output": output}
    W, V = (first.weight, first.bias), (last.weight, last.bias)
    return _one_hidden(W, V, x, y, modules[1], loss, names)


def _check_plain(model: nn.Module, affine: list[tuple[str, nn.Linear]]) -> None:
    """Raise TypeError if the parameters or the function are not those of the module's form: tied weights, hooks."""
    expected = {}
    for name, module in affine:
        prefix = f"{name}." if name else ""
        expected |= {prefix + k: p for k, p in (("weight", module.weight), ("bias", module.bias)) if p is not None}
    found = dict(model.named_parameters())
    if found.keys() != expected.keys() or any(found[k] is not p for k, p in expected.items()):
        raise TypeError(
            f"model: expected the parameters {', '.join(expected)}; got {', '.join(found)} (tied or replaced?)"
        )
    if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        raise TypeError("model: expected modules without forward hooks, which may change what they compute")


def _copied(weight: Tensor, bias: Tensor | None) -> Affine:
    """Parameters change in training; the Hessian is that of the moment it was asked for.

    A language model's head is gigabytes: it is not copied, and a change in place is noticed.
    """
    size = weight.numel() * weight.element_size()
    if size <= _COPIED:
        weight = weight.clone(memory_format=torch.contiguous_format)
    elif not weight.is_contiguous():
        _checks.memory(size, "a contiguous copy of the weight", weight.device)
        weight = weight.contiguous()
    return weight, None if bias is None else bias.clone()


def _linear(
    weight: Tensor, bias: Tensor | None, x: Tensor, y: Tensor | None, loss: LossLike, names: dict | None = None
) -> Hessian:
    weight = _checks.matrix("weight", weight)
    bias = None if bias is None else _checks.vector("bias", bias, size=weight.shape[0], like=weight)
    x, y, loss = _data(x, y, loss, weight, weight.shape[0])
    return Hessian(Problem(x, y, loss, _copied(weight, bias), names=names))


def _one_hidden(
    hidden: Affine,
    output: Affine,
    x: Tensor,
    y: Tensor,
    activation: str | nn.Module,
    loss: LossLike,
    names: dict | None = None,
) -> Hessian:
    W = _checks.matrix("hidden_weight", hidden[0])
    V = _checks.matrix("output_weight", output[0], cols=W.shape[0], like=W)
    b = None if hidden[1] is None else _checks.vector("hidden_bias", hidden[1], size=W.shape[0], like=W)
    c = None if output[1] is None else _checks.vector("output_bias", output[1], size=V.shape[0], like=W)
    activation = _activations.resolve(activation)
    x, y, loss = _data(x, y, loss, W, V.shape[0])
    if y is None:
        raise ValueError("y: the cross-layer blocks depend on the targets; got None")
    return Hessian(Problem(x, y, loss, _copied(V, c), _copied(W, b), activation, names))


def _data(x: Tensor, y: Tensor | None, loss: LossLike, weight: Tensor, classes: int) -> tuple[Tensor, Tensor, Loss]:
    x = _checks.matrix("x", x, cols=weight.shape[1], like=weight)
    loss = _losses.resolve(loss)
    y = _checks.targets(y, x.shape[0], classes, loss, x)
    if x.stride(1) != 1 and x.shape[1] > 1:  # the core steps over rows, not over columns
        x = x.contiguous()
    return x, None if y is None else y.contiguous(), loss
