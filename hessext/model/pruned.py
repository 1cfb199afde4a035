"""Parameters that torch.nn.utils.prune has masked: before each call, weight = weight_orig * weight_mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod


def is_mask(hook: object) -> bool:
    """Whether a hook only masks a parameter of its module."""
    own = type(hook)
    return isinstance(hook, BasePruningMethod) and all(
        getattr(own, name) is getattr(BasePruningMethod, name) for name in ("__call__", "apply_mask")
    )


def parameter_of(module: nn.Module, name: str) -> Tensor | None:
    """The module's "weight" or "bias" as its next call has it."""
    masks = [hook for hook in module._forward_pre_hooks.values() if is_mask(hook) and hook._tensor_name == name]
    return masks[-1].apply_mask(module) if masks else getattr(module, name)


def bias_first(module: nn.Module) -> bool:
    """Whether the bias comes before the weight in torch's order, as where the weight was registered anew."""
    names = [own_name(name) for name, _ in module.named_parameters(recurse=False)]
    return {"weight", "bias"} <= set(names) and names.index("bias") < names.index("weight")


def own_name(name: str) -> str:
    """The name of the tensor that a parameter of this name stands for: "fc.weight" of "fc.weight_orig"."""
    return name.removesuffix("_orig") if name.endswith(("weight_orig", "bias_orig")) else name


@contextmanager
def masked_kept(model: nn.Module) -> Iterator[None]:
    """Leave the masked tensors, which each call sets anew, as they are."""
    before = [
        (module, hook._tensor_name, getattr(module, hook._tensor_name))
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()
        if is_mask(hook)
    ]
    try:
        yield
    finally:
        for module, name, tensor in before:
            setattr(module, name, tensor)
