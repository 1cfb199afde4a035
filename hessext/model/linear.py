"""Linear layers of a model by their names, and what in a model keeps it from being run for their sake."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize

from .modules import check_forward, check_unwrapped, has_no_sizes, is_conv1d
from .pruned import bias_first, parameter_of

_NAMED = 12  # names in a message


class LinearLayer(NamedTuple):
    """An nn.Linear, or a Conv1D as GPT-2 has it: the weight (inputs, outputs) of a linear layer, transposed."""

    name: str  # of the module in the model
    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """The weight (outputs, inputs), detached."""
        weight = parameter_of(self.module, "weight").detach()
        return weight.T if is_conv1d(self.module) else weight

    @property
    def bias(self) -> Tensor | None:
        """The bias (outputs,), detached."""
        bias = parameter_of(self.module, "bias")
        return None if bias is None else bias.detach()

    @property
    def bias_first(self) -> bool:
        """Whether the bias comes first in torch's order of parameters."""
        return bias_first(self.module)


def find(model: nn.Module, wanted: nn.Module | str, argument: str) -> LinearLayer:
    """Return the linear layer of a name ("fc", "fc.weight"), or that is one of the model's modules.

    Raises ValueError where the model has no such module, and TypeError where it is not linear, has hooks, a weight
    that is quantized, or one made of other parameters that is not asked for by its own name.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module; got {type(model).__name__}")
    check_unwrapped(model)
    if not isinstance(wanted, nn.Module | str):
        got = type(wanted).__name__ + _meant(wanted)
        raise TypeError(f"{argument}: expected an nn.Linear or its name, before the data; got {got}")
    modules = dict(model.named_modules(remove_duplicate=False))
    found = next((name for name, m in modules.items() if wanted in (name, m)), None)
    by_weight = found is None and isinstance(wanted, str) and wanted.rpartition(".")[2] == "weight"
    if by_weight:
        found = wanted.rpartition(".")[0]
    if found not in modules:
        got = repr(wanted) if isinstance(wanted, str) else f"another {type(wanted).__name__}"
        listed = _linear_layers(modules)
        such = f"such as {listed}" if listed else "which has none"
        raise ValueError(f"{argument}: expected a linear layer of the model, {such}; got {got}")
    layer = LinearLayer(found, modules[found])
    if not is_linear(layer.module):
        raise TypeError(f"{argument}: {_not_linear(layer, modules)}")
    _check(layer, by_weight, argument)
    return layer


def _meant(wanted: object) -> str:
    """What a value in place of a layer is a sign of."""
    if isinstance(wanted, nn.Parameter):
        return " (name the layer, not its weight)"
    return " (hessext.layer takes several)" if isinstance(wanted, list | tuple) else ""


def _linear_layers(modules: dict[str, nn.Module]) -> str:
    """The last linear layers of a model, as a message has them."""
    names = [repr(name) for name, m in modules.items() if is_linear(m)]
    return ", ".join(names[-_NAMED:])


def _not_linear(layer: LinearLayer, modules: dict[str, nn.Module]) -> str:
    """Why a module is not taken, and what may be."""
    name, module = layer
    parent = modules.get(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention) and parent is not module:
        return (
            f"expected a linear layer that the model calls; {type(parent).__name__} uses the weight of {name!r} "
            "itself, without a call; layers are taken where attention calls an nn.Linear for each projection and "
            "F.scaled_dot_product_attention"
        )
    if has_no_sizes(module):
        reason = "it has no sizes until model(x) is called"
    elif isinstance(module, nn.Linear):
        reason = "a subclass of nn.Linear may compute anything"
    else:
        listed = _linear_layers(modules)
        reason = f"linear layers are {listed}" if listed else "the model has no linear layer"
    kind = type(module).__name__
    if kind == "Linear":  # as of quantized models
        kind = f"{type(module).__module__}.{kind}"
    return f"expected an nn.Linear; got {kind} {name!r}: {reason}"


def is_linear(module: nn.Module) -> bool:
    """Whether a module is an nn.Linear, parametrized or not, or a Conv1D."""
    return parametrize.type_before_parametrizations(module) is nn.Linear or is_conv1d(module)


def _check(layer: LinearLayer, by_weight: bool, argument: str) -> None:
    name, module = layer
    check_forward(argument, name, module)
    if parametrize.is_parametrized(module) and not by_weight:
        made_of = ", ".join(key for key, _ in module.named_parameters() if key.startswith("parametrizations."))
        weight = f"{name}.weight" if name else "weight"
        raise TypeError(
            f"{argument}: expected a layer whose weight is a parameter; that of {name!r} is made of {made_of}. "
            f"{weight!r} asks for the Hessian in the weight itself"
        )
    weight = parameter_of(module, "weight")
    if weight.is_meta:
        raise ValueError(f"{argument}: expected a layer on a CPU or CUDA device; got {name!r} on meta, without values")
    split = hasattr(weight, "placements")  # a DTensor, whose placements are looked at where it is used
    if not weight.is_floating_point() or not (split or type(weight) in (Tensor, nn.Parameter)):
        raise TypeError(
            f"{argument}: expected a weight of floating point numbers; got {weight.dtype} "
            f"({type(weight).__name__}) in {name!r}: dequantize the model first"
        )


def check_tail(modules: list[tuple[str, nn.Module]]) -> None:
    """Refuse modules whose hooks may change outputs or gradients of what comes after a layer."""
    if torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks:
        raise TypeError("model: expected no global backward hooks, which may change gradients; remove them first")
    for name, module in modules:
        check_forward("model", name, module)
        if module._backward_hooks or module._backward_pre_hooks:
            what = f"{type(module).__name__} {name!r}"
            raise TypeError(
                f"model: expected modules without backward hooks, which may change gradients; got one on {what}"
            )


def check_modes(model: nn.Module) -> None:
    """Refuse modules that act on the batch, or at random, because they are in training mode."""
    for name, module in model.named_modules():
        if module.training and _depends_on_mode(module):
            raise ValueError(
                "model: expected evaluation mode (call model.eval()), where dropout and batch normalization do not act "
                f"on the batch; got {type(module).__name__} {name!r} in training mode"
            )


def _depends_on_mode(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout > 0
    return isinstance(module, nn.RReLU) or (isinstance(module, _NormBase) and module.track_running_stats)
