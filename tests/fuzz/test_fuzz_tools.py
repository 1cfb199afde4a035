"""Hypothesis on what takes or hands on a Hessian: modules, heads, autograd, scipy, linear algebra, pickles."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.arguments import anything, outcome
from helpers.cases import DTYPES, make_inputs
from helpers.fuzzed import cases, close, off_kinks
from helpers.reference import blocks, dense
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import hessext
from hessext import autograd

some_cases, some_dtypes = cases(), st.sampled_from(DTYPES)


def made(case, dtype):
    """Inputs off every kink."""
    inputs = make_inputs.__wrapped__(case, dtype)
    assume(off_kinks(inputs))
    return inputs


# --- modules -----------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,
    "leaky_relu": F.leaky_relu,
    "identity": lambda z: z,
}


class Functional(nn.Module):
    """The layers of a Sequential, called in a forward with functions."""

    def __init__(self, model, function):
        super().__init__()
        self.first, self.last, self.function = model[0], model[2], function

    def forward(self, x):
        z = self.first(x.flatten(1))
        return self.last(F.dropout(self.function(z), 0.3, self.training))


@st.composite
def same_function(draw, model, name):
    """A module that computes what the model does, in evaluation mode, of images (N, 1, d)."""
    if isinstance(model, nn.Sequential) and name in FUNCTIONS and draw(st.booleans()):
        return Functional(model, FUNCTIONS[name]).eval()
    steps = [nn.Flatten(), *(model if isinstance(model, nn.Sequential) else [model])]
    for _ in range(draw(st.integers(0, 4))):
        k = draw(st.integers(0, len(steps) - 1))
        way = draw(st.sampled_from(["dropout", "identity", "nested"]))
        if way == "nested":
            end = draw(st.integers(k + 1, len(steps)))
            steps[k:end] = [nn.Sequential(*steps[k:end])]
        else:
            steps.insert(k, nn.Dropout(0.5) if way == "dropout" else nn.Identity())
    return nn.Sequential(*steps).eval()


@given(some_cases, some_dtypes, st.data())
def test_modules_in_any_form(case, dtype, data):
    inputs = made(case, dtype)
    model = data.draw(same_function(inputs.model(), case.activation if case.hidden else ""))
    H = hessext.hessian(model, inputs.x[:, None], inputs.y, loss=inputs.loss)
    expected = dense(blocks(inputs.lift()), inputs)
    assert H.layers == tuple(name for name, _ in model.named_parameters())
    assert close(H.dense(), expected, expected.norm(), dtype)


@given(some_cases, some_dtypes, st.data())
def test_heads_of_any_batches(case, dtype, data):
    inputs = made(replace(case, hidden=None, activation="relu"), dtype)
    N = len(inputs.x)
    model = nn.Sequential(data.draw(st.sampled_from([nn.Tanh(), nn.Dropout(), nn.Sequential()])), inputs.model()).eval()
    cuts = sorted(data.draw(st.sets(st.integers(1, N - 1), max_size=3))) if N > 1 else []
    parts = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, N], strict=True)]
    batches = [(inputs.x[part], inputs.y[part]) for part in parts]
    if data.draw(st.booleans()) and "b" not in case.loss[0]:  # positions
        batches = [(x[:, None], y[:, None]) for x, y in batches]
    H = hessext.head(model, data.draw(st.sampled_from(["1", model[1]])), iter(batches), inputs.loss)
    inputs = replace(inputs, x=model[0](inputs.x))
    expected = dense(blocks(inputs.lift()), inputs)
    assert close(H.dense(), expected, expected.norm(), dtype)


@given(anything, anything, anything, st.sampled_from(["cross_entropy", "mse", "?"]))
def test_junk_for_heads_and_modules(model, module, batch, loss):
    layer, x = nn.Linear(2, 3).eval(), torch.ones(4, 2)
    names = ("model", "module", "batches", "loss", "x", "y")
    for arguments in ((model, module, [batch]), (layer, module, [batch]), (layer, layer, [(x, batch)])):
        outcome(lambda a=arguments: hessext.head(*a, loss), *names)
    for arguments in ((model, x, batch), (layer, batch, torch.zeros(4).long()), (layer, x, batch)):
        outcome(lambda a=arguments: hessext.hessian(*a, loss), *names)


# --- autograd ----------------------------------------------------------------------------------------------------


@given(some_cases, st.data())
def test_autograd_of_modules_and_of_hessians(case, data):
    inputs = made(case, torch.float64)
    expected, chunk = dense(blocks(inputs), inputs), data.draw(st.one_of(st.none(), st.integers(1, 2**70)))
    got = autograd.hessian(inputs.model(), inputs.x, inputs.y, loss=inputs.loss, chunk_size=chunk)
    assert close(got, expected, expected.norm(), torch.float64)
    H, term = inputs.hessian(), data.draw(st.sampled_from(["full", "gauss_newton", "residual"]))
    H = H if term == "full" else getattr(H, term)()
    assert close(autograd.hessian(H), dense(blocks(inputs, term), inputs), expected.norm(), torch.float64)


@given(some_cases, some_dtypes, st.integers(0, 2**40), st.integers(1, 5), st.integers(-(2**70), 2**70))
def test_checks_pass_whole_and_sampled(case, dtype, max_bytes, samples, seed):
    report = autograd.check(made(case, dtype).hessian(), max_bytes=max_bytes, samples=samples, seed=seed, rtol=1e-4)
    assert report.passed, report


@given(anything, anything, anything, st.sampled_from(["cross_entropy", "mse", None]), st.integers(0, 4))
def test_junk_for_autograd(first, second, third, loss, which):
    H, layer, x = hessext.linear(torch.ones(3, 2), torch.ones(4, 2)), nn.Linear(2, 3), torch.ones(4, 2)
    given = [first, second, third], [layer, first, second], [layer, x, first], [H, first, second], [layer, x, x.long()]
    names = ("target", "x, y", "x", "y", "loss", "dtype", "chunk_size")
    outcome(lambda: autograd.hessian(*given[which], loss=loss), *names)
    outcome(lambda: autograd.hessian(H, dtype=first), *names)
    outcome(lambda: autograd.hessian(H, chunk_size=second), *names)
    options = {"rtol": first, "max_bytes": second, "samples": third, "seed": first}
    for name, value in options.items():
        outcome(lambda o={name: value}: autograd.check(H, **o), name)
    outcome(lambda: autograd.check(first, **options), "H", *options)


# --- linear algebra and copies -----------------------------------------------------------------------------------


def array(n, cols, order, kind):
    """A vector (n,) or a matrix (n, cols) in a layout and a dtype that numpy has."""
    v = np.linspace(0, 2, n * max(1, cols)).round(2).reshape((n, cols) if cols else n).astype(kind)
    return {"C": v, "F": np.asfortranarray(v), "reversed": v[::-1], "skipped": np.repeat(v, 2, 0)[::2]}[order]


KINDS = ["f4", "f8", ">f8", "f2", "i4", "u1", "?", "c8", "c16"]
ORDERS = ["C", "F", "reversed", "skipped"]


@given(some_cases, some_dtypes, st.integers(0, 3), st.sampled_from(ORDERS), st.sampled_from(KINDS), st.data())
def test_operators_for_scipy(case, dtype, cols, order, kind, data):
    H = make_inputs.__wrapped__(case, dtype).hessian()
    A = data.draw(st.sampled_from([H, *(H[r, c] for r in H.layers for c in H.layers)]))
    operator, matrix = A.to_scipy(), A.dense().double().numpy()
    for apply, M in ((operator, matrix), (operator.T, matrix.T), (operator.H, matrix.T)):
        v = array(M.shape[1], cols, order, kind)
        if v.dtype.kind == "c":
            with pytest.raises(TypeError, match="complex"):
                apply @ v
            continue
        got, expected = apply @ v, M @ v.astype(float)
        assert got.dtype == operator.dtype
        scale = np.linalg.norm(matrix) * max(1, np.linalg.norm(v.astype(float)))
        assert close(torch.from_numpy(got), torch.from_numpy(expected), scale, dtype)


@given(some_cases, some_dtypes, st.floats(1e-2, 1e6), st.integers(0, 3), st.data())
def test_linear_algebra_of_diagonal_blocks(case, dtype, damping, cols, data):
    H = make_inputs.__wrapped__(case, dtype).hessian()
    B = H[data.draw(st.sampled_from(H.layers))]
    (K, _), (s, _), parts = B.grid, B.block_shape, B.diagonal_blocks().double()
    v = torch.linspace(-1, 1, K * s * max(1, cols), dtype=dtype).reshape((K * s, cols) if cols else K * s)
    values, vectors = (t.double() for t in B.eigh_blocks())
    assert close(vectors @ (values[..., None] * vectors.mT), parts, 10 * parts.norm(), dtype)
    damping += 2 * max(0.0, -values.min().item())  # positive definite, far from singular
    u = B.solve_block_diagonal(v, damping).double()
    left = (parts @ u.reshape(K, s, -1)).reshape(v.shape) + damping * u
    assert close(left, v.double(), 100 * (parts.norm() + damping) * u.norm(), dtype)


@given(anything, anything)
def test_junk_for_linear_algebra(v, damping):
    B = hessext.linear(torch.eye(3, 2), torch.eye(4, 2))["output"]
    for arguments in ((v, 1.0), (torch.ones(6), damping), (v, damping)):
        outcome(lambda a=arguments: B.solve_block_diagonal(*a), "v", "damping")


@given(some_cases, some_dtypes)
def test_pickles(case, dtype):
    H = make_inputs.__wrapped__(case, dtype).hessian()
    for A in (H, H.residual(), H[H.layers[0], H.layers[-1]]):
        assert torch.equal(pickle.loads(pickle.dumps(A)).dense(), A.dense())
    assert torch.equal(H.to(torch.float64).to(dtype).dense(), H.dense())
