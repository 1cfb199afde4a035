"""Activations against float64 autograd, against mpmath in the tails, and at the ends of the number range."""

import math

import mpmath
import pytest
import torch
from torch import nn

from hessext.model.activations import resolve

DTYPES = (torch.float32, torch.float64)
MODULES = {
    "relu": nn.ReLU(inplace=True),
    "leaky_relu": nn.LeakyReLU(),
    "identity": nn.Identity(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "softplus": nn.Softplus(),
}
PARAMETRIZED = (nn.LeakyReLU(0.3), nn.LeakyReLU(-0.5), nn.LeakyReLU(0.0), nn.Softplus(3.0, 2.0), nn.Softplus(0.5, 1))
SMOOTH = {  # name: (definition, limits of a' at -inf and inf)
    "tanh": (mpmath.tanh, (0, 0)),
    "sigmoid": (lambda z: 1 / (1 + mpmath.exp(-z)), (0, 0)),
    "gelu": (lambda z: z * mpmath.ncdf(z), (0, 1)),
    "gelu_tanh": (
        lambda z: z / (1 + mpmath.exp(-mpmath.sqrt(8 / mpmath.pi) * (z + mpmath.mpf("0.044715") * z**3))),
        (0, 1),
    ),
    "silu": (lambda z: z / (1 + mpmath.exp(-z)), (0, 1)),
}


def autograd(module, z):
    """Value and derivatives by autograd in float64; a fresh copy of z, since a module may work in place."""
    z = z.double().requires_grad_()
    value = module(z.clone())
    (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    second = torch.autograd.grad(first.sum(), z)[0] if first.grad_fn is not None else torch.zeros_like(z)
    return value.detach(), first.detach(), second


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("module", [*MODULES.values(), *PARAMETRIZED], ids=repr)
def test_agrees_with_autograd(module, dtype):
    activation = resolve(module)
    z = torch.cat([torch.tensor([0.0, -0.0, 1e-8, -1e-8, 25.0, -25.0]), torch.linspace(-9, 9, 500)]).to(dtype)
    before = z.clone()
    computed = activation.evaluate(z)

    assert torch.equal(z, before)
    assert activation.piecewise_linear == (computed[2] is None)
    for got, truth in zip(computed, autograd(module, z), strict=True):
        if got is None:
            assert not truth.any()
            continue
        assert (got.shape, got.dtype) == (z.shape, z.dtype)
        # float64 allows for autograd's own cancellation, 18 eps in gelu_tanh's first derivative near -7
        allowed = {torch.float32: 2, torch.float64: 32}[dtype] * torch.finfo(dtype).eps
        assert ((got.double() - truth).abs() <= allowed * (1 + truth.abs())).all()
    torch.testing.assert_close(activation.value(z), computed[0])


@pytest.mark.parametrize("name", MODULES)
def test_name_and_module_agree(name):
    z = torch.linspace(-30, 30, 101)
    by_name, by_module = resolve(name), resolve(MODULES[name])
    assert by_name.name == by_module.name == name
    for a, b in zip(by_name.evaluate(z), by_module.evaluate(z), strict=True):
        assert a is b or torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMOOTH)
def test_relative_accuracy_in_the_tails(name, dtype):
    z = torch.tensor([1e-8, 1e-3, 0.5, 3.0, 5.0, 8.0, 10.0, 12.0], dtype=dtype)
    z = torch.cat([-z.flip(0), z])
    tiny, eps = torch.finfo(dtype).tiny, torch.finfo(dtype).eps
    with mpmath.workdps(200):
        truth = [mpmath.taylor(SMOOTH[name][0], mpmath.mpf(value), 2) for value in z.tolist()]
        truth = torch.tensor([[float(a), float(b), float(2 * c)] for a, b, c in truth], dtype=torch.float64)
    for got, true in zip(resolve(name).evaluate(z), truth.unbind(1), strict=True):
        # the exponents grow like z^3 at most, and their rounding is the relative error of an exponential
        error = (got.double() - true).abs() / true.abs()
        allowed = 8 * eps * (1 + z.double().abs() ** 3)
        assert (error <= allowed)[true.abs() > tiny].all()
        assert (got.double().abs() <= 2 * tiny)[true.abs() <= tiny].all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMOOTH)
def test_limits_at_huge_arguments(name, dtype):
    z = torch.tensor([1e3, 1e10, 1e25, torch.finfo(dtype).max], dtype=dtype)
    activation, limits = resolve(name), SMOOTH[name][1]
    for sign, limit in zip((-1, 1), limits, strict=True):
        value, first, second = activation.evaluate(sign * z)
        assert torch.equal(value, activation.value(sign * z.double()).to(dtype))
        assert (first == limit).all()
        assert (second == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_softplus_around_its_threshold(dtype):
    z = torch.tensor([-1e30, -200.0, 19.5, 20.0, 20.5, 1e30], dtype=dtype)
    value, first, second = resolve("softplus").evaluate(z)
    sigmoid = torch.sigmoid(z[:4].double())
    torch.testing.assert_close(value, torch.tensor([0, math.exp(-200), *z[2:]], dtype=dtype))
    torch.testing.assert_close(first, torch.cat([sigmoid, torch.ones(2)]).to(dtype))
    assert (second[2:4] > 0).all()
    assert (second[[0, 4, 5]] == 0).all()


class Subclass(nn.ReLU):
    pass


@pytest.mark.parametrize(
    ("activation", "error", "message"),
    [
        ("swish", ValueError, r"activation: expected one of relu, leaky_relu, .*softplus; got 'swish'"),
        (nn.GELU(approximate="erf"), ValueError, r"activation: expected one of relu, .*; got 'gelu_erf'"),
        (nn.ELU(), TypeError, r"activation: expected .* or of nn\.ReLU, .*nn\.Softplus; got ELU\(alpha=1\.0\)"),
        (Subclass(), TypeError, r"activation: expected one of .*; got Subclass\(\)"),
        (torch.relu, TypeError, r"activation: expected one of .*; got <built-in method relu"),
        (None, TypeError, r"activation: expected one of .*; got None"),
    ],
)
def test_unknown_activation(activation, error, message):
    with pytest.raises(error, match=message):
        resolve(activation)
