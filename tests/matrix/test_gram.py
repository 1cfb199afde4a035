"""Norms and ratios in the Gram form: against definitions, against 50 digits, and in bounded memory."""

from __future__ import annotations

import mpmath
import pytest
import torch
from helpers.cases import DTYPES, Case, make_inputs
from helpers.gram_reference import assert_tiles, close, softmax_sums, squared_norms, sums
from helpers.reference import TOLERANCE
from torch.nn.functional import one_hot

import hessext
from hessext.matrix import gram, norms, other_classes
from hessext.matrix.sample_curvature import sample_curvature


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
    got = softmax_sums(inputs.hessian()["output"]._part)
    for value, expected in zip(got, sums(squared_norms(inputs.lift().hessian())), strict=True):
        close(value, expected, 5 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(33, 5, 7),
        Case(65, 2, 16, loss="ce weight smooth", scale=4.0),
        Case(17, 2, 2, 3, "tanh", bias="o", scale=3.0),
        Case(31, 6, 97, 15, loss="mse"),
    ],
    ids=lambda c: c.name,
)
def test_matrices_over_pairs_of_samples(case, dtype, memory, isa):
    inputs = make_inputs(case, dtype)
    assert_tiles(inputs.hessian(), inputs.lift().hessian(), dtype)


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
        softmax_sums(B._part),
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
    for value, expected in zip(softmax_sums(B._part), sums(squared_norms({"output": truth})), strict=True):
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
        power = torch.arange(samples, dtype=torch.float64).remainder(3).neg().exp2()
        hessext._ops.softmax_others_(logits, 0, largest, top, others, power)
        expected = exact / (1 + exact.sum(0)) / power
        torch.testing.assert_close(
            logits.double(), expected, rtol=5e-7 if dtype == torch.float32 else 2e-14, atol=1e-37
        )


def test_a_large_weight_is_not_copied_and_watched(monkeypatch):
    monkeypatch.setattr(hessext._parameters, "_COPIED", 0)
    x, W = torch.randn(4, 3), torch.randn(5, 3)
    H = hessext.linear(W, x)
    assert H._data.network.like.data_ptr() == W.data_ptr()
    W += 1
    for call in (H["output"].ratio, H["output"].norms, H.dense):
        with pytest.raises(RuntimeError, match="output_weight was changed in place"):
            call()
    with pytest.raises(RuntimeError, match="output_weight was changed in place"):
        softmax_sums(H["output"]._part)


