"""Alternatives to closed forms: automatic differentiation, and scikit-learn for linear models.

Automatic differentiation gives rows of the Hessian, each as a Hessian-vector product. Where all rows would take
minutes, a seeded sample of them is timed and extrapolated. Work that is done once for all rows is not timed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .cases import Case, Problem
from .method import Method

WHOLE = 256  # up to this many rows, all of them are computed

Products = Callable[[Tensor], Tensor]  # from rows v (k, P) to rows H v (k, P)
Prepare = Callable[[], Products]  # does the work that all products share


@dataclass(frozen=True)
class Peer:
    """Another way to compute the same numbers. `install` tells how to install a missing `module`."""

    make: Callable[[Problem], Method]
    applies: Callable[[Case, str], bool]  # to a case on a device
    module: str = "torch"
    install: str = ""

    @property
    def missing(self) -> str:
        """Why it cannot run, or an empty text."""
        return "" if find_spec(self.module) else f"{self.module} is not installed: {self.install}"


# ------------------------------------------------------------------------------------------ automatic differentiation


class _Flat:
    """The loss as a function of one vector: the parameters of the layers that the case is about, in torch's order."""

    def __init__(self, problem: Problem) -> None:
        part = problem.case.part
        layers = [name for name in problem.weights if part in ("all", "cross", name)]
        self._problem, self.layers = problem, layers
        self._sizes = [problem.weights[name].numel() for name in layers]
        self.start = torch.cat([problem.weights[name].reshape(-1) for name in layers])

    def weights(self, flat: Tensor) -> dict[str, Tensor]:
        """The weights of all layers."""
        weights = self._problem.weights
        pieces = zip(self.layers, flat.split(self._sizes), strict=True)
        return weights | {name: piece.view(weights[name].shape) for name, piece in pieces}

    def loss(self, flat: Tensor) -> Tensor:
        """Mean over samples of the cross-entropy, or of ||f - y||^2."""
        x, y = self._problem.x, self._problem.y
        *hidden, output = self.weights(flat).values()
        for weight in hidden:
            x = (x @ weight.T).relu()
        f = x @ output.T
        return (f - y).square().sum() / len(f) if self._problem.case.loss == "mse" else cross_entropy(f, y)


def _torch_func(problem: Problem) -> Prepare:
    """Forward over reverse mode, as in torch.func.hessian, with rows in chunks."""
    flat = _Flat(problem)

    def product(v: Tensor) -> Tensor:
        return torch.func.jvp(torch.func.grad(flat.loss), (flat.start,), (v,))[1]

    return lambda: lambda v: torch.func.vmap(product)(v) if len(v) > 1 else product(v[0])[None]


def _double_backward(problem: Problem) -> Prepare:
    """The gradient with its graph once, then one backward pass per row."""
    flat = _Flat(problem)

    def prepare() -> Products:
        start = flat.start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(flat.loss(start), start, create_graph=True)
        return lambda v: torch.stack([torch.autograd.grad(gradient, start, e, retain_graph=True)[0] for e in v])

    return prepare


def _curvlinops(problem: Problem) -> Prepare:
    """HessianLinearOperator @ V."""
    from curvlinops import HessianLinearOperator

    case = problem.case
    layers = {}
    for name, weight in problem.weights.items():
        layers[name] = nn.Linear(*reversed(weight.shape), bias=False, device=weight.device, dtype=weight.dtype)
        layers[name].weight.data = weight
    *hidden, output = layers.values()
    model = nn.Sequential(*(step for layer in hidden for step in (layer, nn.ReLU())), output)
    loss, scale = (nn.MSELoss(), case.sizes.C) if case.loss == "mse" else (nn.CrossEntropyLoss(), 1)  # mean over C, too
    parameters = [layer.weight for name, layer in layers.items() if case.part in ("all", "cross", name)]

    def prepare() -> Products:
        data = [(problem.x, problem.y)]
        operator = HessianLinearOperator(model, loss, parameters, data, check_deterministic=False)
        return lambda v: (operator @ v.T).T * scale

    return prepare


