"""Extreme eigenvalues of P^{-1/2} H P^{-1/2}, against explicit matrices."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import explicit
from helpers.cases import DTYPES, Case, make_inputs
from helpers.deep import Deep
from helpers.explicit import counted_of, inputs_of
from helpers.networks import Transformer, tokens
from torch import nn

import hessext
from hessext.matrix import spectrum

NAMES = (
    "diagonal",
    "Adam-mini",
    "block-diagonal",
    "input-column blocks",
    "one-sided",
    "K-FAC",
    "E-KFAC",
    "Shampoo",
    "Shampoo, squared factors",
    "nearest Kronecker",
)
CASES = [
    Case(33, 5, 7),
    Case(31, 6, 9, loss="ce sum ignore", scale=3.0),
    Case(40, 4, 6, loss="ce weight prob", scale=10.0, bias="o"),
    Case(17, 3, 4, loss="mse"),
    Case(12, 3, 1, loss="bce weight", bias="o"),
    Case(33, 5, 7, 4, bias="ho"),
    Case(15, 3, 5, 6, "tanh", bias="h"),
    Case(31, 4, 2, 3, "gelu", "mse"),
    Deep(17, (4, 5, 3, 6), "tanh", "ce weight smooth", bias="1"),
    Deep(31, (3, 4, 4, 5), "relu"),
]


def forms(gauss_newton, counted):
    """M by name, of a Gauss-Newton term, and the identity."""
    dense = gauss_newton.dense()
    found = explicit.matrices(dense, gauss_newton.curvature(), gauss_newton.features, counted)
    found = {name: M.reshape(dense.shape) for name, M in found.items()}
    roots = found["Shampoo"]
    found["Shampoo"] = torch.sum(roots * dense) / roots.square().sum() * roots
    return found


def preconditioned(H, P):
    """Eigenvalues in ascending order."""
    values, vectors = torch.linalg.eigh(P)
    root = (vectors * values.rsqrt()) @ vectors.T
    return torch.linalg.eigvalsh(root @ H @ root)


def assert_ends(found, H, M, damping, eps):
    """The extreme values, but for changes of H and M by some roundings."""
    expected = preconditioned(H, M + damping * torch.eye(len(H), dtype=H.dtype))
    size = expected.abs().max().item()
    bound = 30 * eps * (torch.linalg.norm(H, 2) + size * torch.linalg.norm(M, 2)).item() / damping
    assert found.largest == pytest.approx(expected[-1].item(), rel=0, abs=bound)
    assert found.smallest == pytest.approx(expected[0].item(), rel=0, abs=bound)
    if not size:
        assert math.isnan(found.condition)
        return
    assert max(found.residual_of_largest, found.residual_of_smallest) <= 2 * bound / size
    least = found.smallest / size
    if least > 1e3 * eps:
        assert found.condition == found.largest / found.smallest
    else:
        assert math.isnan(found.condition) if least < -1e3 * eps else not found.condition < 1 / (1e3 * eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_against_explicit_matrices(case, dtype):
    inputs = inputs_of(case, dtype)
    lifted, eps = inputs.lift().hessian(), torch.finfo(dtype).eps
    relative = 1e-3 if dtype == torch.float64 else 0.1
    for layer in inputs.hessian().layers:
        matrices = forms(lifted.gauss_newton()[layer], counted_of(inputs))
        for term in ("full", "gauss_newton", "residual"):
            B, dense = (H[layer] if term == "full" else getattr(H, term)()[layer] for H in (inputs.hessian(), lifted))
            dense = dense.dense()
            for name in NAMES:
                M = matrices[name]
                found = B.preconditioned_spectrum(name, relative_damping=relative)
                assert found.damping == pytest.approx(relative * M.trace().item() / len(M), rel=300 * eps), name
                assert_ends(found, dense, M, found.damping, eps)


@pytest.mark.parametrize("name", NAMES)
def test_given_damping(name):
    H = make_inputs(CASES[6], torch.float64).hessian()
    B, M = H["hidden"], forms(H.gauss_newton()["hidden"], torch.ones(15, dtype=torch.bool))[name]
    found = B.preconditioned_spectrum(name, 0.3)
    assert found.damping == 0.3 and found.smallest < 0 and math.isnan(found.condition)
    assert_ends(found, B.dense(), M, 0.3, 2e-16)
    identity = torch.eye(len(M), dtype=torch.float64)
    assert_ends(B.preconditioned_spectrum(name, 0.3, damped=True), B.dense() + 0.3 * identity, M, 0.3, 2e-16)


def test_identity():
    H = make_inputs(CASES[0], torch.float64).hessian()["output"]
    values = torch.linalg.eigvalsh(H.dense())
    found = H.preconditioned_spectrum("none")
    assert found.largest == pytest.approx(values[-1].item(), rel=1e-13)
    assert found.smallest == pytest.approx(0, abs=1e-14) and found.condition == math.inf
    assert found.damping == pytest.approx(1e-3 * H.trace().item() / 35, rel=1e-13)
    damped = H.preconditioned_spectrum("none", 0.25, damped=True)
    assert damped.condition == pytest.approx((values[-1].item() + 0.25) / 0.25, rel=1e-12)
    assert H.preconditioned_spectrum("none", 0).condition == math.inf


def test_given_matrices():
    """Factors, a diagonal and blocks of the user's own."""
    B = make_inputs(CASES[0], torch.float64).hessian()["output"]
    g = torch.Generator().manual_seed(1)
    G, A, blocks = (torch.randn(*n, generator=g, dtype=torch.float64) for n in ((7, 7), (5, 5), (7, 5, 5)))
    G, A, blocks = G @ G.mT, A @ A.mT, blocks @ blocks.mT
    v = torch.rand(35, generator=g, dtype=torch.float64)
    for given, M in (
        ((G, A), torch.kron(G, A)),
        ((-G, -A), torch.kron(G, A)),
        (v, v.diag()),
        (blocks, torch.block_diag(*blocks)),
    ):
        found = B.preconditioned_spectrum(given)
        assert found.damping == pytest.approx(1e-3 * M.trace().item() / 35, rel=1e-12)
        assert_ends(found, B.dense(), M, found.damping, 2e-16)
        assert_ends(B.preconditioned_spectrum(given, 2.0), B.dense(), M, 2.0, 2e-16)


