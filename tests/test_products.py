"""Ordinary products: each way of multiplying against more digits, whichever the table names for this machine."""

import numpy as np
import pytest
import torch
from helpers.cases import HIDDEN, LINEAR, make_inputs
from helpers.reference import TOLERANCE

from hessext import _products
from hessext._products import linear, multiply

DTYPES = [torch.float32, torch.float64]
SHAPES = [(1, 1, 1), (14, 3, 32), (15, 17, 33), (64, 192, 64), (63, 193, 97), (505, 40, 513), (15, 9300, 33)]


@pytest.fixture(params=["torch", "tiles"])
def multiplier(request, monkeypatch):
    """Who multiplies, whatever this machine is."""
    tiles = dict.fromkeys(DTYPES, 1) if request.param == "tiles" else {}
    monkeypatch.setattr(_products, "_TILES", {_products.processor(): tiles})
    monkeypatch.setattr(_products, "_THIN", 1)
    return request.param


def factors(rows, depth, cols, dtype, layout):
    """Matrices (rows, depth) and (depth, cols) whose items, or whose depth, are contiguous, or neither."""
    g = torch.Generator().manual_seed(rows + depth)
    left, right = (torch.randn(*shape, generator=g).to(dtype) for shape in ((rows, depth), (cols, depth)))
    if layout == "depth first":
        left, right = (t.T.contiguous().T for t in (left, right))
    if layout == "every other":
        left, right = (torch.stack([t, t], 2).flatten(1)[:, ::2] for t in (left, right))
    return left, right.T


def exactly(left, right):
    """Their product by more digits than either type has."""
    return left.numpy().astype(np.longdouble) @ right.numpy().astype(np.longdouble)


def error(result, exact):
    return float(np.linalg.norm((result.numpy() - exact).astype(float)) / np.linalg.norm(exact.astype(float)))


@pytest.mark.parametrize("layout", ["items first", "depth first", "every other"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_worse_than_torch(shape, dtype, layout, multiplier, isa):
    left, right = factors(*shape, dtype, layout)
    exact = exactly(left, right)
    bar = 1.1 * error(left @ right, exact) + torch.finfo(dtype).eps
    assert error(multiply(left, right), exact) <= bar
    out = left.new_full((shape[0], shape[2] + 3), 7.0)  # rows further apart than they are long
    assert multiply(left, right, out[:, : shape[2]]).data_ptr() == out.data_ptr()
    assert error(out[:, : shape[2]], exact) <= bar
    assert (out[:, shape[2] :] == 7).all()
    bias = left[0, 0] * torch.ones(shape[2], dtype=dtype)
    assert error(linear(left, right.T, bias), exact + bias.numpy()) <= bar


@pytest.mark.parametrize("multiplier", ["tiles"], indirect=True)
def test_tiles_know_no_lower_precision(multiplier):
    """Neither autocast nor torch's own switch, which a CPU with AMX takes as leave for bfloat16, as torch.mm does."""
    left, right = factors(70, 300, 80, torch.float32, "items first")
    expected, before = multiply(left, right), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(multiply(left, right), expected)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("multiplier", ["tiles"], indirect=True)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_threads_give_the_same_bits(threads, multiplier, set_threads):
    set_threads(threads)
    left, right = factors(300, 400, 500, torch.float32, "items first")
    expected = multiply(left, right)
    assert all(torch.equal(multiply(left, right), expected) for _ in range(3))


def test_what_does_not_fit_is_refused_as_by_torch(multiplier):
    some = torch.ones(4, 4)
    for other in (torch.ones(5, 4), torch.ones(3, 4), some.double(), torch.ones(4)):
        with pytest.raises(RuntimeError):
            multiply(some, other)


def test_into_columns(multiplier):
    left, right = factors(15, 17, 33, torch.float64, "items first")
    out = left.new_empty(33, 15).T
    assert multiply(left, right, out) is out
    torch.testing.assert_close(out, left @ right)


@pytest.mark.parametrize("case", [LINEAR[1], HIDDEN[2]], ids=lambda case: case.name)
def test_results_through_either(case, multiplier):
    """All that is made of such products agrees with what torch gives."""
    H = make_inputs(case, torch.float64).hessian()
    v = torch.linspace(-1, 1, H.shape[1], dtype=torch.float64)
    assert error(H @ v, (H.dense() @ v).numpy()) <= TOLERANCE[torch.float64]


def test_the_table_decides(monkeypatch):
    """By processor, type and size; what is thin, or of more axes, is torch's."""
    monkeypatch.setattr(_products, "processor", lambda: ("AuthenticAMD", 26))
    some = torch.ones(256, 256)
    assert _products.by_tiles(some, some)
    assert not _products.by_tiles(some[:64], some)
    assert not _products.by_tiles(some[:16].repeat(1, 64), some.repeat(64, 1))
    assert not _products.by_tiles(some[None], some)
    monkeypatch.setattr(_products, "processor", lambda: None)
    assert not _products.by_tiles(some, some)


def test_processor(monkeypatch, tmp_path):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(_products, "_CPUINFO", file)
    ask = _products.processor.__wrapped__
    assert ask() is None
    file.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n")
    assert ask() == ("AuthenticAMD", 26)
    file.write_text("processor\t: 0\nBogoMIPS\t: 50\n")  # of another architecture
    assert ask() is None
