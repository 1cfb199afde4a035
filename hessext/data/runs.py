"""Running a model on a batch: with tensors in place of its parameters, watched from inside, and left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessext import _hints
from hessext._tensors import Watch
from hessext.model.linear import LinearLayer, check_modes, check_tail
from hessext.model.modules import check_not_compiled
from hessext.model.pruned import masked_kept

from .forward import check_function, default_forward, described, logits_of

Forward = Callable[[nn.Module, Any], Any]  # (model, batch) -> (logits, targets)
Calls = list[tuple[str, nn.Module]]  # names and modules in the order in which their calls end


class _Enough(BaseException):
    """Ends a forward pass whose further results are not needed; no `except Exception` of a model catches it."""


class _Holder(nn.Module):
    """A model with the function that runs it, for `functional_call`."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self._forward = model, forward

    def forward(self, batch: Any) -> Any:
        return self._forward(self.model, batch)


@dataclass
class Record:
    """One pass: the inputs of some layers, leaves of autograd added to their outputs, and what is computed of these."""

    features: list[Tensor]  # of each layer (places, cols), detached and copied
    leaves: list[Tensor]  # zeros (..., K) with requires_grad
    outputs: list[Tensor]  # of each layer (..., K), its leaf added
    logits: Tensor | None  # (..., C); None where the pass ended at the head
    targets: Any
    parameters: list[list[Tensor]]  # of each layer, leaves of autograd for uses after the layer's own call
    head_inputs: list[Tensor]  # (..., d) of each call of the head
    head_outputs: list[Tensor]  # (..., C), leaves of autograd


