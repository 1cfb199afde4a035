"""Norms and ratios in the Gram form: against definitions, against 50 digits, and in bounded memory."""

from __future__ import annotations

import mpmath
import pytest
import torch
from cases import DTYPES, Case, make_inputs
from torch.nn.functional import one_hot

import hessext
from hessext import _gram, _norms

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def squared_norms(H):
    """||H_ij||_F^2 by blocks, in float64."""
    B = H["output"]
    K = B.grid[0]
    pairs = torch.cartesian_prod(torch.arange(K), torch.arange(K))
    return _norms._block_squares(B)(pairs).view(K, K)


def sums(squares):
    return squares.diagonal().sum().item(), (squares - squares.diagonal().diag()).sum().item()


def close(value, expected, tolerance):
    assert abs(value - expected) <= tolerance * abs(expected), (value, expected, value / expected - 1)


@pytest.fixture(
    params=[(None, None), (2500, None), (2500, 0), (None, 0)], ids=["whole", "pairs", "tiles", "recomputed"]
)
def memory(request, monkeypatch):
    """All samples at once and blocks of a few; probabilities kept, and formed again tile by tile."""
    squares, kept = request.param
    if squares is not None:
        monkeypatch.setattr(_gram, "_SQUARES", squares)
    if kept is not None:
        monkeypatch.setattr(_gram, "_KEPT", kept)
        monkeypatch.setattr(_gram, "_TILE", 1000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(33, 5, 7),
        Case(1, 3, 4),
        Case(17, 2, 2, bias="o", scale=3.0),
        Case(31, 6, 97, loss="ce weight smooth", scale=4.0),
        Case(16, 6, 65, 3, bias="o", loss="ce sum ignore"),
        Case(40, 4, 33, loss="ce weight prob", scale=10.0),
        Case(270, 3, 5),
    ],
    ids=lambda c: c.name,
)
def test_softmax_sums(case, dtype, memory, isa):
    inputs = make_inputs(case, dtype)
    got = _gram.softmax_sums(inputs.hessian()["output"])
    for value, expected in zip(got, sums(squared_norms(inputs.lift().hessian())), strict=True):
        close(value, expected, 5 * TOLERANCE[dtype])


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
    got = _norms._pair_sums(B, _gram.PairSquares(B).sum)
    for value, wanted in zip(got, sums(squares), strict=True):
        close(value, wanted, 5 * TOLERANCE[dtype])
    m = B.grid[0]
    each = _gram.PairSquares(B).each(torch.cartesian_prod(torch.arange(m), torch.arange(m)))
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
    expected = _norms._block_squares(truth[key])(pairs).sqrt()
    error = (_gram.PairSquares(H[key]).each(pairs).sqrt() - expected).abs().max()
    # of the largest: where the two terms cancel, a block alone keeps fewer digits
    assert error <= (1e-5 if dtype == torch.float32 else 1e-12) * expected.max()


def test_output_pairs_between_weights_and_bias(memory):
    """W = (phi . phi')(psi . psi') where the two layers have different features."""
    B = make_inputs(Case(23, 4, 5, 3, bias="o"), torch.float64).hessian()["output.weight", "output.bias"]
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    torch.testing.assert_close(_gram.PairSquares(B).each(pairs), _norms._block_squares(B)(pairs), rtol=1e-11, atol=0)


def exact_ratio(weight, x):
    """Mean squared norms of a linear softmax layer in 50 digits."""
    with mpmath.workdps(50):
        mp = mpmath.mpf
        X = [[mp(v) for v in row] for row in x.tolist()]
        W = [[mp(v) for v in row] for row in weight.tolist()]
        P = []
        for row in X:
            e = [mpmath.exp(mpmath.fdot(w, row)) for w in W]
            P.append([v / mpmath.fsum(e) for v in e])
        N, C = len(X), len(W)
        K = [[mpmath.fdot(a, b) ** 2 / N**2 for b in X] for a in X]

        def square(q):
            return mpmath.fsum(K[n][k] * q[n] * q[k] for n in range(N) for k in range(N))

        others = [[mpmath.fsum(p[:j] + p[j + 1 :]) for j in range(C)] for p in P]
        on = mpmath.fsum(square([P[n][j] * others[n][j] for n in range(N)]) for j in range(C))
        off = mpmath.fsum(square([P[n][i] * P[n][j] for n in range(N)]) for i in range(C) for j in range(C) if i != j)
        rest = mpmath.fsum(1 - max(p) for p in P) / N
        return float(on / C), float(off / (C * (C - 1))), float(rest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["one top class", "every top class"])