def test_exact_forms():
    """Of a head under a squared error, M = H where it is block-diagonal or K-FAC: eigenvalues h / (h + damping)."""
    B = make_inputs(Case(17, 3, 4, loss="mse"), torch.float64).hessian()["output"]
    values = torch.linalg.eigvalsh(B.dense())
    assert values[0] > 0
    for name in ("block-diagonal", "K-FAC", "E-KFAC", "Shampoo, squared factors", "nearest Kronecker"):
        found = B.preconditioned_spectrum(name, 0.5)
        ends = [h / (h + 0.5) for h in (values[-1].item(), values[0].item())]
        assert found[:3] == pytest.approx((*ends, ends[0] / ends[1]), rel=1e-12), name
        assert B.preconditioned_spectrum(name, 0.5, damped=True)[:3] == pytest.approx((1, 1, 1), rel=1e-12), name
        assert B.preconditioned_spectrum(name, 0)[:3] == pytest.approx((1, 1, 1), rel=1e-10), name


def test_nothing():
    """The residual of a ReLU layer is 0; eigenvalues of another term are of that term."""
    B = make_inputs(Case(33, 5, 7, 4), torch.float64).hessian().residual()["hidden"]
    for name in ("none", *NAMES):
        found = B.preconditioned_spectrum(name)
        assert found[:2] == (0, 0) and math.isnan(found.condition) and found[3:5] == (0, 0)


def test_condition_of_what_is_not_told_from_zero():
    of = hessext.PreconditionedSpectrum.of
    assert of(2.0, 1e-3, (0, 0), 0.1, 1e-14).condition == 2000
    assert of(2.0, 1e-15, (0, 0), 0.1, 1e-14).condition == math.inf
    assert of(2.0, -1e-15, (0, 0), 0.1, 1e-14).condition == math.inf
    assert of(2.0, 1e-3, (0, 2e-3), 0.1, 1e-14).condition == math.inf
    assert math.isnan(of(2.0, -1e-3, (0, 0), 0.1, 1e-14).condition)


def test_places_and_batches():
    model, batches = Transformer(), [(x, x.roll(-1, 1)) for x in (tokens(2, 5), tokens(1, 4, seed=1))]
    name = "blocks.1.mlp.up"
    H = hessext.layer(model, name, batches)
    B, dense = H[name], H[name].dense()
    matrices = forms(H.gauss_newton()[name], torch.ones(len(B.features), dtype=torch.bool))
    for form in NAMES:
        found = B.preconditioned_spectrum(form)
        assert_ends(found, dense, matrices[form], found.damping, 2e-16)
    g = torch.Generator().manual_seed(2)
    x, W = (torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (20, 3))
    y = torch.arange(20) % 3
    whole = hessext.linear(W, x, y)["output"]
    pieces = hessext.linear(W, [(x[:13], y[:13]), (x[13:], y[13:])])["output"]
    for form in NAMES:
        assert pieces.preconditioned_spectrum(form, 0.1)[:2] == pytest.approx(
            whole.preconditioned_spectrum(form, 0.1)[:2], rel=1e-11, abs=1e-13
        )


