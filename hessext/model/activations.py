"""Element-wise activations with their first two derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Derivatives = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Activation:
    """An element-wise activation a(z).

    `value(z)` is torch's own differentiable function; `evaluate(z)` gives (a, a', a'') in closed form, like z
    each, with a'' = None where it vanishes identically. At kinks a' is what torch's autograd takes.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    evaluate: Callable[[Tensor], Derivatives]
    piecewise_linear: bool = False  # a'' is identically zero
    parameters: tuple[float, ...] = ()  # of leaky_relu and softplus

    def through(self, slope: Tensor, t: Tensor) -> Tensor:
        """a'(z) t for slopes a'(z). Where a relu is off it is 0, even if t has overflowed, as in torch's backward."""
        return torch.ops.aten.threshold_backward(t, slope, 0) if self.name == "relu" else slope * t

    def __reduce__(self) -> tuple:
        return named, (self.name, *self.parameters)


# --- piecewise linear ---------------------------------------------------------------------------------------


def _relu(z: Tensor) -> Derivatives:
    value = z.relu()
    return value, value.sign(), None


def _leaky_relu(slope: float = 0.01) -> Activation:
    def evaluate(z: Tensor) -> Derivatives:
        return F.leaky_relu(z, slope), torch.full_like(z, slope).masked_fill_(z > 0, 1.0), None

    return Activation("leaky_relu", lambda z: F.leaky_relu(z, slope), evaluate, True, (slope,))


# --- smooth -------------------------------------------------------------------------------------------------
# 1 - tanh^2 loses every digit in the tails, so sech^2 is formed from cosh, and 1 - 2 sigmoid by
# tanh. Where cosh or a square overflows, its reciprocal is the right limit, 0.


def _tanh(z: Tensor) -> Derivatives:
    value = z.tanh()
    first = z.cosh().pow_(-2)
    return value, first, (value * first).mul_(-2)


def _sigmoid(z: Tensor) -> Derivatives:
    half = z * 0.5
    first = half.cosh().pow_(-2).mul_(0.25)
    return z.sigmoid(), first, half.tanh().mul_(first).neg_()


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    def evaluate(z: Tensor) -> Derivatives:
        scaled = z * beta
        linear = scaled > threshold  # where torch returns z itself
        first, second, _ = _sigmoid(scaled)
        first.masked_fill_(linear, 1)
        return F.softplus(z, beta, threshold), first, second.mul_(beta).masked_fill_(linear, 0)

    return Activation("softplus", lambda z: F.softplus(z, beta, threshold), evaluate, False, (beta, threshold))


def _normal(z: Tensor) -> Derivatives:
    """Evaluate the normal distribution function; erfc keeps the lower tail that 1 + erf cancels."""
    first = z.square().mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    return (z * -math.sqrt(0.5)).erfc_().mul_(0.5), first, (z * first).neg_()


def _cubic_sigmoid(z: Tensor) -> Derivatives:
    """Evaluate sigmoid(g), g = k (z + 0.044715 z^3), k = sqrt(8 / pi): gelu_tanh's 0.5 + 0.5 tanh(g / 2)."""
    z = z.clamp(-40, 40)  # both derivatives are 0 from there on, and g' would become inf
    k, square = math.sqrt(8 / math.pi), z.square()
    value, first, second = _sigmoid((square * 0.044715).add_(1).mul_(z).mul_(k))
    slope = square.mul_(3 * 0.044715).add_(1).mul_(k)
    second.mul_(slope).mul_(slope).addcmul_(first, z, value=6 * 0.044715 * k)
    return value, first.mul_(slope), second


def _gated(gate: Callable[[Tensor], Derivatives]) -> Callable[[Tensor], Derivatives]:
    """Gated unit z G(z): its derivatives are G + z G' and 2 G' + z G''."""

    def evaluate(z: Tensor) -> Derivatives:
        value, first, second = gate(z)
        return z * value, value.addcmul_(z, first), (z * second).add_(first, alpha=2)

    return evaluate


# --- lookup -------------------------------------------------------------------------------------------------

