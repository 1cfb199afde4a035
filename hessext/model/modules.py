"""What a module is, and what keeps a call of it from being its class's forward alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .pruned import is_mask

_OLD_NORMS = {WeightNorm: "weight_norm", SpectralNorm: "spectral_norm"}
_WRAPPERS = {  # where the module is in it, and what it is
    "DataParallel": ("module", "DataParallel"),
    "DistributedDataParallel": ("module", "DistributedDataParallel"),
    "OptimizedModule": ("_orig_mod", "torch.compile's OptimizedModule"),
}


def check_unwrapped(model: nn.Module) -> None:
    """Refuse a module that only wraps another one."""
    if (kind := type(model).__name__) in _WRAPPERS:
        inner, what = _WRAPPERS[kind]
        raise TypeError(f"model: expected the module itself, model.{inner}; got {what} around it")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model: expected the nn.Module that torch.jit was given; got {kind}, which it made of that")


def check_not_compiled(model: nn.Module) -> None:
    """Refuse a model with modules from torch.compile in it, which cannot be looked into while they run."""
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule":
            what = f"{_WRAPPERS['OptimizedModule'][1]} {name!r}"
            raise TypeError(
                f"model: expected modules themselves; got {what}, in whose place {name}._orig_mod may stand"
            )


def check_forward(argument: str, name: str, module: nn.Module) -> None:
    """Refuse a module whose call is not its class's forward alone: hooks, global ones too, a forward of its own."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        raise TypeError(
            f"{argument}: expected no global forward hooks (torch.nn.modules.module.register_module_forward_hook), "
            "which may change what modules compute; remove them first"
        )
    what = f"{type(module).__name__} {name!r}" if name else type(module).__name__
    if has_no_sizes(module):
        raise TypeError(f"{argument}: expected layers with sizes, which model(x) gives lazy ones; got {what}")
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    others = [hook for hook in hooks if not is_mask(hook)]
    if not all(getattr(hook, "__module__", "").startswith("torch.distributed.tensor.") for hook in others):
        norm = next((_OLD_NORMS[type(hook)] for hook in others if type(hook) in _OLD_NORMS), None)
        hint = f" of torch.nn.utils.{norm} (remove_{norm} there makes its weight a parameter)" if norm else ""
        raise TypeError(
            f"{argument}: expected modules without forward hooks, which may change what they compute; got one on {what}"
            + hint
        )
    caller = next(kind for kind in type(module).__mro__ if "__call__" in vars(kind))
    if "forward" in vars(module) or caller is not nn.Module:
        raise TypeError(f"{argument}: expected modules with their class's forward; got another one on {what}")


def has_no_sizes(module: nn.Module) -> bool:
    """Whether a lazy module has not seen an input yet, on which it depends what its parameters are."""
    return isinstance(module, LazyModuleMixin) and hasattr(module, "_initialize_hook")


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the Conv1D of transformers, which is not imported for this."""
    if type(module).__name__ != "Conv1D":
        return False
    weight = vars(module).get("weight", module._parameters.get("weight"))  # which torch.fx does not follow
    return isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[1] == getattr(module, "nf", None)
