"""What approximations lose: every row against its definition as an explicit matrix."""

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
from hessext.matrix import sample_pairs

ACCURACY = {torch.float32: 1e-5, torch.float64: 1e-10}
TERMS = ("full", "gauss_newton", "residual")

CASES = [
    Case(33, 5, 7),
    Case(3, 17, 2, bias="o"),
    Case(16, 1, 5, loss="ce weight smooth"),
    Case(31, 6, 9, loss="ce sum ignore", scale=3.0),
    Case(40, 4, 6, loss="ce weight prob", scale=10.0, bias="o"),
    Case(17, 3, 4, loss="mse"),
    Case(12, 3, 1, loss="bce weight", bias="o"),
    Case(33, 5, 7, 4, bias="ho"),
    Case(15, 3, 5, 6, "tanh", bias="h"),
    Case(31, 4, 2, 3, "gelu", "mse"),
    Case(17, 3, 6, 5, "silu", "ce sum ignore", bias="o"),
    Deep(17, (4, 5, 3, 6), "tanh", "ce weight smooth", bias="1"),
    Deep(31, (3, 4, 4, 5), "relu"),
]


def of_term(H, term):
    return H if term == "full" else getattr(H, term)()


def expected_rows(inputs, layer, term):
    """Names and (relative error, scaled error, cosine) of the float64 values; None where H is 0."""
    H = inputs.hessian()
    B, gauss_newton = of_term(H, term)[layer], H.gauss_newton()[layer]
    dense = B.dense()
    if not dense.any():
        return None
    assert (explicit.assembled(B.curvature(), B.features) - dense).abs().max() <= 1e-14 * dense.abs().max()
    found = explicit.matrices(dense, gauss_newton.curvature(), B.features, counted_of(inputs))
    return {name: explicit.errors(dense, M) for name, M in found.items()}


def assert_rows(table, expected, dtype):
    for name, (relative, scaled, cosine) in expected.items():
        row = table[name]
        assert row.name == name and row.numbers > 0
        if "coincide" in row.note:  # other eigenvectors, other numbers
            continue
        if name == "Shampoo":
            relative = scaled
        if row.note.startswith("below"):
            assert max(relative, scaled) <= row.relative_error <= (2e-3 if dtype == torch.float32 else 1e-7), name
            continue
        assert not row.note, row
        assert row.relative_error == pytest.approx(relative, rel=0, abs=ACCURACY[dtype] * max(1, relative)), name
        assert row.scaled_error == pytest.approx(scaled, rel=0, abs=ACCURACY[dtype]), name
        assert row.cosine == pytest.approx(cosine, rel=0, abs=ACCURACY[dtype]), name
        assert row.captured == row.cosine**2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_rows_against_explicit_matrices(case, dtype):
    inputs = inputs_of(case, dtype)
    H = inputs.hessian()
    for layer in {name.rpartition(".")[0] or name for name in H.layers}:
        for term in TERMS:
            expected = expected_rows(inputs.lift(), layer, term)
            table = of_term(H, term)[layer].approximations()
            assert len(table) == 10 and str(table)
            if expected is None:
                assert table.norm == 0
                assert all(math.isnan(row.relative_error) and row.note == "H is 0" for row in table)
            else:
                assert_rows(table, expected, dtype)


@pytest.mark.parametrize("case", CASES[:8:3] + CASES[-2:], ids=lambda c: c.name)
def test_tiles_give_the_same(case, monkeypatch):
    inputs = inputs_of(case, torch.float64)
    H = inputs.hessian()
    layers = [name for name in H.layers if "bias" not in name]
    whole = [H[name].approximations(groups=1) for name in layers]
    monkeypatch.setattr(sample_pairs, "_BYTES", 128 * 7 * 7)
    for name, expected in zip(layers, whole, strict=True):
        pairs = sample_pairs.Pairs(H[name]._part)
        assert not pairs.together
        for row, other in zip(H[name].approximations(groups=1), expected, strict=True):
            assert row.name == other.name and row.note == other.note
            assert row[1:4] == pytest.approx(other[1:4], rel=1e-10, abs=1e-10, nan_ok=True)


def test_places_of_a_layer():
    model, batches = Transformer(), [(x, x.roll(-1, 1)) for x in (tokens(2, 5), tokens(1, 4, seed=1))]
    name = "blocks.1.mlp.up"
    H = hessext.layer(model, name, batches)
    for term in TERMS:
        B, gauss_newton = of_term(H, term)[name], H.gauss_newton()[name]
        dense = B.dense()
        counted = torch.ones(len(B.features), dtype=torch.bool)
        found = explicit.matrices(dense, gauss_newton.curvature(), B.features, counted)
        expected = {key: explicit.errors(dense, M) for key, M in found.items()}
        assert_rows(B.approximations(), expected, torch.float64)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss()], ids=lambda loss: type(loss).__name__)
