"""Hessians in other hands: scipy, pickle, other devices and dtypes, and linear algebra of the diagonal blocks."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.cases import DTYPES, HIDDEN, LINEAR, SMALL, Case, make_inputs
from scipy.sparse.linalg import LinearOperator, cg, eigsh, svds
from torch import nn

import hessext
from hessext import _core, _memory
from hessext.matrix import block_diagonal

CASES = [*SMALL, LINEAR[1], LINEAR[7], LINEAR[10], LINEAR[15], HIDDEN[17], HIDDEN[25]]
EPS = {torch.float32: 2e-5, torch.float64: 1e-11}


def case_id(value) -> str:
    """Test id of a case or a dtype."""
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")


over_cases = pytest.mark.parametrize("case", CASES, ids=case_id)
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=case_id)


# --- scipy -------------------------------------------------------------------------------------------------------


@over_dtypes
@over_cases
def test_linear_operators(case, dtype):
    H = make_inputs(case, dtype).hessian()
    for A in (H, *(H[r, c] for r in H.layers for c in H.layers)):
        operator, dense = A.to_scipy(), A.dense().numpy()
        assert isinstance(operator, LinearOperator)
        assert operator.shape == A.shape
        assert operator.dtype == dense.dtype
        left, right = (np.linspace(-1, 1, n).astype(dense.dtype) for n in A.shape)
        scale = EPS[dtype] * np.abs(dense).max() * max(A.shape)
        for got, expected in (
            (operator @ right, dense @ right),
            (operator @ np.stack([right, -right, right[::-1]], 1), dense @ np.stack([right, -right, right[::-1]], 1)),
            (operator.rmatvec(left), dense.T @ left),
            (operator.T @ left[::-1], dense.T @ left[::-1]),
            (operator.H @ left[:, None], dense.T @ left[:, None]),
        ):
            assert got.dtype == dense.dtype
            np.testing.assert_allclose(got, expected, rtol=0, atol=scale)


def test_scipy_finds_eigenvalues_and_solves():
    H = make_inputs(HIDDEN[19], torch.float64).hessian()
    expected = torch.linalg.eigvalsh(H.dense()).numpy()
    np.testing.assert_allclose(eigsh(H.to_scipy(), k=3, return_eigenvectors=False)[::-1], by_size(expected, 3))
    B = H["hidden", "output"]
    np.testing.assert_allclose(
        svds(B.to_scipy(), k=2, return_singular_vectors=False), torch.linalg.svdvals(B.dense())[:2].flip(0)
    )
    G = make_inputs(LINEAR[7], torch.float64).hessian()  # squared error: positive definite
    b = np.ones(G.shape[0])
    x, info = cg(G.to_scipy(), b, rtol=1e-10)
    assert info == 0
    np.testing.assert_allclose(G.dense().numpy() @ x, b, atol=1e-8)


def by_size(values, k):
    return sorted(sorted(values, key=abs)[-k:], reverse=True)


def test_no_complex_vectors():
    with pytest.raises(TypeError, match="complex"):
        make_inputs(SMALL[0], torch.float64).hessian().to_scipy() @ np.ones(15, dtype=complex)


@over_cases
def test_transpose(case):
    H = make_inputs(case, torch.float64).hessian()
    for r in H.layers:
        B = H[r, H.layers[-1]]
        assert B.T.layers == B.layers[::-1]
        assert torch.equal(B.T.dense(), B.dense().T)


# --- copies ------------------------------------------------------------------------------------------------------


@over_dtypes
@pytest.mark.parametrize("case", SMALL + HIDDEN, ids=case_id)
def test_pickles_give_the_same_bits(case, dtype):
    H = make_inputs(case, dtype).hessian()
    expected = H.dense()  # after which functions that are not pickled hang on the object
    for other in (pickle.loads(pickle.dumps(H)), copy.deepcopy(H)):
        assert repr(other) == repr(H)
        assert torch.equal(other.dense(), expected)
    for part in (H[H.layers[0], H.layers[-1]], H.residual()):
        assert torch.equal(pickle.loads(pickle.dumps(part)).dense(), part.dense())


def test_a_pickle_has_names_and_no_more_than_its_data():
    x, y = torch.randn(100_000, 4), torch.zeros(9, dtype=torch.int64)
    H = hessext.hessian(nn.Sequential(nn.Linear(4, 2), nn.Softplus(3.0, 2.0), nn.Linear(2, 3)), x[:9], y)
    data = pickle.dumps(H)
    assert len(data) < 10_000
    other = pickle.loads(data)
    assert other.layers == H.layers == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert torch.equal(other.dense(), H.dense())


def test_no_pickle_of_changed_data():
    x = torch.ones(3, 2)
    H = hessext.linear(torch.ones(4, 2), x)
    x.mul_(2)
    for call in (lambda: pickle.dumps(H), lambda: H.to(torch.float64)):
        with pytest.raises(RuntimeError, match=r"^x was changed in place"):
            call()


@pytest.mark.parametrize("case", SMALL + LINEAR[10:] + HIDDEN[11:15], ids=case_id)
def test_to_another_dtype(case):
    """Up is exact: what the same values in float64 give; down is what rounded values give."""
    H = make_inputs(case, torch.float32).hessian()
    wide = H.to(torch.float64)
    assert wide.dtype == torch.float64
    assert H.dtype == torch.float32
    expected = make_inputs(case, torch.float32).lift()
    loss = make_inputs(case, torch.float32).loss
    expected = replace(expected, loss=loss if isinstance(loss, str) else copy.deepcopy(loss).double()).hessian()
    assert torch.equal(wide.dense(), expected.dense())
    assert torch.equal(wide.to(dtype=torch.float32).dense(), H.dense())
    assert torch.equal(H.residual().to(torch.float64).dense(), wide.residual().dense())


def test_to_where_it_is_already():
    H = make_inputs(SMALL[1], torch.float64).hessian()
    for there in (
        H.to(torch.float64),
        H.to("cpu"),
        H.to(device="cpu", dtype=torch.float64),
        H.to(torch.ones(1).double()),
    ):
        assert there is H


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        (torch.float16, TypeError, "to: expected torch.float32 or torch.float64; got torch.float16"),
        (torch.int64, TypeError, "to: expected torch.float32 or torch.float64; got torch.int64"),
        ("meta", ValueError, "to: expected a CPU or CUDA tensor; got meta"),
        ("nowhere", ValueError, "to: Expected one of cpu, cuda"),
    ],
    ids=str,
)
def test_to_nowhere(where, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make_inputs(SMALL[0], torch.float64).hessian().to(where)


def test_values_beyond_float32():
    H = hessext.linear(torch.ones(2, 2, dtype=torch.float64), torch.full((3, 2), 1e200, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^dtype: torch\.float32 does not hold all values"):
        H.to(torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not (torch.cuda.is_available() and _core.cuda), reason="no GPU, or no CUDA kernels")
def test_to_a_gpu_and_back():
    for case in SMALL:
        H = make_inputs(case, torch.float64).hessian()
        there = H.to("cuda")
        assert there.device.type == "cuda"
        torch.testing.assert_close(there.dense().cpu(), H.dense())
        assert torch.equal(there.to("cpu").dense(), H.dense())


# --- diagonal blocks ---------------------------------------------------------------------------------------------


@pytest.fixture(params=[None, 1, 3000], ids=["at once", "block by block", "some"])
def pieces(request, monkeypatch):
    """How many bytes of blocks are taken at once."""
    if request.param is not None:
        monkeypatch.setattr(block_diagonal, "_PIECE", request.param)


@over_dtypes
@over_cases
def test_solve_block_diagonal(case, dtype, pieces):
    H = make_inputs(case, dtype).hessian()
    for name in H.layers:
        B, damping = H[name], 0.5
        K, s = B.grid[0], B.block_shape[0]
        v = torch.linspace(-1, 1, 2 * K * s, dtype=dtype).view(K * s, 2)
        matrix = torch.block_diag(*B.diagonal_blocks().double()) + damping * torch.eye(K * s, dtype=torch.float64)
        for given in (v, v[:, 0], v[:, 1], v[:, :0]):
            before = given.clone()
            got = B.solve_block_diagonal(given, damping=damping)
            assert got.dtype == dtype
            assert got.shape == given.shape
            assert torch.equal(given, before)
            left = matrix @ got.double()
            torch.testing.assert_close(left, given.double(), rtol=0, atol=100 * EPS[dtype])


@over_dtypes
@over_cases
def test_eigh_blocks(case, dtype, pieces):
    H = make_inputs(case, dtype).hessian()
    for name in H.layers:
        B = H[name]
        blocks = B.diagonal_blocks().double()
        values, vectors = B.eigh_blocks()
        assert values.dtype == vectors.dtype == dtype
        assert values.shape == blocks.shape[:2]
        assert B.eigh_blocks().eigenvectors.shape == vectors.shape == blocks.shape
        tolerance = {"rtol": 0, "atol": EPS[dtype] * max(1.0, blocks.abs().max().item())}
        torch.testing.assert_close(values.double(), torch.linalg.eigvalsh(blocks), **tolerance)
        vectors = vectors.double()
        torch.testing.assert_close(vectors @ (values.double()[..., None] * vectors.mT), blocks, **tolerance)


@over_cases
def test_whole_hessians_in_the_order_of_the_parameters(case):
    """Blocks of all layers as they lie in H.dense(), weights of a neuron and its bias apart."""
    H = make_inputs(case, torch.float64).hessian()
    dense, blocks = H.dense(), torch.zeros(H.shape, dtype=torch.float64)
    found = H.eigh_blocks()
    assert set(found) == set(H.layers)
    seen = []
    for name in H.layers:
        at, B = H.positions(name), H[name]
        assert torch.equal(dense[at][:, at], B.dense())
        seen.append(at)
        for values, vectors, own in zip(*found[name], at.view(B.grid[0], -1), strict=True):
            blocks[own[:, None], own] = dense[own[:, None], own]
            torch.testing.assert_close(vectors @ values.diag() @ vectors.T, blocks[own[:, None], own])
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(H.shape[0]))
    v = torch.linspace(-1, 1, 2 * H.shape[0], dtype=torch.float64).view(-1, 2)
    damped = blocks + 0.1 * torch.eye(len(blocks), dtype=torch.float64)
    torch.testing.assert_close(H.solve_block_diagonal(v, 0.1), torch.linalg.solve(damped, v))
    torch.testing.assert_close(H.solve_block_diagonal(v[:, 0], 0.1), torch.linalg.solve(damped, v[:, 0]))
    with pytest.raises(ValueError, match=r"^v: expected"):
        H.solve_block_diagonal(v[1:], 0.1)


def test_layers_of_one_network_one_after_another():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 5)).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randint(5, (9,))
    H, whole = hessext.layer(model, ["0", "2"], x, y), hessext.hessian(model, x, y)
    v = torch.randn(H.shape[0], dtype=torch.float64)
    torch.testing.assert_close(H.solve_block_diagonal(v, 0.1), whole.solve_block_diagonal(v, 0.1))
    assert torch.equal(H.positions("2"), whole.positions("2"))
    assert set(H.eigh_blocks()) == {"0", "2"}
    with pytest.raises(KeyError, match="expected one of '0', '2'"):
        H.positions("1")


def test_as_a_numpy_array():
    H = make_inputs(HIDDEN[0], torch.float32).hessian()
    for A in (H, H["hidden"], H["hidden", "output"]):
        assert np.array_equal(np.asarray(A), A.dense().numpy())
        assert np.asarray(A).dtype == np.float32
        assert np.asarray(A, dtype=np.float64).dtype == np.float64
        with pytest.raises(ValueError, match=r"^copy: expected True or None, "):
            A.__array__(copy=False)


def test_singular_blocks_are_named():
    """The second unit is dead: its block is zero."""
    W = torch.tensor([[1.0, 0.5], [-1.0, -1.0], [0.5, 1.0]])
    x, y = torch.rand(9, 2) + 0.1, torch.arange(9) % 4
    B = hessext.one_hidden(W, torch.randn(4, 3), x, y)["hidden"]
    message = (
        r"^damping: expected a number with which all blocks are invertible; got 0\.0, .* block \(1, 1\) is singular"
    )
    with pytest.raises(torch.linalg.LinAlgError, match=message):
        B.solve_block_diagonal(torch.ones(6))
    assert torch.equal(B.solve_block_diagonal(torch.ones(6), 0.25)[2:4], torch.full((2,), 4.0))


@pytest.mark.parametrize(
    ("v", "damping", "error", "message"),
    [
        (torch.ones(14), 0.0, ValueError, "v: expected shape (15,); got (14,)"),
        (torch.ones(15).double(), 0.0, TypeError, "v: expected torch.float32; got torch.float64"),
        (torch.ones(15), -1, ValueError, "damping: expected a finite number >= 0; got -1.0"),
        (torch.ones(15), float("nan"), ValueError, "damping: expected a finite number >= 0; got nan"),
        (torch.ones(15), "1e", TypeError, "damping: expected a number; got '1e'"),
    ],
)
def test_bad_arguments_of_solve(v, damping, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make_inputs(SMALL[0], torch.float32).hessian()["output"].solve_block_diagonal(v, damping)


def test_only_within_a_layer():
    B = make_inputs(SMALL[1], torch.float32).hessian()["hidden", "output"]
    for name, arguments in (("eigh_blocks", ()), ("solve_block_diagonal", (torch.ones(B.shape[0]),))):
        with pytest.raises(ValueError, match=f"^{name}: expected one layer"):
            getattr(B, name)(*arguments)


def test_memory_is_refused_before_it_is_taken(monkeypatch):
    B = hessext.linear(torch.ones(400, 300), torch.ones(2, 300))["output"]
    monkeypatch.setattr(_memory, "_free_on_host", lambda: 100 << 20)
    with pytest.raises(MemoryError, match="eigenvectors of 400 blocks needs 144,480,000 bytes"):
        B.eigh_blocks()
    with pytest.raises(MemoryError, match="diagonal blocks and their factors needs"):
        B.solve_block_diagonal(torch.ones(B.shape[0]))