@pytest.mark.parametrize("level", [0.8, 0.1, 1e-2, 1e-4, 1e-6, 1e-9, 1e-12])
def test_peaked_softmax_in_fifty_digits(level, shared, dtype):
    """From near-uniform to p_top = 1 - 1e-12, where (P P^T)^2 - Q Q^T would cancel even in float64."""
    g = torch.Generator().manual_seed(5)
    N, C, d = 7, 6, 4
    x = torch.randn(N, d + C, generator=g, dtype=torch.float64)
    W = torch.randn(C, d + C, generator=g, dtype=torch.float64) * 0.3
    # class indicators as features: sample n belongs to class n % C, or all to class 2
    label = torch.full((N,), 2) if shared else torch.arange(N) % C
    x[:, d:] = one_hot(label, C)
    W[:, d:] = torch.eye(C, dtype=torch.float64) * (0.05 if level == 0.8 else -torch.tensor(level).log().item() + 1.5)
    x, W = x.to(dtype), W.to(dtype)
    on, off, rest = exact_ratio(W, x)
    assert 0.03 * level < rest < 3 * level
    B = hessext.linear(W, x)["output"]
    tolerance = TOLERANCE[dtype] * max(1, (x @ W.T).abs().max().item())  # rounding of the logits
    for diagonal, off_diagonal in (
        sums(squared_norms({"output": B})),
        _gram.softmax_sums(B),
    ):
        close(diagonal / C, on, tolerance)
        close(off_diagonal / (C * (C - 1)), off, tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_units_of_the_features_do_not_matter(scale, dtype):
    """(phi . phi')^2 would overflow or underflow in float32."""
    inputs = make_inputs(Case(12, 3, 9), torch.float64)
    x, W = (inputs.x * scale).to(dtype), (inputs.output_weight / scale).to(dtype)
    B, truth = hessext.linear(W, x)["output"], hessext.linear(W.double(), x.double())["output"]
    for value, expected in zip(_gram.softmax_sums(B), sums(squared_norms({"output": truth})), strict=True):
        close(value, expected, 5 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax_scan_and_others(dtype, isa):
    """Class tiles in any number give torch's softmax, its top class and the sum of the others."""
    g = torch.Generator().manual_seed(3)
    for classes, samples, tile in ((1, 1, 1), (2, 17, 1), (97, 33, 40), (300, 65, 300), (131, 515, 7)):
        logits = 8 * torch.randn(classes, samples, generator=g, dtype=dtype)
        logits[0, 0], logits[-1, 0] = 60.0, -60.0
        largest = torch.full((samples,), -torch.inf, dtype=dtype)
        top, others = torch.zeros(samples, dtype=torch.int64), torch.zeros(samples, dtype=torch.float64)
        for c in range(0, classes, tile):
            hessext._ops.softmax_scan_(logits[c : c + tile], c, largest, top, others)
        assert torch.equal(top, logits.argmax(0))
        assert torch.equal(largest, logits.amax(0))
        exact = torch.exp((logits - largest).double()).scatter_(0, top[None], 0)
        torch.testing.assert_close(others, exact.sum(0), rtol=3e-7 if dtype == torch.float32 else 1e-14, atol=1e-30)
        hessext._ops.softmax_others_(logits, 0, largest, top, others, 4.0)
        expected = 4 * exact / (1 + exact.sum(0))
        torch.testing.assert_close(
            logits.double(), expected, rtol=5e-7 if dtype == torch.float32 else 2e-14, atol=1e-37
        )


@pytest.mark.parametrize("few", [3, 1 << 17], ids=["some rows at once", "all rows"])
@pytest.mark.parametrize(
    "case", [Case(20, 4, 9), Case(15, 6, 3, 8), Case(5, 3, 6, loss="mse"), Case(4, 3, 3, 1)], ids=lambda c: c.name
)
def test_row_norms(case, few, monkeypatch):
    monkeypatch.setattr(_norms, "_PAIRS", few)
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


def test_a_large_weight_is_not_copied_and_watched(monkeypatch):
    monkeypatch.setattr(hessext._api, "_COPIED", 0)
    x, W = torch.randn(4, 3), torch.randn(5, 3)
    H = hessext.linear(W, x)
    assert H._problem.output[0].data_ptr() == W.data_ptr()
    W += 1
    for call in (H["output"].ratio, H["output"].norms, H.dense):
        with pytest.raises(RuntimeError, match="output_weight was changed in place"):
            call()
    with pytest.raises(RuntimeError, match="output_weight was changed in place"):
        _gram.softmax_sums(H["output"])