def _jax(problem: Problem) -> Prepare:
    """Forward over reverse mode, compiled, as in jax.hessian, with rows in chunks."""
    import jax
    from jax import numpy as jnp

    jax.config.update("jax_enable_x64", True)  # float32 stays float32
    jax.config.update("jax_default_matmul_precision", "highest")  # and is not TF32
    case = problem.case
    flat = _Flat(problem)
    names = list(problem.weights)

    def as_jax(t: Tensor) -> jax.Array:
        return jax.dlpack.from_dlpack(t.detach().contiguous())

    def loss(parameters: list[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        *hidden, output = parameters
        for weight in hidden:
            x = jax.nn.relu(x @ weight.T)
        f = x @ output.T
        if case.loss == "mse":
            return ((f - y) ** 2).sum() / len(f)
        return -jnp.take_along_axis(jax.nn.log_softmax(f), y[:, None], 1).mean()

    @functools.partial(jax.jit, static_argnums=3)
    def products(v: jax.Array, parameters: list[jax.Array], data: tuple, moved: tuple[int, ...]) -> jax.Array:
        ends = [sum(parameters[k].size for k in moved[: n + 1]) for n in range(len(moved))]

        def some_loss(some: list[jax.Array]) -> jax.Array:
            return loss([some[moved.index(k)] if k in moved else p for k, p in enumerate(parameters)], *data)

        def product(v: jax.Array) -> jax.Array:
            pieces = jnp.split(v, ends[:-1])
            some = [parameters[k] for k in moved]
            tangent = [piece.reshape(p.shape) for piece, p in zip(pieces, some, strict=True)]
            result = jax.jvp(jax.grad(some_loss), (some,), (tangent,))[1]
            return jnp.concatenate([r.ravel() for r in result])

        return jax.vmap(product)(v)

    moved = tuple(names.index(name) for name in flat.layers)
    parameters, data = [as_jax(problem.weights[name]) for name in names], (as_jax(problem.x), as_jax(problem.y))
    return lambda: lambda v: torch.from_dlpack(products(as_jax(v), parameters, data, moved).block_until_ready())


def _rows(prepare: Callable[[Problem], Prepare], sampled: int, problem: Problem) -> Method:
    """A method from Hessian-vector products: H @ v, or all rows of the result, or `sampled` of them."""
    case, ready = problem.case, prepare(problem)
    if case.quantity == "product":
        return Method(lambda: ready()(problem.vector[None])[0])
    *_, cols = case.result_shape
    total = prod(case.result_shape) // cols
    rows = torch.arange(total)
    if total > WHOLE:
        rows = torch.randperm(total, generator=torch.Generator().manual_seed(1))[:sampled].sort().values
    width = sum(case.parameters.values()) if case.part in ("all", "cross") else total
    basis = torch.zeros(len(rows), width, dtype=problem.x.dtype).scatter_(1, rows[:, None], 1.0).to(problem.device)
    first = rows // cols * cols if case.quantity == "diagonal blocks" else torch.full_like(rows, width - cols)
    columns = (first[:, None] + torch.arange(cols)).to(problem.device)
    products = ready()
    chunks = list(zip(basis.split(sampled), columns.split(sampled), strict=True))

    def call() -> Tensor:
        found = [products(chunk).gather(1, some) for chunk, some in chunks]
        return found[0] if len(found) == 1 else torch.cat(found)

    if len(rows) == total:
        return Method(call, in_order=lambda result: result.view(case.result_shape))
    return Method(call, f"{len(rows)} of {total} rows, extrapolated", rows, total / len(rows))


# ------------------------------------------------------------------------------------------------------- scikit-learn


def _sklearn(problem: Problem) -> Method:
    """The Hessian of LogisticRegression(solver="newton-cholesky"), in the order of features, then classes."""
    from sklearn._loss import HalfMultinomialLoss
    from sklearn.linear_model._linear_loss import LinearModelLoss

    C, d = problem.output_weight.shape
    weight, x = problem.output_weight.numpy(), problem.x.numpy()
    y = problem.y.to(problem.x.dtype).numpy()
    loss = LinearModelLoss(base_loss=HalfMultinomialLoss(n_classes=C), fit_intercept=False)

    def call() -> Tensor:
        _, hessian, _ = loss.gradient_hessian(weight, x, y, n_threads=torch.get_num_threads())
        return torch.from_numpy(hessian)

    note = "and its gradient"
    return Method(call, note, in_order=lambda h: h.view(d, C, d, C).permute(1, 0, 3, 2).reshape(C * d, C * d))


def _any_rows(case: Case, device: str) -> bool:
    return case.quantity in ("dense", "product", "diagonal blocks")


def _linear_cpu(case: Case, device: str) -> bool:
    return not case.sizes.m and (case.quantity, device) == ("dense", "cpu")


def _jax_there(case: Case, device: str) -> bool:
    if not find_spec("jax") or not _any_rows(case, device):
        return _any_rows(case, device)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch uses the GPU, too
    import jax

    return device in ("cpu", "cuda") and any(d.platform == {"cuda": "gpu"}.get(device, device) for d in jax.devices())


def _autograd(prepare: Callable[[Problem], Prepare], rows: int, *module: str, applies=_any_rows) -> Peer:
    return Peer(functools.partial(_rows, prepare, rows), applies, *module)


NO_DEPS = "pip install --no-deps curvlinops-for-pytorch backpack-for-pytorch einconv einops linear_operator unfoldNd"
PEERS = {
    "torch.func.hessian": _autograd(_torch_func, 16),
    "double backward": _autograd(_double_backward, 8),
    "curvlinops": _autograd(_curvlinops, 16, "curvlinops", NO_DEPS),
    "jax.hessian": _autograd(_jax, 16, "jax", "pip install jax", applies=_jax_there),
    "scikit-learn": Peer(_sklearn, _linear_cpu, "sklearn", "pip install scikit-learn"),
}
