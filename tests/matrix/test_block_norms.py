"""Norms of single blocks in the Gram form, per row and all at once; which form is chosen."""

from __future__ import annotations

import pytest
import torch
from helpers.cases import DTYPES, Case, make_inputs
from helpers.gram_reference import close, squared_norms, sums
from helpers.reference import TOLERANCE

import hessext
from hessext.matrix import cost, dense_norms, gram, norms, softmax_gram


def unused(pairs):
    raise AssertionError("blocks were formed")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("case", "term"),
    [
        (Case(33, 7, 5, 6, bias="h"), "full"),
        (Case(20, 4, 3, 17, activation="tanh"), "full"),
        (Case(20, 4, 3, 17, activation="tanh"), "gauss_newton"),
        (Case(20, 4, 3, 17, activation="tanh"), "residual"),
        (Case(9, 3, 2, 1), "full"),
        (Case(31, 5, 4, 3, loss="mse", bias="ho"), "full"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.name,
)
def test_hidden_sums(case, term, dtype, memory):
    inputs = make_inputs(case, dtype)
    H, truth = inputs.hessian(), inputs.lift().hessian()
    B, expected = ((h if term == "full" else getattr(h, term)())["hidden"] for h in (H, truth))
    squares = expected.norms().square()
    got = norms.pair_sums(B._part, gram.PairSquares(B._part, norms.block_squares(B._part)).sums)
    for value, wanted in zip(got, sums(squares), strict=True):
        close(value, wanted, 5 * TOLERANCE[dtype])
    m = B.grid[0]
    each = gram.PairSquares(B._part, unused).each(torch.cartesian_prod(torch.arange(m), torch.arange(m)))
    torch.testing.assert_close(each.view(m, m), squares, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("term", ["full", "gauss_newton", "residual"])
@pytest.mark.parametrize(
    "key", [("hidden", "output"), ("output", "hidden"), ("hidden.bias", "output.weight"), ("hidden", "output.bias")]
)
@pytest.mark.parametrize(
    "case",
    [Case(19, 6, 4, 3, bias="ho"), Case(19, 6, 4, 3, bias="ho", activation="tanh", loss="mse")],
    ids=lambda c: c.name,
)
def test_cross_layer_pairs(case, key, term, dtype, memory):
    inputs = make_inputs(case, dtype)
    H, truth = (h if term == "full" else getattr(h, term)() for h in (inputs.hessian(), inputs.lift().hessian()))
    rows, cols = H[key].grid
    pairs = torch.cartesian_prod(torch.arange(rows), torch.arange(cols))
    expected = norms.block_squares(truth[key]._part)(pairs).sqrt()
    error = (
        (gram.PairSquares(H[key]._part, norms.block_squares(H[key]._part)).each(pairs).sqrt() - expected).abs().max()
    )
    # of the largest: where the two terms cancel, a block alone keeps fewer digits
    assert error <= (1e-5 if dtype == torch.float32 else 1e-12) * expected.max()


def test_output_pairs_between_weights_and_bias(memory):
    """W = (phi . phi')(psi . psi') where the two layers have different features."""
    B = make_inputs(Case(23, 4, 5, 3, bias="o"), torch.float64).hessian()["output.weight", "output.bias"]
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    torch.testing.assert_close(
        gram.PairSquares(B._part, unused).each(pairs), norms.block_squares(B._part)(pairs), rtol=1e-11, atol=0
    )


@pytest.mark.parametrize("few", [3, 1 << 17], ids=["some rows at once", "all rows"])
@pytest.mark.parametrize(
    "case", [Case(20, 4, 9), Case(15, 6, 3, 8), Case(5, 3, 6, loss="mse"), Case(4, 3, 3, 1)], ids=lambda c: c.name
)
def test_row_norms(case, few, monkeypatch):
    monkeypatch.setattr("hessext.matrix.norms._PAIRS", few)
    B = make_inputs(case, torch.float64).hessian()["hidden" if case.hidden else "output"]
    rows, norms, K = B.row_norms(), B.norms(), B.grid[0]
    off = norms - norms.diagonal().diag()
    torch.testing.assert_close(rows.diagonal, norms.diagonal(), rtol=1e-11, atol=0)
    torch.testing.assert_close(rows.mean, off.sum(1) / max(1, K - 1), rtol=1e-11, atol=0)
    torch.testing.assert_close(rows.max, off.amax(1), rtol=1e-11, atol=0)
    if K == 1:
        assert rows.argmax.tolist() == [-1]
        return
    assert (rows.argmax != torch.arange(K)).all()
    torch.testing.assert_close(off[torch.arange(K), rows.argmax], rows.max, rtol=1e-11, atol=0)
    torch.testing.assert_close(rows.dominance, norms.diagonal() / rows.mean, rtol=1e-11, atol=0)


def test_row_norms_need_one_layer():
    H = make_inputs(Case(4, 3, 3, 2), torch.float64).hessian()
    with pytest.raises(ValueError, match="row_norms: expected one layer"):
        H["hidden", "output"].row_norms()


def test_cancelling_blocks_are_formed():
    """A trained linear network: the residual is orthogonal to x, squares would keep half of the digits."""
    g = torch.Generator().manual_seed(2)
    N, d, C = 200, 64, 5
    x, V = torch.randn(N, d, generator=g).double(), torch.randn(C, d, generator=g).double()
    target = torch.randn(N, C, generator=g).double()
    residual = target - x @ torch.linalg.lstsq(x, target).solution  # orthogonal to x
    H = hessext.one_hidden(torch.eye(d).double(), V, x, x @ V.T + residual, activation="identity", loss="mse")
    B = H.residual()["hidden", "output"]
    pairs = torch.cartesian_prod(torch.arange(d), torch.arange(C))
    assert gram.PairSquares(B._part, norms.block_squares(B._part)).each(pairs).sqrt().max() < 1e-13
    assert B.norms().max() < 1e-13


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2048, 7], ids=["one tile", "tiles"])
@pytest.mark.parametrize("scale", [1.0, 40.0], ids=["flat", "peaked"])
def test_all_pairs_of_classes_at_once(scale, classes, dtype, monkeypatch):
    monkeypatch.setattr(softmax_gram, "_CLASSES", classes)
    inputs = make_inputs(Case(33, 5, 17, bias="o", scale=scale), dtype)
    got, B = inputs.hessian()["output"], inputs.lift().hessian()
    expected = squared_norms(B)
    squares = expected.new_zeros(17, 17)
    for i, j, tile in softmax_gram.class_pair_norms(got._part):
        assert max(tile.shape) <= classes
        squares[i : i + tile.shape[0], j : j + tile.shape[1]] = tile
    squares = squares.triu(1).square_()
    tolerance = 5 * TOLERANCE[dtype] * max(1, 8 * scale)  # rounding of logits
    torch.testing.assert_close(squares, expected.triu(1), rtol=tolerance, atol=0)


