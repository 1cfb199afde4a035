"""What a module computes, proven by following its forward pass with torch.fx."""

from __future__ import annotations

import operator
import threading
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from hessext import _hints
from hessext._tensors import lifted

from . import activations
from .activations import Activation
from .modules import check_forward, check_not_compiled, check_unwrapped, is_conv1d
from .pruned import bias_first, own_name, parameter_of

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_BEFORE = {  # steps that may come before the first linear layer: of shapes, dtypes, devices, numbers and buffers
    *(nn.Flatten, nn.Unflatten),
    *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute, torch.transpose),
    *(operator.getitem, operator.floordiv),  # of sizes, as in x.shape[1] // 2
    *("flatten", "reshape", "view", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "size"),
    *("to", "type", "float", "double", "half", "bfloat16", "cpu", "cuda", "detach", "clone"),
    *(operator.add, operator.sub, operator.mul, operator.truediv),  # as in (x - 0.5) / 0.25
    *(torch.add, torch.sub, torch.mul, torch.div, "add", "sub", "mul", "div"),
}
_PROBABILITIES = {  # what makes them of logits, and what the losses do themselves
    *_hints.PROBABILITIES,
    *(F.softmax, F.log_softmax, F.sigmoid, F.logsigmoid, torch.softmax, torch.log_softmax, torch.sigmoid),
    *("softmax", "log_softmax", "sigmoid"),
}
_ABOUT = ("shape", "dtype", "device", "ndim")  # what may be asked of a tensor before the first linear layer
_PRODUCTS = (operator.mul, torch.mul, "mul")


@dataclass
class Before:
    """The steps of a forward pass before its first linear layer, which have no parameters; buffers they may have."""

    steps: fx.Interpreter  # of x and the buffers
    dtype: torch.dtype  # of the first layer's weight
    buffers: tuple[Tensor, ...] = ()  # that the steps take, such as a mean; copies

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the first layer is given. Raises ValueError where x has a shape that the steps do not take."""
        if not isinstance(x, Tensor):
            return x
        try:
            result = self.steps.run(x, *self.buffers)
            own = isinstance(result, Tensor) and result.dtype == self.dtype
            return result.to(lifted(self.dtype)) if own else result
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            cause, shape = str(error).split("\n")[0], tuple(x.shape)
            raise ValueError(f"x: expected a shape that the model takes; got {shape}: {cause}") from None


@dataclass
class Step:
    """A linear layer of a forward pass, its name in the model, and what is applied to its outputs."""

    name: str
    linear: nn.Linear
    activation: Activation | None = None

    @property
    def bias_first(self) -> bool:
        """Whether the bias comes first in torch's order of parameters."""
        return bias_first(self.linear)

    def parameter(self, part: str) -> Tensor | None:
        """The layer's "weight" or "bias"."""
        return parameter_of(self.linear, part)


@dataclass
class Form:
    """f(x) = step(...step(g(x))): linear layers in the order in which they are applied, g without parameters."""

    steps: list[Step] = field(default_factory=list)
    before: Before | None = None  # g, None for g(x) = x


