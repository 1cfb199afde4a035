"""The slow truth itself: hessext.autograd against the reference, and its check against right and tampered Hessians."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import reference
from helpers.cases import ACTIVATIONS, DTYPES, HIDDEN, LINEAR, PEAKED, SMALL, Case, make_inputs
from torch.func import functional_call, grad, jacrev
from torch.nn import functional as F

import hessext
from hessext import autograd
from hessext.data.ranks import Ranks
from hessext.data.samples import Samples
from hessext.model import activations
from hessext.model.loss_arguments import resolve
from hessext.model.network import Layer, Network

CASES = [c for c in LINEAR + HIDDEN + SMALL if c.d * (c.hidden or c.C) + c.C * (c.hidden or 0) < 700]


class StandIn:
    """What check needs of a Hessian object, made from the plain reference; `tamper` changes the blocks of the parts."""

    def __init__(self, case, dtype, term="full", tamper=None):
        inputs = make_inputs(case, dtype)
        self.term, self.layers = term, ("hidden", "output") if case.hidden else ("output",)
        self.dtype, self.ranks = dtype, Ranks()
        activation = activations.resolve(ACTIVATIONS[case.activation])
        hidden = [Layer("hidden", inputs.hidden_weight, inputs.hidden_bias, activation)] if case.hidden else []
        network = Network((*hidden, Layer("output", inputs.output_weight, inputs.output_bias)))
        self._data = Samples(network, resolve(inputs.loss), inputs.x, inputs.y)
        self.parts = {k: v.to(dtype, copy=True) for k, v in reference.truth(case, dtype, term).items()}
        if tamper:
            tamper(self.parts)

    def __getitem__(self, key):
        part = self.parts[key]
        return SimpleNamespace(
            dense=lambda: reference.matrix(part), blocks=lambda pairs: part[pairs[:, 0], pairs[:, 1]]
        )


@pytest.mark.parametrize("term", reference.TERMS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_hessian_is_the_closed_form(case, term):
    inputs, truth = make_inputs(case, torch.float32), reference.truth(case, torch.float32, term)
    out = autograd.hessian(StandIn(case, torch.float32, term))
    assert out.dtype == torch.float64
    expected = reference.dense(truth, inputs)
    assert (out - expected).norm() <= 1e-13 * reference.dense(reference.truth(case, torch.float32), inputs).norm()
    assert not out[expected == 0].any()  # parts that vanish identically do so exactly


@pytest.mark.parametrize("case", SMALL + CASES[8:14], ids=lambda c: c.name)
def test_module_gives_torchs_own_hessian(case):
    inputs = make_inputs(case, torch.float64)
    model, flat = inputs.model(), torch.cat([p.detach().flatten() for p in inputs.model().parameters()])

    def value(flat):
        parts = flat.split([p.numel() for p in model.parameters()])
        named = {k: v.view_as(p) for v, (k, p) in zip(parts, model.named_parameters(), strict=True)}
        return resolve(inputs.loss).value(functional_call(model, named, (inputs.x,)), inputs.y)

    expected = jacrev(grad(value))(flat)
    out = autograd.hessian(model, inputs.x, inputs.y, loss=inputs.loss)
    assert (out - expected).norm() <= 1e-13 * expected.norm()
    torch.testing.assert_close(autograd.hessian(model, inputs.x, inputs.y, loss=inputs.loss, chunk_size=3), out)


@pytest.mark.parametrize("case", PEAKED, ids=lambda c: c.name)
def test_peaked_softmax_keeps_its_digits(case):
    out = autograd.hessian(StandIn(case, torch.float64))
    parts = reference.truth(case, torch.float64)
    expected = reference.dense(parts, make_inputs(case, torch.float64))
    assert (out - expected).norm() <= 1e-13 * expected.norm()
    start, s = len(expected) - case.C * (case.hidden or case.d), case.hidden or case.d
    if not case.bias:  # every output block on its own, the smallest too
        blocks = [m[start:, start:].view(case.C, s, case.C, s) for m in (out, expected)]
        errors, norms = (m.norm(dim=(1, 3)) for m in (blocks[0] - blocks[1], blocks[1]))
        assert (errors <= 1e-12 * norms).all()


def test_kinks_are_taken_as_the_objects_dtype_takes_them():
    case = Case(4000, 6, 3, 2)
    stand_in = StandIn(SMALL[1], torch.float32)
    g = torch.Generator().manual_seed(0)
    W = torch.randn(2, 6, generator=g)
    x = torch.randn(case.N, 6, generator=g)
    w = W[0].double()
    # orthogonal to the first unit, but for rounding
    x = (x - torch.outer(x.double() @ w, w) / w.square().sum()).float()
    differ = (F.linear(x, W)[:, 0] > 0) != (F.linear(x.double(), W.double())[:, 0] > 0)
    x = x[differ][:8]
    assert len(x) == 8
    weight, y = torch.randn(3, 2, generator=g), torch.arange(8) % 3
    hidden, _ = stand_in._data.network.layers
    network = Network((Layer("hidden", W, activation=hidden.activation), Layer("output", weight)))
    stand_in._data = replace(stand_in._data, network=network, x=x, y=y)
    signs = (F.linear(x, W) > 0).double()
    out = autograd.hessian(stand_in)
    z = F.linear(x.double(), W.double())
    V = weight.double()
    B, _ = reference.output_curvature("cross_entropy", (signs * z) @ V.T, y)
    Q = torch.einsum("ni,ci,nck,kj,nj->nij", signs, V, B, V, signs)
    expected = reference.matrix(reference.weighted_products(Q, x.double(), x.double()))
    assert (out[:12, :12] - expected).norm() <= 1e-13 * expected.norm()


@pytest.mark.parametrize("max_bytes", [1 << 28, 4000], ids=["all", "sample"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES[::3] + SMALL, ids=lambda c: c.name)
def test_check_passes_on_the_right_blocks(case, dtype, max_bytes):
    for term in reference.TERMS:
        report = autograd.check(StandIn(case, dtype, term), max_bytes=max_bytes, samples=4)
        assert report, str(report)
        assert report.passed and report.max_rel <= report.tolerance
        assert report.dtype == dtype


def test_tolerance_grows_with_the_logits():
    x, y = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4
    report = autograd.check(hessext.linear(torch.eye(4, 3) * 50, x, y))
    largest = 50 * x.abs().max().item()
    assert report.tolerance == pytest.approx(1e-6 * largest) and report.largest_logit == pytest.approx(largest)
    assert str(report).endswith(f"(1e-06 times the largest |logit|, {largest:.3g})")
    given = autograd.check(hessext.linear(torch.eye(4, 3) * 50, x, y), rtol=1e-3)
    assert given.tolerance == 1e-3 and str(given).endswith("tolerance 1e-03")


def scale_part(key):
    def tamper(parts):
        parts[key] = parts[key] * (1 + 1e-5)

    return tamper


def swap_blocks(parts):
    part = parts["output", "output"]
    parts["output", "output"] = part.flip(0)


def one_entry(parts):
    part = parts["hidden", "output"]
    part[1, 0, 2, 1] += 1e-5 * part.norm()


def not_a_number(parts):
    parts["hidden", "hidden"][0, 1, 0, 0] = torch.nan


def wrong_sign(parts):
    parts["output", "hidden"] = parts["output", "hidden"] * -1


TAMPERINGS = [scale_part(("hidden", "hidden")), scale_part(("output", "hidden")), swap_blocks, one_entry, not_a_number]


@pytest.mark.parametrize("tamper", [*TAMPERINGS, wrong_sign], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_check_fails_on_a_tampered_hessian(dtype, tamper):
    report = autograd.check(StandIn(SMALL[2], dtype, tamper=tamper))
    assert not report
    assert not report.max_rel <= report.tolerance
    assert sum(not part.max_rel <= report.tolerance for part in report.parts) == 1
    assert "FAILED" in str(report)


@pytest.mark.parametrize("tamper", [*TAMPERINGS[:3], wrong_sign], ids=lambda f: f.__name__)
def test_check_of_a_sample_fails_on_a_tampered_hessian(tamper):
    report = autograd.check(StandIn(SMALL[2], torch.float64, tamper=tamper), max_bytes=1000)
    assert not report and not report.complete


@pytest.mark.parametrize("wrong", ["gauss_newton", "residual"])
def test_check_fails_on_another_term(wrong):
    stand_in = StandIn(SMALL[1], torch.float64)
    stand_in.term = wrong
    assert not autograd.check(stand_in)


def test_float32_precision_is_not_enough_for_float64():
    def round_off(parts):
        for key, part in parts.items():
            parts[key] = part.float().double()

    assert not autograd.check(StandIn(SMALL[1], torch.float64, tamper=round_off))
    assert autograd.check(StandIn(SMALL[1], torch.float64, tamper=round_off), rtol=1e-6)


def test_report_is_a_table():
    report, layers = autograd.check(StandIn(SMALL[1], torch.float32)), ("hidden", "output")
    lines = str(report).splitlines()
    assert [part.layers for part in report.parts] == [(r, c) for r in layers for c in layers]
    assert len(lines) == 2 + len(report.parts)
    assert "passed" in lines[-1] and "float32" in lines[-1]
    assert [part.blocks for part in report.parts] == [25, 15, 15, 9]


def test_missing_or_superfluous_data_is_a_type_error():
    inputs = make_inputs(SMALL[0], torch.float64)
    with pytest.raises(TypeError, match="x, y: expected tensors"):
        autograd.hessian(inputs.model())
    with pytest.raises(TypeError, match="x, y"):
        autograd.hessian(StandIn(SMALL[0], torch.float64), inputs.x, inputs.y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LINEAR[::3] + HIDDEN[::3] + SMALL, ids=lambda c: c.name)
def test_check_passes_on_hessext(case, dtype):
    H = make_inputs(case, dtype).hessian()
    report = autograd.check(H)
    assert report, str(report)
    report = autograd.check(H, max_bytes=20000, samples=3)
    assert report, str(report)


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_check_passes_on_the_terms_and_the_model_form(case):
    import hessext

    inputs = make_inputs(case, torch.float64)
    for H in (
        inputs.hessian().gauss_newton(),
        inputs.hessian().residual(),
        hessext.hessian(inputs.model(), inputs.x, inputs.y, loss=inputs.loss),
    ):
        report = autograd.check(H)
        assert report, str(report)
        assert {part.layers[0] for part in report.parts} == set(H.layers)