def test_kfac_of_curvlinops(loss):
    """Its K-FAC of type 2 with weight and bias together is the same product."""
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    x, y = torch.randn(40, 6).double(), torch.randint(4, (40,))
    y = torch.randn(40, 4).double() if isinstance(loss, nn.MSELoss) else y
    options = {"fisher_type": "type-2", "kfac_approx": "expand", "separate_weight_and_bias": False}
    operator = curvlinops.KFACLinearOperator(model, loss, list(model.parameters()), [(x, y)], **options)
    M, start = operator @ torch.eye(59, dtype=torch.float64), 0
    H = hessext.hessian(model, x, y, loss)
    for name, rows, cols in (("0", 5, 6), ("2", 4, 5)):
        # torch's order of a weight and a bias, as blocks of rows with the bias last
        weight, bias = torch.arange(rows * cols).view(rows, cols), rows * cols + torch.arange(rows)
        order = start + torch.cat([weight, bias[:, None]], 1).flatten()
        start += len(order)
        relative, _, cosine = explicit.errors(H[name].dense(), M[order][:, order])
        row = H[name].approximations()["K-FAC"]
        assert row.relative_error == pytest.approx(relative, abs=1e-14)
        assert row.cosine == pytest.approx(cosine, abs=1e-14)


# --- nearly exact -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("level", [1e-3, 1e-6])
@pytest.mark.parametrize("hidden", [False, True], ids=["head", "hidden"])
def test_nearly_exact_products(level, hidden, dtype):
    """Features and curvature that hardly differ from sample to sample: a Kronecker product but for `level`."""
    g = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x = (normal(4) + level * normal(30, 4)).to(dtype)
    V, W, y = normal(5, 6 if hidden else 4).to(dtype), normal(6, 4).to(dtype), torch.arange(30) % 5

    def B(dtype):
        t = [t.to(dtype) for t in (W, V, x)]
        return hessext.one_hidden(*t, y, activation="relu")["hidden"] if hidden else hessext.linear(*t[1:])["output"]

    lifted, table = B(torch.float64), B(dtype).approximations()
    found = explicit.matrices(lifted.dense(), lifted.curvature(), lifted.features, torch.ones(30, dtype=torch.bool))
    expected = {name: explicit.errors(lifted.dense(), M) for name, M in found.items()}
    assert expected["K-FAC"][0] < 10 * level
    assert_rows(table, expected, dtype)
    for name in ("K-FAC", "Shampoo, squared factors", "nearest Kronecker"):
        # float32 data are Q_n and phi_n with 6e-8 of their own size off
        least = 2e-7 if dtype == torch.float32 else 1e-4 * level
        assert table[name].relative_error == pytest.approx(expected[name][0], rel=1e-4, abs=least), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rest", [1e-2, 1e-6, 1e-12])
def test_peaked_softmax(rest, dtype):
    g = torch.Generator().manual_seed(4)
    x = torch.randn(24, 5, generator=g, dtype=torch.float64)
    W = torch.randn(6, 5, generator=g, dtype=torch.float64)
    b = torch.zeros(6, dtype=torch.float64)
    b[2] = -math.log(rest)
    t = [t.to(dtype) for t in (W, x, b)]
    lifted = hessext.linear(t[0].double(), t[1].double(), bias=t[2].double())["output"]
    table = hessext.linear(t[0], t[1], bias=t[2])["output"].approximations()
    dense = lifted.dense()
    found = explicit.matrices(dense, lifted.curvature(), lifted.features, torch.ones(24, dtype=torch.bool))
    assert_rows(table, {name: explicit.errors(dense, M) for name, M in found.items()}, dtype)


@pytest.mark.parametrize("level", [1e-2, 1e-6])
def test_features_of_nearly_one_entry(level):
    """Input-column blocks and the diagonal are nearly exact where each sample has one large feature."""
    g = torch.Generator().manual_seed(5)
    x = torch.eye(5, dtype=torch.float64).repeat(4, 1) + level * torch.randn(20, 5, generator=g, dtype=torch.float64)
    B = hessext.linear(torch.randn(3, 5, generator=g, dtype=torch.float64), x)["output"]
    dense = B.dense()
    found = explicit.matrices(dense, B.curvature(), B.features, torch.ones(20, dtype=torch.bool))
    expected, table = explicit.errors(dense, found["input-column blocks"]), B.approximations()
    assert table["input-column blocks"].relative_error == pytest.approx(expected[0], rel=1e-9, abs=0)


# --- other rows, other numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[5], CASES[8], CASES[11]], ids=lambda c: c.name)
def test_groups(case):
    H = inputs_of(case, torch.float64).hessian()
    for layer in [name for name in H.layers if "bias" not in name]:
        B = H[layer]
        K, s = B.grid[0], B.block_shape[0]
        groups = torch.arange(K) * 7 % 3
        if not B.dense().any():
            continue
        M = explicit.kept_where(B.dense().view(K, s, K, s), (groups[:, None] == groups)[:, None, :, None])
        row = B.approximations(groups=groups)[-1]
        count = len(groups.unique())
        assert row.name == f"block-diagonal, {count} groups"
        assert row[1:4] == pytest.approx(explicit.errors(B.dense(), M.reshape(K * s, -1)), rel=1e-10, abs=1e-12)
        assert row.numbers == sum(int((groups == g).sum() * s) ** 2 for g in groups.unique())
        one = B.approximations(groups=list(range(K)))[-1]
        assert one[1:5] == pytest.approx(B.approximations()["block-diagonal"][1:5], rel=1e-9, abs=1e-12)