def read(model: nn.Module) -> tuple[Form, tuple[int, ...]]:
    """Return the form of a module, and its steps in the order of `model.named_parameters()`.

    Raises TypeError, which says what part of the module is not supported.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module; got {type(model).__name__}")
    check_unwrapped(model)
    check_not_compiled(model)
    for name, module in model.named_modules():
        check_forward("model", name, module)
    form = Form([Step("", model)]) if type(model) is nn.Linear else _follow(model)
    order = [name for name, _ in model.named_modules()]
    registered = sorted(range(len(form.steps)), key=lambda k: order.index(form.steps[k].name))
    _check_parameters(model, [form.steps[k] for k in registered])
    return form, tuple(registered)


def _check_parameters(model: nn.Module, steps: list[Step]) -> None:
    """Refuse parameters that are tied, shared or not those of the layers."""
    expected = []
    found = [own_name(name) for name, _ in model.named_parameters()]
    for step in steps:
        names = [f"{step.name}.{key}" if step.name else key for key in ("weight", "bias")]
        names = [name for name, key in zip(names, ("weight", "bias"), strict=True) if step.parameter(key) is not None]
        expected += reversed(names) if step.bias_first else names
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

    def is_leaf_module(self, m, qualified_name):
        return is_conv1d(m) or super().is_leaf_module(m, qualified_name)

    def call_module(self, m, forward, args, kwargs):
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _follow(model: nn.Module) -> Form:
    """Take forward apart: no parameters up to the first linear layer, then each step takes the one before it."""
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
        taken = _passes(node, modules) or _kind(node, modules) in _BEFORE or _is_about(node) or _is_buffer(node, model)
        if not taken:
            raise _unsupported(f"{_text(node, modules)} before a linear layer")
    if first is None:
        raise _unsupported(f"{type(model).__name__}, which calls no nn.Linear")
    last = steps[first].all_input_nodes[0]
    form = Form(
        before=None
        if last is inputs[0]
        else _before(model, steps[:first], inputs[0], last, modules[steps[first].target])
    )
    changed = {}  # what a tensor that was changed in place is afterwards
    for node in steps[first:]:
        taken = [changed.get(one, one) for one in node.all_input_nodes]
        if node is steps[-1] and _kind(node, modules) in _PROBABILITIES:
            raise _unsupported(
                f"{_text(node, modules)} at its end",
                f". {_hints.of_probabilities(model)}; for 'mse' hessext.layer takes it",
            )
        if _gates(node, taken, last, form, modules):
            form.steps[-1].activation = activations.resolve("silu")
        elif taken != [last]:
            raise _unsupported(f"{_text(node, modules)} of something other than the step before it")
        else:
            _take(form, node, modules)
        if _in_place(node):
            changed = {**{one: node for one, now in changed.items() if now is last}, last: node}
        last = node
    (output,) = (node for node in graph.nodes if node.op == "output")
    if changed.get(output.args[0], output.args[0]) is not last:
        raise _unsupported("a result other than that of the last step", picked=_picked(output.args[0], last))
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


def _gates(node: fx.Node, taken: list[fx.Node], last: fx.Node, form: Form, modules: dict[str, nn.Module]) -> bool:
    """Whether a step is z sigmoid(z), as SiLU is written at times: the product of the last step's input and output."""
    if _kind(node, modules) not in _PRODUCTS or len(taken) != 2 or node.kwargs or not form.steps[-1].activation:
        return False
    gate = form.steps[-1].activation.name == "sigmoid" and not _passes(last, modules)
    return gate and {*last.all_input_nodes, last} == set(taken)


def _in_place(node: fx.Node) -> bool:
    """Whether a function or method of torch writes to its argument, by the underscore at the end of its name."""
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return node.op in ("call_function", "call_method") and name.endswith("_") and not name.endswith("__")


def _before(model: nn.Module, steps: list[fx.Node], x: fx.Node, result: fx.Node, linear: nn.Linear) -> Before:
    """What computes `result` from the input x."""
    buffers = {node: operator.attrgetter(node.target)(model) for node in steps if _is_buffer(node, model)}
    graph = fx.Graph()
    copies = {x: graph.node_copy(x)} | {node: graph.placeholder(f"buffer_{k}") for k, node in enumerate(buffers)}
    for node in steps:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[result])
    own = tuple(t.detach().clone() for t in buffers.values())
    return Before(fx.Interpreter(model, graph=graph), linear.weight.dtype, own)


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> object:
    """What a step calls: a type of module, a function, a method's name; a parameter's or buffer's is None."""
    if node.op == "get_attr":
        return None
    return type(modules[node.target]) if node.op == "call_module" else node.target


def _is_buffer(node: fx.Node, model: nn.Module) -> bool:
    """Whether a step is a tensor of the model that is no parameter."""
    value = operator.attrgetter(node.target)(model) if node.op == "get_attr" else None
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter)


def _is_about(node: fx.Node) -> bool:
    """Whether a step asks for a tensor's shape, dtype or device, or is a tensor that is asked for nothing else."""
    if node.op == "get_attr":
        return all(map(_is_about, node.users))
    return node.target is getattr and node.args[1] in _ABOUT


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
        module = modules[node.target]
        if parametrize.is_parametrized(module):
            kind = parametrize.type_before_parametrizations(module).__name__
            takes = f" (hessext.layer takes {node.target + '.weight'!r})" if kind == "Linear" else ""
            return f"{kind} {node.target!r}, whose weight is made of other parameters{takes}"
        return f"{type(module).__name__} {node.target!r}"
    if node.op == "get_attr":
        return f"the tensor {node.target!r} outside of nn.Linear"
    return f".{node.target}()" if node.op == "call_method" else f"{node.target.__name__}()"


def _picked(result: object, last: fx.Node) -> str:
    """How the last step is taken out of a dict, list or tuple that a model returns, for calls that take forward=."""
    places = (
        result.items() if isinstance(result, dict) else enumerate(result) if isinstance(result, tuple | list) else ()
    )
    found = [f"model(batch[0])[{key!r}]" for key, value in places if value is last]
    return f", with {_hints.forward(found[0], 'batch[1]')}" if found else ""


def _unsupported(what: str, why: str = ", which is not supported", picked: str = "") -> TypeError:
    return TypeError(
        "model: expected a forward that is a chain of nn.Linear and activations, the last of them nn.Linear (changes "
        f"of shape and dtype before, Identity and Dropout in evaluation mode allowed); got {what}{why} (hessext.layer "
        f"takes a linear layer of any model, hessext.head its last one{picked})"
    )
