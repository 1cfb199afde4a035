"""What a module computes, proven by following its forward pass with torch.fx."""

from __future__ import annotations

import operator
import threading
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module

from . import activations
from .activations import Activation

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
_SHAPES = {  # steps that may come before the first linear layer
    *(nn.Flatten, nn.Unflatten),
    *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute, torch.transpose),
    *(operator.getitem, operator.mul, operator.floordiv),  # the last two of sizes, as in x.shape[1] * x.shape[2]
    *("flatten", "reshape", "view", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "size"),
}


@dataclass
class Reshape:
    """The steps of a forward pass before its first linear layer, which change shapes alone."""

    steps: fx.Interpreter

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the first layer is given. Raises ValueError where x has a shape that the steps do not take."""
        if not isinstance(x, Tensor):
            return x
        try:
            return self.steps.run(x)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            cause, shape = str(error).split("\n")[0], tuple(x.shape)
            raise ValueError(f"x: expected a shape that the model takes; got {shape}: {cause}") from None


@dataclass
class Step:
    """A linear layer of a forward pass, its name in the model, and what is applied to its outputs."""

    name: str
    linear: nn.Linear
    activation: Activation | None = None


@dataclass
class Form:
    """f(x) = step(...step(g(x))): linear layers in the order in which they are applied, g changing shapes alone."""

    steps: list[Step] = field(default_factory=list)
    before: Reshape | None = None  # g, None for g(x) = x


def read(model: nn.Module) -> tuple[Form, tuple[int, ...]]:
    """Return the form of a module, and its steps in the order of `model.named_parameters()`.

    Raises TypeError, which says what part of the module is not supported.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module; got {type(model).__name__}")
    check_unwrapped(model)
    for name, module in model.named_modules():
        check_forward("model", name, module)
    form = Form([Step("", model)]) if type(model) is nn.Linear else _follow(model)
    order = [name for name, _ in model.named_modules()]
    registered = sorted(range(len(form.steps)), key=lambda k: order.index(form.steps[k].name))
    _check_parameters(model, [form.steps[k] for k in registered])
    return form, tuple(registered)


def check_unwrapped(model: nn.Module) -> None:
    """Refuse a module that only wraps another one."""
    if (kind := type(model).__name__) in _WRAPPERS:
        raise TypeError(f"model: expected the module itself, model.{_WRAPPERS[kind]}; got a {kind} around it")


def check_forward(argument: str, name: str, module: nn.Module) -> None:
    """Refuse a module whose call is not its class's forward alone: hooks, global ones too, a forward of its own."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        raise TypeError(
            f"{argument}: expected no global forward hooks (torch.nn.modules.module.register_module_forward_hook), "
            "which may change what modules compute; remove them first"
        )
    what = f"{type(module).__name__} {name!r}" if name else type(module).__name__
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if not all(getattr(hook, "__module__", "").startswith("torch.distributed.tensor.") for hook in hooks):
        raise TypeError(
            f"{argument}: expected modules without forward hooks, which may change what they compute; got one on {what}"
        )
    caller = next(kind for kind in type(module).__mro__ if "__call__" in vars(kind))
    if "forward" in vars(module) or caller is not nn.Module:
        raise TypeError(f"{argument}: expected modules with their class's forward; got another one on {what}")


def _check_parameters(model: nn.Module, steps: list[Step]) -> None:
    """Refuse parameters that are tied, shared or not those of the layers."""
    expected = [
        f"{step.name}.{key}" if step.name else key
        for step in steps
        for key, parameter in (("weight", step.linear.weight), ("bias", step.linear.bias))
        if parameter is not None
    ]
    found = [name for name, _ in model.named_parameters()]
    if found != expected:
        raise TypeError(
            f"model: expected the parameters {', '.join(expected)}; got {', '.join(found)} (tied, unused or replaced?)"
        )


# --- following forward --------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """fx changes nn.Module for all threads while it traces: one trace at a time, and other threads see no proxies."""

    _lock = threading.RLock()

    def trace(self, *args, **kwargs):
        with self._lock:
            self._thread = threading.get_ident()
            return super().trace(*args, **kwargs)

    def call_module(self, m, forward, args, kwargs):
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _follow(model: nn.Module) -> Form:
    """Take forward apart: shapes alone up to the first linear layer, then each step takes the one before it."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever forward raises when it is given a symbol
        cause = str(error).split("\n")[0]
        raise _unsupported(f"{type(model).__name__}, whose forward torch.fx cannot follow: {cause}") from error
    modules = dict(model.named_modules())
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    steps = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    first = next((k for k, node in enumerate(steps) if _kind(node, modules) is nn.Linear), None)
    for node in inputs[1:]:
        if node.users or not (node.args or node.target.startswith("*")):  # unused, and with a default
            raise _unsupported(f"a second input, {node.target}")
    for node in steps[:first]:
        if not _passes(node, modules) and _kind(node, modules) not in _SHAPES and not _is_shape(node):
            raise _unsupported(f"{_text(node, modules)} before a linear layer")
    if first is None:
        raise _unsupported(f"{type(model).__name__}, which calls no nn.Linear")
    last = steps[first].all_input_nodes[0]
    form = Form(before=None if last is inputs[0] else _reshape(model, steps[:first], inputs[0], last))
    for node in steps[first:]:
        if node.all_input_nodes != [last]:
            raise _unsupported(f"{_text(node, modules)} of something other than the step before it")
        _take(form, node, modules)
        last = node
    (output,) = (node for node in graph.nodes if node.op == "output")
    if output.args[0] is not last:
        raise _unsupported("a result other than that of the last step")
    if form.steps[-1].activation:
        which = "only" if len(form.steps) == 1 else "last"
        raise _unsupported(f"an activation ({form.steps[-1].activation.name}) after the {which} linear layer")
    for step in form.steps[:-1]:
        step.activation = step.activation or activations.resolve("identity")
    return form