def test_norms_of_many_classes(monkeypatch):
    """However many classes there are, their norms are formed in tiles: no other form takes over."""
    large = hessext.linear(torch.zeros(4100, 40), torch.ones(8, 40))["output"]._part
    assert cost.form_of_all(large) is cost.Form.CLASS_PAIRS
    B = make_inputs(Case(9, 40, 23), torch.float64).hessian()["output"]
    norms, rows = B.norms(), B.row_norms()
    monkeypatch.setattr(softmax_gram, "_CLASSES", 7)
    torch.testing.assert_close(B.norms(), norms, rtol=1e-13, atol=0)
    for got, expected in zip(B.row_norms(), rows, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("case", "key", "gram"),
    [
        (Case(8, 40, 30), "output", True),
        (Case(400, 3, 30), "output", False),
        (Case(8, 40, 3, 12), "hidden", True),
        (Case(400, 3, 3, 12), "hidden", False),
        (Case(8, 60, 3, 12), ("hidden", "output"), True),
        (Case(400, 3, 3, 12), ("hidden", "output"), False),
    ],
    ids=str,
)
def test_the_cheaper_form_is_chosen(case, key, gram, monkeypatch):
    formed = []
    for name in ("block_squares", "dense_"):
        form = getattr(hessext._ops, name)
        monkeypatch.setattr(hessext._ops, name, lambda *a, form=form: formed.append(1) or form(*a))
    B = make_inputs(case, torch.float64).hessian()[key]
    B.norms()
    assert bool(formed) != gram
    if isinstance(key, str):
        formed.clear()
        B.ratio()
        assert bool(formed) != gram


@pytest.mark.parametrize("piece", [1 << 26, 2000, 1], ids=["one piece", "pieces", "least pieces"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("case", "key", "term"),
    [
        (Case(40, 3, 9, bias="o"), "output", "full"),
        (Case(40, 3, 9, 4, bias="ho"), "output", "full"),
        (Case(40, 5, 7, 4, bias="ho"), ("hidden", "output"), "full"),
        (Case(40, 5, 7, 4, bias="ho"), ("output", "hidden"), "gauss_newton"),
        (Case(40, 5, 7, 4, activation="tanh"), ("hidden", "output"), "residual"),
        (Case(40, 5, 7, 4, bias="ho", loss="mse"), ("hidden", "output"), "full"),
        (Case(40, 5, 7, 4, bias="ho"), ("hidden.weight", "output.bias"), "full"),
    ],
    ids=str,
)
def test_norms_from_dense_pieces(case, key, term, dtype, piece, monkeypatch):
    monkeypatch.setattr(dense_norms, "_PIECE", piece)
    inputs = make_inputs(case, dtype)
    H, truth = (h if term == "full" else getattr(h, term)() for h in (inputs.hessian(), inputs.lift().hessian()))
    rows, cols = truth[key].grid
    pairs = torch.cartesian_prod(torch.arange(rows), torch.arange(cols))
    expected = norms.block_squares(truth[key]._part)(pairs).view(rows, cols)
    part = H[key]._part
    squares = dense_norms.dense_squares(part.upright)
    squares = squares.T if part.transposed else squares
    error = (squares.sqrt() - expected.sqrt()).abs().max()
    assert error <= (1e-5 if dtype == torch.float32 else 1e-12) * expected.sqrt().max()


def test_small_blocks_come_from_dense_pieces():
    """At the paper's widths blocks of the last layer and beside it are small, those of the hidden layer are not."""
    H = make_inputs(Case(300, 100, 100, 8), torch.float32).hessian()
    forms = [cost.form_of_all(H[key]._part) for key in ("output", ("hidden", "output"), "hidden")]
    assert forms == [cost.Form.DENSE, cost.Form.DENSE, cost.Form.BLOCKS]
    for key in ("output", ("hidden", "output"), ("output", "hidden")):
        B = H[key]
        torch.testing.assert_close(B.norms().square().sum().sqrt().item(), B.norm(), rtol=1e-5, atol=0)
        some = torch.tensor([[0, 0], [3, 2], [7, 7]])
        torch.testing.assert_close(B.norms()[some[:, 0], some[:, 1]], B.norms(some), rtol=1e-5, atol=0)
