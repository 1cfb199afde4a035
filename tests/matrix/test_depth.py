"""Networks of any depth: every result of every layer, and of every part between two, against tests/helpers/deep.py."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from helpers.cases import ACTIVATIONS, DTYPES, LOSSES
from helpers.deep import DEEP, SHALLOW, Deep, dense, make_deep, off_kinks, parameters, plain, select, truth
from helpers.reference import TERMS, TOLERANCE, assert_accurate, matrix
from helpers.results import assert_part, assert_product, assert_ratio, assert_same_bits, everything, some_pairs

from hessext import autograd
from hessext.data import curvature as entries
from hessext.matrix import cost, far_residual, gram, norms
from hessext.matrix import curvature as assemblies
from hessext.matrix.cost import Form

CASES = SHALLOW + DEEP
EVERY = [(case, DTYPES[k % 2]) for k, case in enumerate(DEEP)]  # each case in one of the dtypes


def name(value) -> str:
    """Test id of a case or a dtype."""
    return value.name if isinstance(value, Deep) else str(value).removeprefix("torch.")


over_cases = pytest.mark.parametrize("case", CASES, ids=name)
over_every = pytest.mark.parametrize(("case", "dtype"), EVERY, ids=name)
over_shallow = pytest.mark.parametrize("case", SHALLOW, ids=name)
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
over_terms = pytest.mark.parametrize("term", TERMS)


@lru_cache(maxsize=4)
def hessian(case, dtype, term="full"):
    """The Hessian object of a case, shared by consecutive tests."""
    H = make_deep(case, dtype).hessian()
    return H if term == "full" else getattr(H, term)()


def parts_of(case, dtype, term="full"):
    """BlockMatrix, float64 truth and plain same-dtype blocks of all parts."""
    H, expected, bar = hessian(case, dtype, term), truth(case, dtype, term), plain(case, dtype, term)
    for row, col in expected:
        yield H[str(row), str(col)], expected[row, col], bar[row, col]


def test_the_cases_are_of_all_kinds():
    """Every activation and loss, one layer to six, with and without biases, and none of them on a kink."""
    assert {len(case.layers) for case in CASES} == {1, 2, 3, 4, 5, 6}
    assert {kind for case in CASES for kind in case.activations} == set(ACTIVATIONS)
    assert {case.loss for case in CASES} == set(LOSSES)
    assert {width for case in DEEP for width in case.widths} == {1, 2, 17, 33}
    assert {case.N for case in DEEP} == {1, 2, 17, 65}
    assert {len(case.bias) for case in CASES} >= set(range(5))
    assert all(off_kinks(make_deep(case, torch.float32)) for case in CASES)


# --- every part, in every way ------------------------------------------------------------------------------------


@over_dtypes
@over_cases
def test_dense(case, dtype):
    H = hessian(case, dtype)
    assert H.layers == tuple(str(number) for number in case.layers)
    for B, expected, bar in parts_of(case, dtype):
        rows, cols, a, b = expected.shape
        assert B.grid == (rows, cols)
        assert B.block_shape == (a, b)
        out = B.dense()
        assert out.dtype == dtype
        assert_accurate(out, matrix(expected), matrix(bar) if case in DEEP else None)  # of few numbers it is luck
        assert not B.symmetric or torch.equal(out, out.T)
    out, expected = H.dense(), dense(truth(case, dtype), make_deep(case, dtype))
    assert torch.equal(out, out.T)
    assert_accurate(out, expected)
    assert_accurate(H.diagonal(), expected.diagonal())
    assert abs(H.trace().double() - expected.trace()) <= TOLERANCE[dtype] * expected.diagonal().abs().sum()


@over_every
def test_blocks_and_norms(case, dtype):
    for B, expected, bar in parts_of(case, dtype):
        pairs = some_pairs(*B.grid)
        i, j = pairs.T
        out = B.blocks(pairs)
        assert_accurate(out, expected[i, j], bar[i, j])
        assert (B.block(*pairs[0].tolist()) - out[0]).norm() <= TOLERANCE[dtype] * out.norm()
        norms, bar = expected.flatten(2).norm(dim=2), bar.flatten(2).norm(dim=2)
        out = B.norms()
        assert_accurate(out, norms, bar)
        assert not out[norms == 0].any()
        assert_accurate(B.norms(pairs.tolist()), norms[i, j])  # of few numbers the plain form's luck is no bar
    H = hessian(case, dtype)
    norms = {key: part.flatten(2).norm(dim=2) for key, part in truth(case, dtype).items()}
    assert_accurate(H.norms(), torch.cat([torch.cat([norms[r, c] for c in case.layers], 1) for r in case.layers]))


@over_every
def test_within_a_layer(case, dtype):
    H, expected = hessian(case, dtype), truth(case, dtype)
    for number in case.layers:
        B, blocks = H[str(number)], expected[number, number]
        own = torch.arange(len(blocks))
        assert_accurate(B.diagonal_blocks(), blocks[own, own], plain(case, dtype)[number, number][own, own])
        diagonal = matrix(blocks).diagonal()
        assert_accurate(B.diagonal(), diagonal)
        assert abs(B.trace().double() - diagonal.sum()) <= TOLERANCE[dtype] * diagonal.abs().sum()
        squares = blocks.flatten(2).square().sum(2)
        assert_ratio(B.ratio(), squares, 3 * TOLERANCE[dtype])
        assert_row_norms(B.row_norms(), squares.sqrt(), 3 * TOLERANCE[dtype])


def assert_row_norms(rows, norms, rel) -> None:
    """RowNorms of all block norms."""
    others = norms - norms.diagonal().diag()
    expected = norms.diagonal(), others.sum(1) / max(1, len(norms) - 1), others.amax(1)
    for out, wanted in zip(rows, expected, strict=False):
        torch.testing.assert_close(out.double(), wanted, rtol=rel, atol=rel * float(norms.norm()))
    if len(norms) > 1:
        chosen = others.gather(1, rows.argmax[:, None])[:, 0]
        torch.testing.assert_close(chosen, others.amax(1), rtol=rel, atol=rel * float(norms.norm()))
    else:
        assert rows.argmax.tolist() == [-1]


@over_terms
@over_every
def test_products(case, dtype, term):
    H, whole = hessian(case, dtype, term), dense(truth(case, dtype, term), make_deep(case, dtype))
    v = torch.randn(H.shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    assert_product(H @ v, whole, v)
    assert_product((H @ torch.stack([v, 2 * v], 1))[:, 1], 2 * whole, v)
    for B, expected, _ in parts_of(case, dtype, term):
        assert_product(B @ v[: B.shape[1]], matrix(expected), v[: B.shape[1]])


@pytest.mark.parametrize("term", TERMS[1:])
@over_every
def test_terms(case, dtype, term):
    """Either may vanish, and then does so exactly."""
    assert hessian(case, dtype, term).term == term
    for B, expected, bar in parts_of(case, dtype, term):
        pairs = some_pairs(*B.grid)
        squares = expected.flatten(2).square().sum(2)
        assert_accurate(B.dense(), matrix(expected), matrix(bar))
        assert_accurate(B.blocks(pairs), expected[tuple(pairs.T)], bar[tuple(pairs.T)])
        assert_accurate(B.norms(), squares.sqrt())
        if B.symmetric:
            assert_accurate(B.diagonal(), matrix(expected).diagonal())
            assert_ratio(B.ratio(), squares, 3 * TOLERANCE[dtype])


@over_every
def test_block_diagonal_tools(case, dtype):
    for number in case.layers:
        B, blocks = hessian(case, dtype)[str(number)], truth(case, dtype)[number, number]
        own = blocks[torch.arange(len(blocks)), torch.arange(len(blocks))]
        size = own.norm().item()
        damping = 2 * size or 1.0  # H_ii need not be positive
        values, vectors = B.eigh_blocks()
        assert ((vectors * values[:, None]) @ vectors.mT - own).norm() <= 10 * TOLERANCE[dtype] * size
        v = torch.linspace(-1, 1, B.shape[0], dtype=dtype)
        eye = torch.eye(own.shape[1], dtype=torch.float64)
        expected = torch.linalg.solve(own + damping * eye, v.double().view(len(own), -1)).flatten()
        out = B.solve_block_diagonal(v, damping)
        assert (out.double() - expected).norm() <= 10 * TOLERANCE[dtype] * expected.norm()


WAYS = {  # how entries of Q_n come about, and how norms are found
    "tangents, blocks": ("full", False, Form.BLOCKS),
    "tangents, pairs of samples": ("full", False, Form.PAIRS),
    "factors, pairs of samples": ("gauss_newton", True, Form.PAIRS),
}
FEW = {  # in several pieces, each of them
    entries: {"_WORK": 10_000, "_TOGETHER": 3},
    assemblies: {"_ENTRIES": 20_000},
    far_residual: {"_PIECE": 30_000},
    gram: {"_ENTRIES": 100_000, "_SQUARES": 5000},
    norms: {"_PAIRS": 150},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("case", "dtype"), EVERY[6::5], ids=name)
def test_all_ways_in_pieces(case, dtype, way, monkeypatch):
    term, factors, form = WAYS[way]
    for module, sizes in FEW.items():
        for constant, size in sizes.items():
            monkeypatch.setattr(module, constant, size)
    monkeypatch.setattr(entries.Entries, "_few_classes", property(lambda e: factors and e.col < e.samples.network.last))
    for choice in ("form_of_squares", "form_of_all", "form_of_ratio"):
        monkeypatch.setattr(cost, choice, lambda part, *_: Form.BLOCKS if part.replicated else form)
    H, expected = make_deep(case, dtype).hessian(), truth(case, dtype, term)
    H = H if term == "full" else H.gauss_newton()
    first, last = case.layers[0], case.layers[-1]
    for row, col in {(first, first), (first, 1), (last, first)}:
        B, part = H[str(row), str(col)], expected[row, col]
        assert_accurate(B.dense(), matrix(part))
        assert_accurate(B.norms(), part.flatten(2).norm(dim=2))
        every = torch.cartesian_prod(*map(torch.arange, B.grid))
        for pairs in every, every.flip(0):
            assert_accurate(B.blocks(pairs), part[tuple(pairs.T)])
        if B.symmetric:
            assert_accurate(B.diagonal(), matrix(part).diagonal())
            assert_ratio(B.ratio(), part.flatten(2).square().sum(2), 3 * TOLERANCE[dtype])


@over_shallow
def test_parameters_alone(case):
    inputs, H = make_deep(case, torch.float64), hessian(case, torch.float64)
    for row in parameters(inputs):
        for col in parameters(inputs):
            assert_part(H[row, col], select(truth(case, torch.float64), inputs, row, col))


@over_terms
@over_shallow
def test_autograd(case, term):
    """The other way round: the slow truth of the object is the closed form, and the check finds nothing."""
    H, inputs = hessian(case, torch.float64, term), make_deep(case, torch.float64)
    expected = dense(truth(case, torch.float64, term), inputs)
    scale = dense(truth(case, torch.float64), inputs).norm()
    assert (autograd.hessian(H) - expected).norm() <= 1e-13 * scale
    assert autograd.check(H)
    assert autograd.check(H, max_bytes=1 << 10, samples=3)


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "dtype"), EVERY[2::3], ids=name)
def test_batches(case, dtype):
    inputs = make_deep(case, dtype)
    size = 1 + case.N // 3
    batches = list(zip(inputs.x.split(size), inputs.y.split(size), strict=True))
    H, whole = replace(inputs, x=batches, y=None).hessian(), hessian(case, dtype)
    assert_accurate(H.dense(), dense(truth(case, dtype), inputs))
    for B, expected, _ in parts_of(case, dtype):
        own, pairs = H[B.layers], some_pairs(*B.grid)
        assert_accurate(own.blocks(pairs), expected[tuple(pairs.T)])
        v = torch.linspace(-1, 1, B.shape[1], dtype=dtype)
        assert_product(own @ v, matrix(expected), v)
        assert torch.equal(own.norms(), B.norms())
        if B.symmetric:
            assert_accurate(own.diagonal(), matrix(expected).diagonal())
            assert own.ratio() == pytest.approx(B.ratio(), rel=TOLERANCE[dtype], nan_ok=True)
    assert H.layers == whole.layers


def test_positions_are_samples():
    case = SHALLOW[1]
    inputs = make_deep(case, torch.float64)
    H = replace(inputs, x=inputs.x.view(2, 3, -1), y=inputs.y.view(2, 3)).hessian()
    assert torch.equal(H.dense(), hessian(case, torch.float64).dense())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("case", "dtype"), [(SHALLOW[5], torch.float64), (DEEP[7], torch.float32)], ids=name)
def test_same_bits_on_every_call(case, dtype, threads, set_threads):
    set_threads(threads)
    assert_same_bits(*(everything(make_deep(case, dtype).hessian()) for _ in range(2)))


@pytest.mark.parametrize("case", SHALLOW[3:6], ids=name)
def test_in_other_hands(case):
    """Pickled, in another dtype, as a linear operator."""
    H = hessian(case, torch.float64)
    assert torch.equal(pickle.loads(pickle.dumps(H)).dense(), H.dense())
    low = hessian(case, torch.float32)
    assert_accurate(low.to(torch.float64).dense(), dense(truth(case, torch.float32), make_deep(case, torch.float32)))
    assert_same_bits(everything(low.to(torch.float64).to(torch.float32)), everything(low))
    v = np.linspace(-1, 1, H.shape[0])
    np.testing.assert_allclose(H.to_scipy() @ v, H.dense().numpy() @ v, atol=1e-12 * np.abs(H.dense().numpy()).max())