def _take(form: Form, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Add a linear layer to the form, or an activation to its last layer."""
    text, steps = _text(node, modules), form.steps
    if _kind(node, modules) is nn.Linear:
        if any(step.name == node.target for step in steps):
            raise _unsupported(f"{text} twice")
        steps.append(Step(node.target, modules[node.target]))
    elif not _passes(node, modules):
        if node.op == "call_module":
            activation = activations.of_module(modules[node.target])
        else:
            activation = activations.of_call(node.target, node.args, node.kwargs)
        if activation is None:
            raise _unsupported(text)
        if steps[-1].activation:
            raise _unsupported(f"{text} after an activation")
        steps[-1].activation = activation


def _reshape(model: nn.Module, steps: list[fx.Node], x: fx.Node, result: fx.Node) -> Reshape:
    """What computes `result` from the input x."""
    graph, copies = fx.Graph(), {}
    for node in (x, *steps):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[result])
    return Reshape(fx.Interpreter(model, graph=graph))


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> object:
    """What a step calls: a type of module, a function, a method's name; a parameter's or buffer's is None."""
    if node.op == "get_attr":
        return None
    return type(modules[node.target]) if node.op == "call_module" else node.target


def _is_shape(node: fx.Node) -> bool:
    return node.target is getattr and node.args[1:] == ("shape",)


def _passes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a step returns its input. Raises TypeError for dropout that does not."""
    kind = _kind(node, modules)
    if kind in _DROPOUTS:
        p, training = modules[node.target].p, modules[node.target].training
    elif kind is F.dropout:
        p, training = _dropout(*node.args, **node.kwargs)
    else:
        return kind in (nn.Identity, "contiguous")
    if training and p:
        raise TypeError(
            "model: expected dropout in evaluation mode (call model.eval()) or with p = 0; "
            f"got {_text(node, modules)} in training mode with p = {p}"
        )
    return True


def _dropout(input: fx.Node, p: float = 0.5, training: bool = True, inplace: bool = False) -> tuple[float, bool]:
    return p, training


def _text(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """Name a step as its author would."""
    if node.op == "call_module":
        return f"{type(modules[node.target]).__name__} {node.target!r}"
    if node.op == "get_attr":
        return f"the tensor {node.target!r} outside of nn.Linear"
    return f".{node.target}()" if node.op == "call_method" else f"{node.target.__name__}()"


def _unsupported(what: str) -> TypeError:
    return TypeError(
        "model: expected a forward that is a chain of nn.Linear and activations, the last of them nn.Linear (changes "
        f"of shape before, Identity and Dropout in evaluation mode allowed); got {what}, which is not supported "
        "(hessext.head takes the last layer of any model)"
    )
