"""Second step of the proof, one layer or cross-layer part at a time: tests/helpers/reference.py proves BlockMatrix."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from helpers.cases import DTYPES, HIDDEN, LINEAR, PEAKED, SMALL, Case, make_inputs
from helpers.reference import TERMS, TOLERANCE, assert_accurate, matrix, output_curvature, plain, truth
from helpers.results import assert_product, assert_ratio, some_pairs

SIDES = [(r, c) for r in ("hidden", "output") for c in ("hidden", "output")]
PARTS = [(case, ("output", "output")) for case in LINEAR] + [(case, key) for case in HIDDEN for key in SIDES]
SMALL_PARTS = [(case, key) for case in SMALL for key in (SIDES if case.hidden else SIDES[3:])]
MIXED = [(*part, DTYPES[(k + k // 4) % 2]) for k, part in enumerate(PARTS)]  # each part in one of the dtypes
ONE_LAYER = [(case, key, dtype) for case, key, dtype in MIXED if key[0] == key[1]]


def name(value) -> str:
    """Test id of a case, a layer pair or a dtype."""
    if isinstance(value, tuple):
        return "-".join(value)
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")


@lru_cache(maxsize=8)
def hessian(case, dtype, term="full"):
    """The Hessian object of a case, shared by consecutive tests."""
    H = make_inputs(case, dtype).hessian()
    return H if term == "full" else getattr(H, term)()


@lru_cache(maxsize=16)
def part(case, key, dtype, term="full"):
    """BlockMatrix, float64 truth and plain same-dtype blocks."""
    return hessian(case, dtype, term)[key], truth(case, dtype, term)[key], plain(case, dtype, term)[key]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("case", "key"), PARTS, ids=name)
def test_dense(case, key, dtype):
    B, expected, bar = part(case, key, dtype)
    rows, cols, a, b = expected.shape
    assert B.layers == key
    assert B.grid == (rows, cols)
    assert B.block_shape == (a, b)
    assert B.shape == (rows * a, cols * b)
    out = B.dense()
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert_accurate(out, matrix(expected), matrix(bar))
    if key[0] == key[1]:
        assert B.symmetric
        assert torch.equal(out, out.T)


@pytest.mark.parametrize(("case", "key", "dtype"), MIXED, ids=name)
def test_blocks(case, key, dtype):
    B, expected, bar = part(case, key, dtype)
    pairs = some_pairs(*B.grid)
    i, j = pairs.T
    assert_accurate(B.blocks(pairs), expected[i, j], bar[i, j])
    assert_accurate(B.blocks(pairs.tolist()), expected[i, j], bar[i, j])
    for i, j in pairs[-6:].tolist():
        assert_accurate(B.block(i, j), expected[i, j])


@pytest.mark.parametrize(("case", "key", "dtype"), ONE_LAYER, ids=name)
def test_diagonals(case, key, dtype):
    B, expected, bar = part(case, key, dtype)
    index = torch.arange(B.grid[0])
    assert_accurate(B.diagonal_blocks(), expected[index, index], bar[index, index])
    diagonal = matrix(expected).diagonal()
    assert_accurate(B.diagonal(), diagonal, matrix(bar).diagonal())
    assert abs(float(B.trace()) - diagonal.sum()) <= TOLERANCE[dtype] * diagonal.abs().sum()


@pytest.mark.parametrize(("case", "key", "dtype"), MIXED, ids=name)
def test_norms(case, key, dtype):
    B, expected, bar = part(case, key, dtype)
    norms, bar = expected.flatten(2).norm(dim=2), bar.flatten(2).norm(dim=2)
    out = B.norms()
    assert out.dtype == dtype
    assert_accurate(out, norms, bar)
    assert not out[norms == 0].any()
    pairs = some_pairs(*B.grid)
    i, j = pairs.T
    assert_accurate(B.norms(pairs), norms[i, j], bar[i, j])
    assert_accurate(B.norms(pairs.tolist()), norms[i, j], bar[i, j])


@pytest.mark.parametrize(("case", "key", "dtype"), ONE_LAYER, ids=name)
def test_ratio(case, key, dtype):
    B, expected, _ = part(case, key, dtype)
    assert_ratio(B.ratio(), expected.flatten(2).square().sum(2), 3 * TOLERANCE[dtype])


@pytest.mark.parametrize(("case", "key", "dtype"), MIXED, ids=name)
def test_products(case, key, dtype):
    B, expected, _ = part(case, key, dtype)
    v = torch.randn(B.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    assert_product(B @ v, matrix(expected), v)
    columns = B @ torch.stack([v, 2 * v], 1)
    assert columns.shape == (B.shape[0], 2)
    for k in (0, 1):
        assert_product(columns[:, k], (k + 1) * matrix(expected), v)


@pytest.mark.parametrize("term", TERMS[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("case", "key"), PARTS[::3] + SMALL_PARTS, ids=name)
def test_terms(case, key, dtype, term):
    B, expected, bar = part(case, key, dtype, term)
    pairs = some_pairs(*B.grid)
    i, j = pairs.T
    v = torch.ones(B.shape[1], dtype=dtype)
    assert_accurate(B.dense(), matrix(expected), matrix(bar))
    assert_accurate(B.blocks(pairs), expected[i, j], bar[i, j])
    assert_accurate(B.norms(), expected.flatten(2).norm(dim=2), bar.flatten(2).norm(dim=2))
    assert_product(B @ v, matrix(expected), v)
    if B.symmetric:
        assert_accurate(B.diagonal(), matrix(expected).diagonal(), matrix(bar).diagonal())
        squares = expected.flatten(2).square().sum(2)
        ratio, on = B.ratio(), squares.diagonal()
        assert ratio.diagonal == pytest.approx(on.mean().item(), rel=1e-5)
        off = (squares.sum() - on.sum()).item() / max(1, len(squares) * (len(squares) - 1))
        assert ratio.off_diagonal == pytest.approx(off, rel=1e-5, abs=1e-12 * ratio.diagonal)


@pytest.mark.parametrize(("case", "key"), [(c, k) for c in HIDDEN[:6] for k in SIDES[1:3]], ids=name)
def test_cross_parts_are_each_others_transpose(case, key):
    H = hessian(case, torch.float32)
    assert torch.equal(H[key].dense(), H[key[::-1]].dense().T)


@pytest.mark.parametrize(("case", "key"), SMALL_PARTS, ids=name)
def test_one_layer_name_is_its_own_part(case, key):
    H = hessian(case, torch.float64)
    if key[0] == key[1]:
        assert torch.equal(H[key[0]].dense(), H[key].dense())
        assert H[key[0]].layers == key


@pytest.mark.parametrize(("case", "key"), SMALL_PARTS, ids=name)
def test_dense_writes_into_out(case, key):
    B = hessian(case, torch.float64)[key]
    expected, out = B.dense(), torch.full(B.shape, torch.nan, dtype=torch.float64)
    assert B.dense(out=out) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize("key", SIDES, ids=name)
def test_all_methods_agree(key):
    """One larger part, entry by entry, whichever way it is asked for."""
    B = hessian(HIDDEN[4], torch.float64)[key]
    (rows, cols), (a, b) = B.grid, B.block_shape
    pairs = torch.cartesian_prod(torch.arange(rows), torch.arange(cols))
    blocks = B.blocks(pairs)
    assert_accurate(B.dense(), matrix(blocks.view(rows, cols, a, b)))
    assert_accurate(B.norms(), blocks.flatten(1).norm(dim=1).view(rows, cols))
    if B.symmetric:
        assert_accurate(B.diagonal_blocks(), blocks.view(rows, cols, a, b)[torch.arange(rows), torch.arange(rows)])


# --- peaked softmax: where p (1 - p) must not be formed by subtraction -------------------------------------------


@pytest.mark.parametrize(
    ("case", "key"), [(c, k) for c in PEAKED for k in (SIDES if c.hidden else SIDES[3:])], ids=name
)
def test_every_block_keeps_its_digits_under_a_peaked_softmax(case, key):
    B, expected, _ = part(case, key, torch.float64)
    rows, cols, a, b = expected.shape
    norms = expected.flatten(2).norm(dim=2)
    dense = B.dense().view(rows, a, cols, b).transpose(1, 2)
    errors = (dense - expected).flatten(2).norm(dim=2)
    assert (errors <= 1e-12 * norms).all(), (errors / norms).max()
    assert_accurate(B.blocks(some_pairs(rows, cols)), expected[tuple(some_pairs(rows, cols).T)])
    torch.testing.assert_close(B.norms(), norms, rtol=1e-10, atol=0.0)
    if key[0] == key[1]:
        assert_ratio(B.ratio(), norms.square(), 1e-11)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("gap", [4, 16, 40])
def test_norms_and_ratio_of_a_dominated_softmax(dtype, gap):
    """x = I makes the given logits exact, so that only the curvature can lose digits: at every level it must not."""
    import hessext

    N, C = 17, 33
    g = torch.Generator().manual_seed(gap)
    logits = torch.randint(-16, 16, (N, C), generator=g, dtype=torch.float64) / 8
    logits[torch.arange(N), torch.randint(C, (N,), generator=g)] += gap
    p = torch.softmax(logits, 1)
    eye = torch.eye(C, dtype=torch.float64)
    squares = ((torch.diag_embed(p * (p @ (1 - eye))) - (1 - eye) * p[:, :, None] * p[:, None]) / N).square().sum(0)
    B = hessext.linear(logits.T.contiguous().to(dtype), torch.eye(N, dtype=dtype))["output"]
    rel = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(B.norms().double(), squares.sqrt(), rtol=rel, atol=0.0)
    assert_ratio(B.ratio(), squares, rel)


# --- many samples, many classes ----------------------------------------------------------------------------------


def test_many_samples_accumulate_without_drift():
    case = Case(100_000, 3, 2, 2)
    for key in (SIDES[0], SIDES[1], SIDES[3]):
        B, expected, _ = part(case, key, torch.float32)
        assert_accurate(B.dense(), matrix(expected))
        assert_accurate(B.norms(), expected.flatten(2).norm(dim=2))
    B, expected, _ = part(case, ("hidden", "hidden"), torch.float32)
    diagonal = matrix(expected).diagonal()
    assert_accurate(B.diagonal(), diagonal)
    assert abs(float(B.trace()) - diagonal.sum()) <= 1e-6 * diagonal.abs().sum()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_ratio_of_many_classes(dtype):
    """The N x N form against the definition, ||H_ij||^2 = sum_nn' Q_n[i, j] Q_n'[i, j] (x_n . x_n' + 1)^2."""
    case = Case(33, 5, 300, bias="o")
    inputs = make_inputs(case, dtype).lift()
    B, _ = output_curvature(inputs.loss, inputs.x @ inputs.output_weight.T + inputs.output_bias, inputs.y)
    gram = (inputs.x @ inputs.x.T + 1).square()
    squares = (B.flatten(1) * (gram @ B.flatten(1))).sum(0).view(case.C, case.C)
    assert_ratio(make_inputs(case, dtype).hessian()["output"].ratio(), squares, 3 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("term", TERMS[1:])
def test_terms_of_many_classes(term, dtype):
    """Enough classes for the N x N form: it knows the terms, too."""
    H = make_inputs(Case(20, 3, 300), dtype).hessian()
    assert (H.residual() if term == "residual" else H.gauss_newton())["output"].ratio()[:2] == (
        (0.0, 0.0) if term == "residual" else H["output"].ratio()[:2]
    )


def test_many_classes_keep_the_cross_part_accurate():
    case = Case(6, 3, 20_000, 3, activation="tanh")
    inputs = make_inputs(case, torch.float32)
    lifted = inputs.lift()
    H, T = inputs.hessian().gauss_newton(), lifted.hessian().gauss_newton()  # too large for the reference
    assert_accurate(H["hidden", "output"].dense(), T["hidden", "output"].dense())
