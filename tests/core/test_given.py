"""Given entries of Q_n go the way of the closed forms: handed in, they give the same blocks, norms and matrices."""

from __future__ import annotations

import pytest
import torch
from helpers.cases import DTYPES, Case, make_inputs
from helpers.reference import TERMS, assert_accurate, matrix, plain, truth

from hessext import _ops
from hessext._ops import Curvature, Kind
from hessext.matrix.curvature import Assemblies
from hessext.matrix.part import Part

# Every kind at awkward sizes, several tiles, sparse entries (ReLU), biases, and more samples than a span.
CASES = [
    Case(1, 1, 2),
    Case(33, 17, 5, bias="o"),
    Case(31, 15, 4, 17, bias="ho"),
    Case(17, 3, 33, 2, loss="mse"),
    Case(16, 7, 1, 5, activation="gelu", bias="h"),
    Case(20, 150, 3, 4, bias="h"),
]
WIDE = Case(65, 5, 40, 16, bias="ho")  # more pairs between the layers than a tile has columns
LONG = Case(20000, 3, 2, 2, bias="o")
# Two of them in several batches of pairs, within a layer and between two.
SLICED = [Case(47000, 9, 3, 2, bias="o"), Case(93000, 3, 18), Case(20000, 3, 12, 16, bias="ho")]


def all_pairs(curvature):
    if curvature.symmetric:
        return torch.triu_indices(curvature.rows, curvature.cols).T.contiguous()
    return torch.cartesian_prod(torch.arange(curvature.rows), torch.arange(curvature.cols))


def given(curvature, entries):
    """The same curvature with these entries, and with what the residual adds between neighbouring layers."""
    residual = {} if curvature.residual is None else {"slope": curvature.slope, "residual": curvature.residual}
    return Curvature(int(Kind.GIVEN), curvature.rows, curvature.cols, curvature.symmetric, entries=entries, **residual)


def parts(case, dtype, term="gauss_newton"):
    """(name, sides, curvature) of each part."""
    H = make_inputs(case, dtype).hessian()
    for k, row in enumerate(H.layers):
        for col in H.layers[k:]:
            part = Part(H._data, term, *(H._data.network.groups[name] for name in (row, col)))
            (call,) = Assemblies(part)(None)
            yield (row, col), call.sides, call.curvature


def sizes(sides):
    left, left_ones, right, right_ones, _ = sides
    return left.shape[1] + left_ones, right.shape[1] + right_ones


def moved(device, *values):
    return [v.to(device) if isinstance(v, torch.Tensor) else v for v in values]


def dense(sides, curvature, pairs=None, out=None):
    """The matrix of a part."""
    (s, t), (left, _, right, _, same) = sizes(sides), sides
    if out is None:
        out = torch.zeros(curvature.rows * s, curvature.cols * t, dtype=left.dtype, device=left.device)
    axes = [0, s, left.shape[1], s, left.shape[1], 0, t, right.shape[1], t, right.shape[1]]
    _ops.dense_(out, out.shape[1], axes, True, same and curvature.symmetric, pairs, *sides, *curvature)
    return out


