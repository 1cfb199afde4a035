"""First step of the proof: float64 autograd (torch.func) and precise differences prove tests/helpers/reference.py."""

from __future__ import annotations

import mpmath
import pytest
import torch
from helpers import deep, reference
from helpers.cases import HIDDEN, LINEAR, PEAKED, SMALL, Case, Inputs, make_inputs
from torch.func import functional_call, grad, jacrev
from torch.nn import functional as F


def loss_value(inputs: Inputs | deep.DeepInputs, logits: torch.Tensor) -> torch.Tensor:
    """The loss as torch itself defines it; "mse" is the paper's mean of squared norms."""
    if inputs.loss == "cross_entropy":
        return F.cross_entropy(logits, inputs.y)
    if inputs.loss == "mse":
        y = F.one_hot(inputs.y, logits.shape[1]) if inputs.y.dtype == torch.int64 else inputs.y
        return (logits - y).square().sum(1).mean()
    if inputs.loss == "binary_cross_entropy":
        return F.binary_cross_entropy_with_logits(logits.view(inputs.y.shape), inputs.y.to(logits.dtype))
    return inputs.loss(logits, inputs.y)


def autograd_terms(inputs: Inputs | deep.DeepInputs) -> dict[str, torch.Tensor]:
    """The dense Hessian, its Gauss-Newton part J^T B J and the rest, by torch.func alone."""
    model = inputs.model()
    parameters = {k: v.detach() for k, v in model.named_parameters()}
    shapes, sizes = [v.shape for v in parameters.values()], [v.numel() for v in parameters.values()]

    def logits(flat):
        parts = [p.view(s) for p, s in zip(flat.split(sizes), shapes, strict=True)]
        return functional_call(model, dict(zip(parameters, parts, strict=True)), (inputs.x,))

    flat = torch.cat([v.flatten() for v in parameters.values()])
    f = logits(flat)
    full = jacrev(grad(lambda w: loss_value(inputs, logits(w))))(flat)
    J = jacrev(logits)(flat).flatten(0, 1)
    B = jacrev(grad(lambda f: loss_value(inputs, f.view(inputs.case.N, -1))))(f.flatten())
    gauss_newton = J.T @ B @ J
    return {"full": full, "gauss_newton": gauss_newton, "residual": full - gauss_newton}


@pytest.mark.parametrize("case", LINEAR + HIDDEN + SMALL, ids=lambda c: c.name)
def test_closed_form_is_autograd(case):
    inputs = make_inputs(case, torch.float64)
    scale = None
    for term, expected in autograd_terms(inputs).items():
        out = reference.dense(reference.truth(case, torch.float64, term), inputs)
        scale = scale or expected.norm()  # the residual of autograd is a difference: its rounding is the whole's
        assert (out - expected).norm() <= 1e-13 * scale, term


@pytest.mark.parametrize("case", deep.SHALLOW, ids=lambda c: c.name)
def test_closed_form_of_any_depth_is_autograd(case):
    inputs, scale = deep.make_deep(case, torch.float64), None
    for term, expected in autograd_terms(inputs).items():
        out = deep.dense(deep.truth(case, torch.float64, term), inputs)
        scale = scale or expected.norm()
        assert (out - expected).norm() <= 1e-13 * scale, term
    for layer in case.layers:  # no part is small beside the others, and so unproved
        assert deep.truth(case, torch.float64)[layer, case.layers[-1]].norm() > 1e-3 * scale


@pytest.mark.parametrize("case", LINEAR + HIDDEN + SMALL, ids=lambda c: c.name)
def test_terms_add_up(case):
    parts = {term: reference.truth(case, torch.float64, term) for term in reference.TERMS}
    for key, full in parts["full"].items():
        assert torch.allclose(full, parts["gauss_newton"][key] + parts["residual"][key], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("case", HIDDEN + SMALL, ids=lambda c: c.name)
def test_float32_forward_takes_the_same_branches(case):
    """No case sits on a kink: otherwise float32 and its float64 truth would be two different Hessians."""
    if not case.hidden:
        return
    inputs = make_inputs(case, torch.float32)
    z = [F.linear(i.x, i.hidden_weight, i.hidden_bias) for i in (inputs, inputs.lift())]
    first = [reference.activation(case.activation, t)[1] for t in z]
    torch.testing.assert_close(first[0].double(), first[1], rtol=1e-5, atol=1e-5)


def mp_hessian(inputs: Inputs, digits: int = 120) -> torch.Tensor:
    """Central second differences of the loss itself, step 1e-30 at 120 digits: right to about 1e-58."""
    case, mp = inputs.case, mpmath.mp.clone()
    mp.dps = digits
    h, parameters = mp.mpf(10) ** -30, inputs.parameters()
    flat = [mp.mpf(v) for t in parameters.values() for v in t.flatten().tolist()]
    x = [[mp.mpf(v) for v in row] for row in inputs.x.tolist()]
    act = {"relu": lambda z: z if z > 0 else mp.mpf(0), "gelu": lambda z: z * mp.ncdf(z)}[case.activation]

    def layer(values, rows, cols, bias):
        weight = [values[r * cols : (r + 1) * cols] for r in range(rows)]
        rest = values[rows * cols :]
        return weight, (rest[:rows] if bias else [mp.zero] * rows), rest[rows * bias :]

    def apply(weight, bias, features):
        return [b + mp.fdot(w, features) for w, b in zip(weight, bias, strict=True)]

    def loss(values):
        hidden = None
        if case.hidden:
            *hidden, values = layer(values, case.hidden, case.d, "h" in case.bias)
        *output, _ = layer(values, case.C, case.hidden or case.d, "o" in case.bias)
        total = mp.zero
        for row, label in zip(x, inputs.y.tolist(), strict=True):
            f = apply(*output, [act(z) for z in apply(*hidden, row)] if hidden else row)
            total += mp.log(mp.fsum(mp.exp(v) for v in f)) - f[label]
        return total / case.N

    def at(*steps):
        values = list(flat)
        for k, sign in steps:
            values[k] += sign * h
        return loss(values)

    P = len(flat)
    out = torch.empty(P, P, dtype=torch.float64)
    for k in range(P):
        for q in range(k + 1):
            corners = at((k, 1), (q, 1)) - at((k, 1), (q, -1)) - at((k, -1), (q, 1)) + at((k, -1), (q, -1))
            out[k, q] = out[q, k] = float(corners / (4 * h * h))
    return out


@pytest.mark.parametrize(
    "case",
    [
        Case(3, 2, 4, scale=30.0),
        Case(2, 2, 3, 3, scale=30.0, bias="o"),
        Case(2, 2, 3, 2, activation="gelu", scale=30.0, bias="ho"),
    ],
    ids=lambda c: c.name,
)
def test_peaked_softmax_in_high_precision(case):
    """With logits near 30, float64 autograd itself is wrong in p(1 - p): compare each entry with 120 digits."""
    inputs = make_inputs(case, torch.float64)
    expected = mp_hessian(inputs)
    out = reference.dense(reference.truth(case, torch.float64), inputs)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=0.0)
    assert (out - expected).norm() <= 1e-13 * expected.norm()


@pytest.mark.parametrize("case", PEAKED, ids=lambda c: c.name)
def test_peaked_cases_are_peaked(case):
    inputs = make_inputs(case, torch.float64)
    with torch.no_grad():
        p = torch.softmax(inputs.model()(inputs.x), 1).sort(1).values
    rest = p[:, :-1].sum(1)
    assert rest.median() < 1e-2
    assert rest.min() < 1e-6