class Runner:
    """A model and how it is run on a batch: with its own tensors, or with copies of a given dtype or on a device."""

    def __init__(
        self,
        model: nn.Module,
        forward: Forward | None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        check_function(forward)
        check_not_compiled(model)
        self.model, self.dtype, self.device = model, dtype, device
        self._own_forward = forward is None
        self._holder = _Holder(model, forward or default_forward)
        self.watch = Watch(**dict([*model.named_parameters(), *model.named_buffers()]))
        self._moved_once = {p: self._moved(p) for p in model.parameters()}
        self._names = {f"model.{name}": p for name, p in model.named_parameters(remove_duplicate=False)}
        self._at = next(iter(self._moved_once.values())).device

    def _moved(self, t: Tensor) -> Tensor:
        """A tensor elsewhere: floating numbers in the runner's dtype, if it has one of its own."""
        t = t.detach()
        if t.is_inference():
            t = t.clone()
        return t.to(self.device or t.device, self.dtype if self.dtype and t.is_floating_point() else t.dtype)

    def moved(self, batch: Any) -> Any:
        """A batch with its tensors elsewhere; dicts, lists and tuples of tensors are followed."""
        if isinstance(batch, Tensor):
            return self._moved(batch)
        if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
            return type(batch)(map(self.moved, batch))
        if isinstance(batch, dict):
            return {key: self.moved(value) for key, value in batch.items()}
        return batch

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that the model is run with."""
        return list(self._moved_once.values())

    def __call__(self, batch: Any) -> tuple[Tensor, Any]:
        """Logits and targets that forward returns. Raises ValueError where it draws random numbers."""
        check_modes(self.model)
        own = {p: moved.detach() for p, moved in self._moved_once.items()}
        parameters = {name: own[p] for name, p in self._names.items()}
        buffers = {f"model.{name}": self._moved(b).clone() for name, b in self.model.named_buffers()}
        tensors = {**parameters, **buffers}
        with (
            plain_autograd(self._at, torch.is_grad_enabled()),
            _without_fused_kernels(),
            same_random_numbers(self._at),
            masked_kept(self.model),
        ):
            result = functional_call(self._holder, tensors, (self.moved(batch),))
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise TypeError(f"forward: expected a function that returns logits and targets; got {described(result)}")
        logits, y = result
        logits = logits_of(logits)
        return logits, y

    def with_layer(self, batch: Any, layer: LinearLayer, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Any]:
        """The same with a layer that computes weight @ x + bias, and no other use of its parameters changed."""

        def hook(_: nn.Module, args: tuple, kwargs: dict, __: Tensor) -> Tensor:
            return F.linear(input_of(args, kwargs), weight, bias)

        handle = layer.module.register_forward_hook(hook, with_kwargs=True)
        try:
            return self(batch)
        finally:
            handle.remove()

    def look(self, batch: Any) -> Calls:
        """Run without gradients, and note which modules are called."""
        calls: Calls = []
        names = {}
        for name, module in self.model.named_modules():
            names[module] = name
        with ExitStack() as hooks, torch.no_grad():
            for module in names:
                handle = module.register_forward_hook(lambda m, *_: calls.append((names[m], m)))
                hooks.callback(handle.remove)
            self(batch)
        return calls

    def record(
        self, batch: Any, layers: list[LinearLayer], head: LinearLayer | None, argument: str, *, whole: bool
    ) -> Record:
        """Run with gradients for what depends on the layers' outputs alone.

        With `whole`, the pass goes on behind the head's input, where the head's outputs are leaves again.
        """
        features: list[list[Tensor]] = [[] for _ in layers]
        leaves: list[list[Tensor]] = [[] for _ in layers]
        outputs: list[list[Tensor]] = [[] for _ in layers]
        parameters: list[list[Tensor]] = [[] for _ in layers]
        head_inputs: list[Tensor] = []
        head_outputs: list[Tensor] = []

        def note(number: int) -> Callable:
            def hook(module: nn.Module, args: tuple, kwargs: dict, z: Tensor) -> Tensor:
                x = input_of(args, kwargs)
                features[number].append(x.detach().clone().reshape(-1, x.shape[-1]))
                leaf = torch.zeros_like(z, requires_grad=True)
                leaves[number].append(leaf)
                parameters[number] = [p.requires_grad_(True) for p in module.parameters()]
                outputs[number].append((z if z.requires_grad else z.detach()) + leaf)
                return outputs[number][-1].clone()  # in case it is changed in place

            return hook

        def before_head(_: nn.Module, args: tuple, kwargs: dict) -> None:
            head_inputs.append(input_of(args, kwargs).clone())  # the model may change its own in place
            if not whole:
                raise _Enough

        def after_head(_: nn.Module, __: tuple, logits: Tensor) -> Tensor:
            head_outputs.append(logits.detach().requires_grad_())
            return head_outputs[-1].clone()  # in case it is changed in place

        result: Any = (None, None)
        with ExitStack() as hooks, torch.enable_grad():
            for number, layer in enumerate(layers):
                handle = layer.module.register_forward_hook(note(number), with_kwargs=True)
                hooks.callback(handle.remove)
            if head is not None:
                hooks.callback(head.module.register_forward_pre_hook(before_head, with_kwargs=True).remove)
                hooks.callback(head.module.register_forward_hook(after_head).remove)
            with suppress(_Enough):
                result = self(batch)
        for layer, found in zip(layers, features, strict=True):
            if len(found) != 1:
                raise ValueError(
                    f"{argument}: expected a layer that is called once in each batch; got {len(found)} calls of "
                    f"{layer.name!r}{_hints.of_calls(len(found), self._own_forward)}"
                )
        logits, y = result
        flat = ([found[0] for found in some] for some in (features, leaves, outputs))
        return Record(*flat, logits, y, parameters, head_inputs, head_outputs)


def input_of(args: tuple, kwargs: dict) -> Tensor:
    """What a layer is called with, by place or by name."""
    return args[0] if args else next(iter(kwargs.values()))


@contextmanager
def plain_autograd(device: torch.device, on: bool = True) -> Iterator[None]:
    """Autograd, on or off, as it is without autocast and inference mode around."""
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(on),
        torch.autocast(device.type, enabled=False),
    ):
        yield


@contextmanager
def _without_fused_kernels() -> Iterator[None]:
    """Attention in parts: fused kernels have no second derivative, or pass over the layers of a module."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave torch's random numbers as they are, and refuse what draws some: no two passes would be the same."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        before = _random_states(device)
        yield
        after = _random_states(device)
    if not all(map(torch.equal, before, after)):
        raise ValueError(
            "model: expected a forward pass without random numbers (call model.eval(), where dropout is off); "
            "this one draws some"
        )


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.random.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def check_calls(calls: Calls, layers: list[LinearLayer]) -> None:
    """Refuse hooks that act after the first of the layers."""
    modules = [module for _, module in calls]
    first = min((modules.index(layer.module) for layer in layers if layer.module in modules), default=0)
    check_tail(list(dict(calls[first:]).items()))


def head_rows(record: Record) -> Tensor | None:
    """Which of the head's outputs (P, C) the logits (M, C) are, row by row; None where they are anything else.

    Numbers that are pulled back from the rows of the logits arrive at the rows that they are copies of.
    """
    if len(record.head_outputs) != 1 or not record.logits.requires_grad:
        return None
    (outputs,), logits = record.head_outputs, record.logits
    C = outputs.shape[-1]
    if logits.shape[-1] != C:
        return None
    M = logits.numel() // C
    number = torch.arange(1, M + 1, dtype=logits.dtype, device=logits.device).view(*logits.shape[:-1], 1)
    sources = [outputs, *record.leaves]
    back, *others = torch.autograd.grad(logits, sources, number.expand_as(logits), retain_graph=True, allow_unused=True)
    if back is None or any(other is not None for other in others):
        return None
    back = back.reshape(-1, C)
    row = back[:, 0].nonzero()[:, 0]
    order = back[row, 0].argsort()
    row = row[order]
    if not torch.equal(back[row], number.view(-1, 1).expand(-1, C)) or back.count_nonzero() != M * C:
        return None
    return row if torch.equal(outputs.detach().reshape(-1, C)[row], logits.detach().reshape(-1, C)) else None
