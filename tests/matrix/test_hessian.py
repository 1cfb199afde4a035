"""The whole Hessian: order, terms, products, maps; determinism, strides and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from helpers.cases import DTYPES, HIDDEN, LINEAR, SMALL, Case, make_inputs
from helpers.reference import TERMS, TOLERANCE, assert_accurate, dense, plain, truth
from helpers.results import assert_same_bits, everything
from torch import nn

import hessext

CASES = LINEAR[1::3] + HIDDEN + SMALL


def case_id(value) -> str:
    """Test id of a case or a dtype."""
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")


over_cases = pytest.mark.parametrize("case", CASES, ids=case_id)
over_small = pytest.mark.parametrize("case", [*SMALL, HIDDEN[2], HIDDEN[11], LINEAR[1]], ids=case_id)
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=case_id)


def whole(case, dtype, term="full"):
    """Float64 truth and plain same-dtype dense Hessian."""
    inputs = make_inputs(case, dtype)
    return dense(truth(case, dtype, term), inputs), dense(plain(case, dtype, term), inputs)


@over_dtypes
@over_cases
def test_dense(case, dtype):
    H = make_inputs(case, dtype).hessian()
    expected, bar = whole(case, dtype)
    out = H.dense()
    assert H.term == "full"
    assert H.shape == tuple(expected.shape)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert torch.equal(out, out.T)
    assert_accurate(out, expected, bar)


@pytest.mark.parametrize("term", TERMS[1:])
@over_dtypes
@over_small
def test_terms(case, dtype, term):
    H = make_inputs(case, dtype).hessian()
    part = getattr(H, term)()
    expected, bar = whole(case, dtype, term)
    assert part.term == term
    assert H.term == "full"
    assert part.layers == H.layers
    out = part.dense()
    assert torch.equal(out, out.T)
    assert_accurate(out, expected, bar)
    v = torch.ones(H.shape[0], dtype=dtype)
    error = (part @ v).double() - expected @ v.double()
    assert error.norm() <= TOLERANCE[dtype] * expected.norm() * v.double().norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@over_small
def test_terms_add_up_to_the_whole(case, dtype):
    H = make_inputs(case, dtype).hessian()
    total = H.gauss_newton().dense() + H.residual().dense()
    assert (total - H.dense()).norm() <= TOLERANCE[dtype] * H.dense().norm()


@over_dtypes
@over_cases
def test_product(case, dtype):
    H, (expected, _) = make_inputs(case, dtype).hessian(), whole(case, dtype)
    g = torch.Generator().manual_seed(2)
    v = torch.randn(H.shape[0], generator=g, dtype=torch.float64).to(dtype)
    out = H @ v
    assert out.dtype == dtype
    assert out.shape == v.shape
    error = (out.double() - expected @ v.double()).norm()
    assert error <= TOLERANCE[dtype] * expected.norm() * v.double().norm()
    both = H @ torch.stack([v, -v], 1)
    torch.testing.assert_close(both, torch.stack([out, -out], 1))


@over_dtypes
@over_small
def test_norms_are_one_square_map(case, dtype):
    H, parts = make_inputs(case, dtype).hessian(), truth(case, dtype)
    maps = [[parts[r, c].flatten(2).norm(dim=2) for c in H.layers] for r in H.layers]
    expected = torch.cat([torch.cat(row, 1) for row in maps])
    out = H.norms()
    assert out.dtype == dtype
    assert torch.equal(out, out.T)
    assert_accurate(out, expected)


# --- same bits ---------------------------------------------------------------------------------------------------


MIDDLE = [LINEAR[1], HIDDEN[11], HIDDEN[21], SMALL[0]]


@over_dtypes
@pytest.mark.parametrize("case", MIDDLE, ids=case_id)
def test_same_bits_on_every_call(case, dtype, set_threads):
    inputs = make_inputs(case, dtype)
    for count in (1, 2):
        set_threads(count)
        assert_same_bits(everything(inputs.hessian()), everything(inputs.hessian()))


@over_dtypes
@pytest.mark.parametrize("case", [LINEAR[5], HIDDEN[4], HIDDEN[21]], ids=case_id)
def test_assembly_has_the_same_bits_on_any_thread_count(case, dtype, set_threads):
    """Of one object, whose forward pass is done: torch's own products are not the same on every thread count."""
    H, results = make_inputs(case, dtype).hessian(), []
    for count in (1, 2, 3):
        set_threads(count)
        parts = [H[r, c] for r in H.layers for c in H.layers]
        results.append([H.dense(), *(B.blocks([(1, 0), (0, 0)]) for B in parts), *(B.norms() for B in parts)])
    for other in results[1:]:
        assert_same_bits(results[0], other)


def test_several_python_threads_at_once():
    inputs = [make_inputs(c, dtype) for c in MIDDLE for dtype in DTYPES]
    expected = [everything(i.hessian()) for i in inputs]
    with ThreadPoolExecutor(4) as pool:
        for first, second in zip(expected, pool.map(lambda i: everything(i.hessian()), inputs), strict=True):
            assert_same_bits(first, second)


@over_dtypes
def test_several_python_threads_share_one_object(dtype):
    expected = everything(make_inputs(HIDDEN[11], dtype).hessian())
    H = make_inputs(HIDDEN[11], dtype).hessian()
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: everything(H), range(8)):
            assert_same_bits(expected, result)


# --- what inputs may look like -----------------------------------------------------------------------------------