_BY_NAME = {
    activation.name: activation
    for activation in (
        Activation("relu", F.relu, _relu, piecewise_linear=True),
        _leaky_relu(),
        Activation("identity", lambda z: z, lambda z: (z, torch.ones_like(z), None), piecewise_linear=True),
        Activation("tanh", torch.tanh, _tanh),
        Activation("sigmoid", torch.sigmoid, _sigmoid),
        Activation("gelu", F.gelu, _gated(_normal)),
        Activation("gelu_tanh", lambda z: F.gelu(z, approximate="tanh"), _gated(_cubic_sigmoid)),
        Activation("silu", F.silu, _gated(_sigmoid)),
        _softplus(),
    )
}


def named(name: str, *parameters: float) -> Activation:
    """The activation of a pickle."""
    make = {"leaky_relu": _leaky_relu, "softplus": _softplus}.get(name)
    return make(*parameters) if make else _BY_NAME[name]


def _gelu(approximate: str = "none") -> Activation:
    return resolve("gelu" if approximate == "none" else f"gelu_{approximate}")


_BY_MODULE: dict[type[nn.Module], Callable[..., Activation]] = {
    nn.ReLU: lambda module: _BY_NAME["relu"],
    nn.LeakyReLU: lambda module: _leaky_relu(module.negative_slope),
    nn.Identity: lambda module: _BY_NAME["identity"],
    nn.Tanh: lambda module: _BY_NAME["tanh"],
    nn.Sigmoid: lambda module: _BY_NAME["sigmoid"],
    nn.GELU: lambda module: _gelu(module.approximate),
    nn.SiLU: lambda module: _BY_NAME["silu"],
    nn.Softplus: lambda module: _softplus(module.beta, module.threshold),
}

_BY_CALL: dict[Callable | str, Callable[..., Activation]] = {  # torch's functions and methods, with their arguments
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), lambda input, inplace=False: _BY_NAME["relu"]),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), lambda input: _BY_NAME["tanh"]),
    **dict.fromkeys(
        (F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"), lambda input: _BY_NAME["sigmoid"]
    ),
    F.leaky_relu: lambda input, negative_slope=0.01, inplace=False: _leaky_relu(negative_slope),
    F.leaky_relu_: lambda input, negative_slope=0.01: _leaky_relu(negative_slope),
    F.gelu: lambda input, approximate="none": _gelu(approximate),
    F.silu: lambda input, inplace=False: _BY_NAME["silu"],
    F.softplus: lambda input, beta=1.0, threshold=20.0: _softplus(beta, threshold),
}


def of_module(module: nn.Module) -> Activation | None:
    """Return the Activation of a torch module with its own parameters, None for others and for subclasses."""
    make = _BY_MODULE.get(type(module))
    return None if make is None else make(module)


def of_call(target: Callable | str, args: tuple, kwargs: dict) -> Activation | None:
    """Return the Activation of a call of torch's function, or method of this name, None for others."""
    make = _BY_CALL.get(target)
    return None if make is None else make(*args, **kwargs)


def is_activation(value: object) -> bool:
    """Whether a value is the name of an activation or a torch module of one."""
    return value in _BY_NAME if isinstance(value, str) else type(value) in _BY_MODULE


def resolve(activation: str | nn.Module, name: str = "activation") -> Activation:
    """Return the Activation of a name or of a torch module, whose own parameters then hold.

    Raises ValueError for an unknown name and TypeError for what is not exactly one of the known modules: a
    subclass may compute anything. `name` is the argument's.
    """
    if isinstance(activation, str):
        if activation in _BY_NAME:
            return _BY_NAME[activation]
        raise ValueError(f"{name}: expected one of {', '.join(_BY_NAME)}; got {activation!r}")
    found = of_module(activation)
    if found is not None:
        return found
    modules = ", ".join(f"nn.{module.__name__}" for module in _BY_MODULE)
    raise TypeError(f"{name}: expected one of {', '.join(_BY_NAME)} or of {modules}; got {activation!r}")