def test_a_sample_without_weight_does_not_hide_the_others():
    """Each sample has its own power of two: beside a uniform one, products of p = e^-44 would underflow in float32."""
    g = torch.Generator().manual_seed(1)
    label = torch.arange(9) % 6
    x = torch.cat([one_hot(label, 6).float(), torch.ones(9, 1)], 1)
    W = torch.cat([44 * torch.eye(6), 0.1 * torch.randn(6, 1, generator=g)], 1)
    x[8] = 0
    ignored = label.clone()
    ignored[8] = -100
    for y in (None, ignored):
        loss = "cross_entropy" if y is None else torch.nn.CrossEntropyLoss(ignore_index=-100)
        B = hessext.linear(W, x, y, loss=loss)["output"]
        truth = hessext.linear(W.double(), x.double(), y, loss=loss)
        for value, expected in zip(softmax_sums(B._part), sums(squared_norms(truth)), strict=True):
            close(value, expected, 44e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_beside_tiny_features(dtype):
    inputs = make_inputs(Case(12, 3, 9, bias="o"), torch.float64)
    x, W, b = ((t * f).to(dtype) for t, f in ((inputs.x, 1e-25), (inputs.output_weight, 1e25), (inputs.output_bias, 1)))
    B = hessext.linear(W, x, bias=b)["output"]
    truth = hessext.linear(W.double(), x.double(), bias=b.double())
    for value, expected in zip(softmax_sums(B._part), sums(squared_norms(truth)), strict=True):
        close(value, expected, 5 * TOLERANCE[dtype])


@pytest.mark.parametrize(("scale", "dtype"), [(1e-160, torch.float64), (1e90, torch.float64), (2e38, torch.float32)])
def test_extreme_features_raise_nothing(scale, dtype):
    x = torch.full((12, 9), scale, dtype=dtype) * torch.linspace(-1, 1, 12, dtype=dtype)[:, None]
    B = hessext.linear(torch.zeros(7, 9, dtype=dtype), x)["output"]
    assert all(value >= 0 for value in softmax_sums(B._part))
    assert (gram.PairSquares(B._part, norms.block_squares(B._part)).each(torch.tensor([[0, 1]])) >= 0).all()
    assert B.ratio().diagonal >= 0
    B.norms(), B.row_norms()


def test_targets_of_both_signs_cancel():
    """Each x twice, with weights 1 and -1 + 1e-9: a ratio of squares must not become negative."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(40, 40, generator=g).double().repeat(2, 1)
    y = torch.zeros(80, 30).double()
    y[:40, 0], y[40:, 0] = 1, -1 + 1e-9
    B = hessext.linear(torch.randn(30, 40, generator=g).double(), x, y, loss=hessext.UnnormalizedCrossEntropyLoss())[
        "output"
    ]
    squares = squared_norms({"output": B})
    on, off = sums(squares)
    ratio = B.ratio()
    close(ratio.diagonal, on / 30, 1e-5)  # blocks keep 7 digits here
    close(ratio.off_diagonal, off / (30 * 29), 1e-5)
    torch.testing.assert_close(B.norms(), squares.sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_classes_than_a_span(dtype):
    """Sums over many classes go on in float64."""
    inputs = make_inputs(Case(20, 2, 9300), dtype)
    wide = inputs.lift()
    P = torch.softmax(wide.x @ wide.output_weight.T, 1)
    W = (wide.x @ wide.x.T).square() / 20**2
    S, Q = P * (1 - P), P.square()
    got = softmax_sums(inputs.hessian()["output"]._part)
    close(got[0], (W * (S @ S.T)).sum().item(), TOLERANCE[dtype])
    close(got[1], (W * ((P @ P.T).square() - Q @ Q.T)).sum().item(), TOLERANCE[dtype])


def test_memory_is_asked_for(monkeypatch):
    monkeypatch.setattr(hessext._memory, "_ALWAYS_FREE", 0)
    monkeypatch.setattr(hessext._memory, "_free_on_host", lambda: 1000)
    B = make_inputs(Case(64, 80, 40), torch.float64).hessian()["output"]
    for call in (B.ratio, B.row_norms, lambda: B.norms([(0, 1)] * 60)):
        with pytest.raises(MemoryError, match="are free on cpu"):
            call()


def test_more_memory_means_fewer_passes_over_the_classes(monkeypatch):
    """Logits are formed once for their sums, and once more for every block of samples that fits."""
    made, logits_ = [], hessext._ops.logits_

    def spy(out, *arguments):
        made.append(out.numel())
        return logits_(out, *arguments)

    monkeypatch.setattr(hessext._ops, "logits_", spy)
    monkeypatch.setattr(other_classes, "spare", lambda *_: False)
    monkeypatch.setattr(other_classes, "_SAMPLES", 1)
    N, C, passes = 12, 5, []
    part = hessext.linear(torch.ones(C, 2), torch.ones(N, 2))["output"]._part
    for squares in (1 << 30, 2000, 500, 1):
        monkeypatch.setattr(gram, "_SQUARES", squares)
        softmax_sums(part)
        passes.append(sum(made) / (C * N))
        made.clear()
    assert passes[0] == 2 < passes[1] < passes[2] < passes[3] == 1 + N


@pytest.mark.parametrize(("dtype", "half"), [(torch.float32, False), (torch.float32, True), (torch.float64, False)])
def test_bits_where_probabilities_are_kept_and_formed_again(dtype, half, monkeypatch):
    """In tiles of classes, and in blocks of samples that begin within what is one product."""
    torch.manual_seed(0)
    W, x = torch.randn(301, 37, dtype=dtype), torch.randn(1250, 37, dtype=dtype) / 4
    B = hessext.linear(W.half() if half else W, x)["output"]
    found = []
    for squares, kept in ((1 << 30, True), (1 << 30, False), (400 * 400 * 20, True), (400 * 400 * 20, False)):
        monkeypatch.setattr(gram, "_SQUARES", squares)
        monkeypatch.setattr(other_classes, "_TILE", 90 * 1250 * dtype.itemsize)
        monkeypatch.setattr(other_classes, "spare", lambda *_, kept=kept: kept)
        found.append((*softmax_sums(B._part), B.approximations()))
    assert repr(found[0]) == repr(found[1]) != repr(found[3]) == repr(found[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_traces_leave_the_probabilities_alone(dtype):
    curvature = sample_curvature(make_inputs(Case(33, 5, 7), dtype).hessian()["output"]._part)
    before = [tile.clone() for _, tile in curvature.others.tiles(slice(None))]
    assert curvature.traces.gt(0).all()
    for (_, tile), expected in zip(curvature.others.tiles(slice(None)), before, strict=True):
        assert torch.equal(tile, expected)