LAYOUTS = {
    "transposed": lambda t: t.T.contiguous().T,
    "strided": lambda t: torch.stack([t, torch.full_like(t, 9)], -1)[..., 0],
    "offset": lambda t: torch.cat([torch.full_like(t[:1], 9), t])[1:],
    "rows skipped": lambda t: torch.stack([t, torch.full_like(t, 9)], 1).flatten(0, 1)[::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@over_dtypes
@pytest.mark.parametrize("case", [LINEAR[1], HIDDEN[2], HIDDEN[4], SMALL[2]], ids=case_id)
def test_strides_do_not_matter(case, dtype, layout):
    inputs = make_inputs(case, dtype)
    names = ("x", "y", "output_weight", "output_bias", "hidden_weight", "hidden_bias")
    changed = {n: LAYOUTS[layout](t) for n in names if (t := getattr(inputs, n)) is not None and t.ndim == 2}
    changed |= {
        n: torch.stack([t, t + 1], 1)[:, 0] for n in names if (t := getattr(inputs, n)) is not None and t.ndim == 1
    }
    other = replace(inputs, **changed)
    assert_accurate(other.hessian().dense(), *whole(case, dtype))
    assert_accurate(
        other.hessian()[other.hessian().layers[0]].norms(),
        inputs.hessian()[inputs.hessian().layers[0]].norms().double(),
    )


@over_dtypes
def test_expanded_inputs(dtype):
    inputs = make_inputs(SMALL[1], dtype)
    x, W = inputs.x[:1].expand(6, -1), inputs.hidden_weight[:1].expand(5, -1)
    y, b = inputs.y[:1].expand(6), torch.tensor([0.5], dtype=dtype).expand(5)
    H = hessext.one_hidden(W, inputs.output_weight, x, y, hidden_bias=b)
    same = hessext.one_hidden(W.clone(), inputs.output_weight, x.clone(), y.clone(), hidden_bias=b.clone())
    assert torch.equal(H.dense(), same.dense())
    v = torch.ones(1, dtype=dtype).expand(H.shape[0])
    assert torch.equal(H @ v, H @ v.clone())


@over_small
def test_inputs_stay_as_they_are(case):
    inputs = make_inputs(case, torch.float32)
    tensors = [inputs.x, inputs.y, *inputs.parameters().values()]
    before = [t.clone() for t in tensors]
    everything(inputs.hessian())
    for t, old in zip(tensors, before, strict=True):
        assert torch.equal(t, old)


@pytest.mark.parametrize("case", SMALL, ids=case_id)
def test_inputs_that_require_grad_are_detached(case):
    inputs = make_inputs(case, torch.float64)
    names = ("x", "output_weight", "output_bias", "hidden_weight", "hidden_bias")
    grown = {n: t.clone().requires_grad_() for n in names if (t := getattr(inputs, n)) is not None}
    H, expected = replace(inputs, **grown).hessian(), everything(inputs.hessian())
    assert_same_bits(everything(H), expected)
    assert not any(t.requires_grad for t in everything(H))


@over_small
def test_dense_writes_into_out(case):
    H = make_inputs(case, torch.float32).hessian()
    expected, out = H.dense(), torch.full(H.shape, torch.nan)
    assert H.dense(out=out) is out
    assert torch.equal(out, expected)


def test_a_batch_of_zeros_has_a_hessian():
    """All pre-activations sit on the kink: relu'(0) = 0 as in torch, so that only the output layer curves."""
    H = hessext.one_hidden(torch.ones(3, 4), torch.ones(2, 3), torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64))
    assert not H.dense().any()
    assert not H.norms().any()


@over_dtypes
@pytest.mark.parametrize("build", ["tensors", "model"])
def test_later_training_does_not_change_the_result(dtype, build):
    inputs = make_inputs(Case(9, 4, 3, 5, bias="ho"), dtype)
    model = inputs.model()
    names = ("hidden_bias", "output_bias")
    tensors = [t.clone() for t in (inputs.hidden_weight, inputs.output_weight)]
    biases = {name: getattr(inputs, name).clone() for name in names}
    if build == "model":
        H = hessext.hessian(model, inputs.x, inputs.y)
    else:
        H = hessext.one_hidden(*tensors, inputs.x, inputs.y, **biases)
    before = inputs.hessian().dense()
    with torch.no_grad():
        for t in (*model.parameters(), *tensors, *biases.values()):
            t.mul_(3)
    assert torch.equal(H.dense(), before)
    assert hessext.autograd.check(H)


@pytest.mark.parametrize("name", ["x", "y"])
def test_data_changed_in_place_is_noticed(name):
    inputs = make_inputs(Case(9, 4, 3, 5), torch.float64)
    data = {"x": inputs.x.clone(), "y": inputs.y.clone()}
    H = hessext.one_hidden(inputs.hidden_weight, inputs.output_weight, data["x"], data["y"])
    H.dense()
    data[name].mul_(0)
    for call in (H.dense, H["hidden"].ratio, H["output"].trace, lambda: H @ torch.ones(35, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match=f"^{name} was changed in place"):
            call()


def test_inference_tensors_are_accepted():
    with torch.inference_mode():
        x, W = torch.ones(3, 2), torch.ones(2, 2)
    assert hessext.linear(W, x).dense().shape == (4, 4)


def test_a_loss_class_is_not_a_loss():
    with pytest.raises(TypeError, match=r"^loss: .*CrossEntropyLoss\(\) makes an instance"):
        hessext.linear(torch.ones(3, 2), torch.ones(4, 2), loss=nn.CrossEntropyLoss)