# --- Lanczos ------------------------------------------------------------------------------------------------------


@pytest.fixture
def iterated(monkeypatch):
    """Nothing is formed as a dense matrix."""
    monkeypatch.setattr(spectrum, "_DENSE", 0)
    monkeypatch.setattr(spectrum, "_dense", None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [Case(60, 15, 11), Case(60, 12, 5, 9, "tanh")], ids=lambda c: c.name)
@pytest.mark.parametrize("sign", [1, -1])
def test_lanczos(case, dtype, sign, iterated):
    """Both ends, also where the smallest eigenvalue is the larger one in magnitude."""
    inputs = make_inputs(case, dtype)
    layer = inputs.hessian().layers[0]
    term = "gauss_newton" if sign > 0 else "full"
    H, lifted = (i.hessian() if term == "full" else i.hessian().gauss_newton() for i in (inputs, inputs.lift()))
    matrices = forms((lifted.gauss_newton() if term == "full" else lifted)[layer], counted_of(inputs))
    accuracy = {torch.float32: 1e-5, torch.float64: 1e-8}[dtype]
    for name in ("diagonal", "block-diagonal", "K-FAC"):
        found = H[layer].preconditioned_spectrum(name, relative_damping=0.1, tol=accuracy / 10)
        P = matrices[name] + found.damping * torch.eye(len(matrices[name]), dtype=torch.float64)
        values = preconditioned(lifted[layer].dense(), P)
        size = values.abs().max().item()
        assert found.largest == pytest.approx(values[-1].item(), rel=0, abs=accuracy * size)
        assert found.smallest == pytest.approx(values[0].item(), rel=0, abs=accuracy * size)
        assert max(found.residual_of_largest, found.residual_of_smallest) <= accuracy
        if not torch.__version__.startswith("2.4."):  # whose products with a vector depend on where it lies in memory
            assert found == H[layer].preconditioned_spectrum(name, relative_damping=0.1, tol=accuracy / 10)  # same bits


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("low", [-3.0, -0.5, 0.0, 0.5])
def test_ends_of_a_diagonal(low, sign):
    values = sign * torch.linspace(low, 1.0, 150, dtype=torch.float64)
    start = torch.randn(150, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    high, least = (v @ (values * v) for v in spectrum._lanczos(lambda v: values * v, start, 1e-9, 100))
    assert high.item() == pytest.approx(values.max().item(), rel=0, abs=1e-8)
    assert least.item() == pytest.approx(values.min().item(), rel=0, abs=1e-8)


@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
def test_multiples_of_the_identity(value):
    start = torch.randn(150, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for v in spectrum._lanczos(lambda v: value * v, start, 1e-9, 100):
        assert v.norm().item() == pytest.approx(1)


def test_restarts_that_do_not_suffice(iterated):
    """The best there is comes back, with a residual that says so."""
    B = make_inputs(Case(200, 30, 9), torch.float64).hessian()["output"]
    good = B.preconditioned_spectrum("diagonal", damped=True)
    rough = B.preconditioned_spectrum("diagonal", damped=True, tol=0, maxiter=1)
    assert good.residual_of_smallest <= 1e-7 < rough.residual_of_smallest < 1e-1
    assert good.smallest < rough.smallest < good.largest
    assert rough.largest == pytest.approx(good.largest, rel=1e-4)


@pytest.mark.parametrize("dense", [0, 512])
def test_beyond_the_range(dense, monkeypatch):
    monkeypatch.setattr(spectrum, "_DENSE", dense)
    g = torch.Generator().manual_seed(5)
    x, W, y = (torch.randn(*n, generator=g) for n in ((30, 8), (9, 8), (30, 9)))
    H = hessext.linear(W, 1e20 * x, y, loss="mse")
    for name in ("none", *NAMES):
        with pytest.raises(ValueError, match=r"within the range of torch\.float32; "):
            H["output"].preconditioned_spectrum(name)
        assert H.to(torch.float64)["output"].preconditioned_spectrum(name).smallest > 0


# --- refused ------------------------------------------------------------------------------------------------------


def refused(message, *arguments, error=ValueError, layers="output", **options):
    H = make_inputs(Case(33, 5, 7, 4), torch.float64).hessian()
    with pytest.raises(error, match=message):
        H[layers].preconditioned_spectrum(*arguments, **options)


def test_bad_arguments():
    one = torch.ones
    refused("preconditioned_spectrum: expected one layer", "diagonal", layers=("hidden", "output"))
    refused("approximation: expected 'none' or one of 'diagonal', .*'Shampoo, squared factors', .*; got 'Adam'", "Adam")
    refused("approximation: expected a name, a pair .*; got NoneType", None, error=TypeError)
    refused("approximation: expected a pair", (one(7, 7).double(),), error=TypeError)
    refused(r"approximation: G: expected shape \(7, 7\)", (one(4, 4).double(), one(4, 4).double()))
    refused(r"approximation: expected shape \(28,\)", one(7).double())
    refused(r"approximation: expected shape \(7, 4, 4\)", one(7, 4, 3).double())
    lower = one(7, 7).double().tril()
    refused("approximation: G: expected symmetric matrices; got .* by 1", (lower, one(4, 4).double()))
    refused("damping: expected a finite number >= 0; got -1", "diagonal", -1)
    refused("relative_damping: expected a finite number >= 0", "diagonal", relative_damping=math.nan)
    refused("damping: expected a number", "diagonal", "small", error=TypeError)
    refused("tol: expected", "diagonal", tol=-1)
    refused("maxiter: expected at least 1", "diagonal", maxiter=0)
    refused("largest: expected at least 0", "diagonal", largest=-1)


@pytest.mark.parametrize("name", ["block-diagonal", "K-FAC", "E-KFAC", "Shampoo", "one-sided", "input-column blocks"])
def test_singular(name):
    """Without damping a softmax head's P is singular but for forms that are not."""
    B = hessext.linear(*(torch.eye(5, 3, dtype=torch.float64), torch.eye(2, 3, dtype=torch.float64)))["output"]
    with pytest.raises(ValueError, match=r"damping: expected .* positive definite; got 0, .* eigenvalue of P is 0"):
        B.preconditioned_spectrum(name, 0)
    with pytest.raises(ValueError, match=r"relative_damping: expected .* positive definite; got 0"):
        B.preconditioned_spectrum(name, relative_damping=0)
    assert B.preconditioned_spectrum(name, 1e-9).largest > 0


def test_indefinite():
    """Class weights below zero: damping must exceed what M has below zero, and roots there are none."""
    weight = torch.tensor([-3.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    g = torch.Generator().manual_seed(7)
    x, W = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (20, 4))
    H = hessext.linear(W, x, torch.arange(20) % 4, loss=nn.CrossEntropyLoss(weight=weight, reduction="sum"))
    B = H["output"]
    least = torch.linalg.eigvalsh(forms(B, torch.ones(20, dtype=torch.bool))["block-diagonal"])[0].item()
    assert least < 0
    with pytest.raises(ValueError, match=f"smallest eigenvalue of P is {least / 10:.3g}"):
        B.preconditioned_spectrum("block-diagonal", -0.9 * least)
    M = forms(B, torch.ones(20, dtype=torch.bool))["block-diagonal"]
    assert_ends(B.preconditioned_spectrum("block-diagonal", -2 * least), B.dense(), M, -2 * least, 2e-16)
    with pytest.raises(ValueError, match="factors of Shampoo are not positive semidefinite"):
        B.preconditioned_spectrum("Shampoo", 100.0)


def test_too_large():
    B = make_inputs(CASES[0], torch.float64).hessian()["output"]  # 7 rows of 5
    for name in ("one-sided", "K-FAC", "Shampoo", "nearest Kronecker", "input-column blocks"):
        with pytest.raises(ValueError, match=r"7 x 7 .* largest=6; that leaves diagonal, Adam-mini, block-diagonal$"):
            B.preconditioned_spectrum(name, largest=6)
    with pytest.raises(ValueError, match=r"5 x 5 .* largest=4; that leaves diagonal, Adam-mini$"):
        B.preconditioned_spectrum("block-diagonal", largest=4)
    G, A = torch.eye(7, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    with pytest.raises(ValueError, match="a product of factors needs eigenvectors of 7 x 7"):
        B.preconditioned_spectrum((G, A), largest=6)
    for name in ("none", "diagonal", "Adam-mini"):
        B.preconditioned_spectrum(name, largest=0)
    assert B.preconditioned_spectrum("block-diagonal", largest=6) == B.preconditioned_spectrum("block-diagonal")