def test_numbers_and_text():
    B = make_inputs(Case(33, 5, 7), torch.float64).hessian()["output"]
    table = B.approximations()
    assert [row.numbers for row in table] == [7 * 25, 5 * 49, 35, 7, 74, 74 + 35, 74, 74, 49, 74]
    lines = str(table).splitlines()
    assert lines[0] == f"'output', 7 blocks of 5, full: ||H|| = {B.norm():.4g}"
    assert len(lines) == 12 and lines[1].split() == (
        ["approximation", "captured", "+-", "population", "error", "scaled", "error", "numbers"]
    )
    assert lines[2].startswith("block-diagonal") and f"{table[0].captured:.4f}" in lines[2] and lines[2].endswith("175")
    assert table["kfac"] is table["K-FAC"] and table["shampoo squared factors"] is table["Shampoo, squared factors"]
    with pytest.raises(KeyError, match=r"expected one of 'block-diagonal', .*; got 'fac'"):
        table["fac"]
    hidden = make_inputs(Case(33, 5, 7, 3, activation="gelu"), torch.float64).hessian()
    assert "H here has the\n  residual, too. H.gauss_newton() compares" in str(hidden["hidden"].approximations())
    assert "gauss_newton" not in str(hidden.gauss_newton()["hidden"].approximations())
    assert "gauss_newton" not in str(table)
    one = hessext.linear(torch.ones(3, 2), torch.ones(4, 2)).residual()["output"].approximations()
    assert str(one).count("H is 0") == 1
    # what is below the floor is the scaled error alone, where M is three times too large
    many = make_inputs(Case(2000, 5, 3, loss="mse"), torch.float32).hessian()["output"]
    G, A = many.curvature([0])[0] * 6000, many.features.T @ many.features / 2000
    row = many.approximations(factors={"mine": (G, A)})["mine"]
    assert row.relative_error == pytest.approx(2, rel=1e-5) and row.scaled_error < 1e-6


def test_layer_and_hessian_agree():
    """Samples whose units are all off have no curvature, and count."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5)).double()
    x, y = torch.randn(30, 4).double(), torch.randint(5, (30,))
    y[::7] = -100
    H = hessext.hessian(model, x, y)
    assert (H["0"].curvature().flatten(1).norm(dim=1) == 0).sum() > 5
    for row, other in zip(H["0"].approximations(), hessext.layer(model, "0", x, y)["0"].approximations(), strict=True):
        assert row[1:4] == pytest.approx(other[1:4], rel=1e-9)


def test_own_factors():
    inputs = make_inputs(CASES[0], torch.float64)
    B = inputs.hessian()["output"]
    g = torch.Generator().manual_seed(6)
    G, A = (torch.randn(n, n, generator=g, dtype=torch.float64) for n in (7, 5))
    G, A = G @ G.T, A @ A.T
    table = B.approximations(factors={"mine": (G, A), "nothing": (0 * G, A)})
    assert table["mine"][1:4] == pytest.approx(explicit.errors(B.dense(), torch.kron(G, A)), rel=1e-10)
    assert table["nothing"].note == "its factors are 0"
    assert table.names[-2:] == ("mine", "nothing")
    with pytest.raises(KeyError, match="expected one of 'block-diagonal'"):
        table["Adam"]


def test_no_eigenvectors_above_the_largest_side():
    table = make_inputs(CASES[0], torch.float64).hessian()["output"].approximations(largest=6)
    assert [row.name for row in table if math.isnan(row.relative_error)] == ["E-KFAC", "Shampoo"]
    assert "7 x 7" in table["E-KFAC"].note and "largest=6" in table["Shampoo"].note


def test_indefinite_curvature():
    """Class weights below zero make G and L indefinite: roots are refused, and the other rows are right."""
    weight = torch.tensor([-3.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    g = torch.Generator().manual_seed(7)
    x, W = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (20, 4))
    y = torch.arange(20) % 4
    B = hessext.linear(W, x, y, loss=nn.CrossEntropyLoss(weight=weight, reduction="sum"))["output"]
    found = explicit.matrices(B.dense(), B.curvature(), B.features, torch.ones(20, dtype=torch.bool))
    del found["Shampoo"]
    table = B.approximations()
    assert_rows(table, {name: explicit.errors(B.dense(), M) for name, M in found.items()}, torch.float64)
    assert table["Shampoo"].note == "its factors are not positive semidefinite"


def test_one_sample_and_one_number():
    g = torch.Generator().manual_seed(10)
    x, W = (torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (1, 3))
    row = hessext.linear(W, x)["output"].approximations()["K-FAC"]
    assert row.relative_error < 1e-15 and math.isnan(row.population)
    one = torch.ones(1, 1, dtype=torch.float64)
    for row in hessext.linear(one, one, loss="mse")["output"].approximations():
        assert row.relative_error <= 1e-15 and row.captured == pytest.approx(1, abs=1e-15), row