def check(case, dtype, device, term="gauss_newton"):
    for name, sides, curvature in parts(case, dtype, term):
        exact, bar = truth(case, dtype, term)[name], plain(case, dtype, term)[name]
        sides, curvature = moved(device, *sides), Curvature(*moved(device, *curvature))
        pairs = all_pairs(curvature).to(device)
        entries = _ops.curvature_entries(pairs, *curvature)
        Q = given(curvature, entries)
        assert torch.equal(_ops.curvature_entries(pairs, *Q), entries)
        i, j = pairs.cpu().T
        assert_accurate(_ops.blocks(pairs, False, *sides, *Q).cpu(), exact[i, j], bar[i, j])
        transposed = _ops.blocks(pairs, True, *sides, *Q).cpu()
        assert_accurate(transposed, exact[i, j].mT, bar[i, j].mT)
        norms = _ops.block_squares(pairs, *sides, *Q).sqrt().to(dtype)
        assert_accurate(norms.cpu(), exact[i, j].flatten(1).norm(dim=1))
        assert_accurate(dense(sides, Q).cpu(), matrix(exact), matrix(bar))
        # some pairs in another order, then the others
        some = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
        out = torch.full_like(dense(sides, Q), torch.nan)
        for piece in some.to(device).tensor_split(3):
            dense(sides, given(curvature, entries[piece]), pairs[piece], out)
        assert_accurate(out.cpu(), matrix(exact), matrix(bar))
        out.zero_()
        dense(sides, given(curvature, entries[:1]), pairs[:1], out)
        s, t = sizes(sides)
        out[:s, :t] = 0
        assert not out.any()  # pairs that are not listed are left alone


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CASES, WIDE], ids=lambda c: c.name)
def test_given_entries(case, dtype, isa):
    check(case, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_given_entries_on_a_gpu(case, dtype, cuda):
    check(case, dtype, cuda)


@pytest.mark.parametrize("case", [CASES[4], WIDE], ids=lambda c: c.name)
@pytest.mark.parametrize("term", TERMS)
def test_given_entries_of_each_term(term, case, isa):
    check(case, torch.float64, "cpu", term)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_samples_than_a_span(dtype, isa):
    check(LONG, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("case", "term"),
    [(SLICED[0], "gauss_newton"), *((case, "full") for case in SLICED)],
    ids=lambda v: getattr(v, "name", v),
)
def test_more_samples_than_weights_are_held_of(case, dtype, term, isa):
    check(case, dtype, "cpu", term)


@pytest.mark.parametrize("term", ["full", "gauss_newton"])
@pytest.mark.parametrize("count", [2, 3, 17])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_with_any_number_of_threads(dtype, count, term, set_threads):
    for case in [*SLICED[:2], WIDE]:
        for _, sides, curvature in parts(case, dtype, term):
            results = []
            for number in (1, count):
                set_threads(number)
                squares = _ops.block_squares(all_pairs(curvature), *sides, *curvature)
                results.append((dense(sides, curvature), squares))
            assert all(map(torch.equal, *results))


@pytest.mark.parametrize("term", ["full", "gauss_newton"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [2, 40], ids=["together", "pairwise"])
def test_the_same_path_gives_the_same_bits(features, dtype, term, isa):
    """Entries without zeros, which the plan takes for what closed forms without zeros are."""
    case = Case(300, features, 3, 4, activation="tanh", bias="ho")
    for _, sides, curvature in parts(case, dtype, term):
        pairs = all_pairs(curvature)
        Q = given(curvature, _ops.curvature_entries(pairs, *curvature))
        assert torch.equal(_ops.blocks(pairs, False, *sides, *Q), _ops.blocks(pairs, False, *sides, *curvature))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_square_grid(dtype, cuda):
    """Q_n that is neither symmetric nor of one sign, with zeros, of one layer's features."""
    g = torch.Generator().manual_seed(1)
    x, Q = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((70, 9), (70, 6, 6)))
    Q[torch.rand(70, 6, 6, generator=g) < 0.4] = 0
    x, Q = x.to(dtype), Q.to(dtype)
    entries = Q.permute(1, 2, 0).reshape(36, 70).contiguous().to(cuda)
    curvature = Curvature(int(Kind.GIVEN), 6, 6, False, entries=entries)
    sides = x.to(cuda), True, x.to(cuda), True, True
    phi = torch.cat([x.double(), torch.ones(70, 1)], 1)
    exact = torch.einsum("nij,na,nb->ijab", Q.double(), phi, phi)
    assert_accurate(dense(sides, curvature).cpu(), matrix(exact))


def test_entries_of_other_pairs_are_refused():
    x, entries = torch.ones(5, 2), torch.ones(3, 5)
    curvature = Curvature(int(Kind.GIVEN), 2, 2, True, entries=entries)
    sides, pairs = (x, False, x, False, True), torch.zeros(2, 2, dtype=torch.int64)
    for call in (
        lambda: _ops.blocks(pairs, False, *sides, *curvature),
        lambda: _ops.block_squares(pairs, *sides, *curvature),
        lambda: _ops.curvature_entries(pairs, *curvature),
        lambda: _ops.dense_(torch.zeros(4, 4), 4, [0, 2, 2, 2, 2] * 2, True, True, pairs, *sides, *curvature),
    ):
        with pytest.raises(ValueError, match="entries: expected rows for 2 pairs; got 3"):
            call()
