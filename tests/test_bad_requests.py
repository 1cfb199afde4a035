"""One test per rule: what is asked of a Hessian beyond what it has, or the memory there is, is refused by name."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.cases import SMALL, make_inputs

import hessext


def network():
    """N=6, d=4, C=3, m=5, with biases."""
    return make_inputs(replace(SMALL[1], bias="ho"), torch.float64).hessian()


@pytest.mark.parametrize("pair", [(5, 0), (0, 5), (-1, 0), (0, -1), (2**40, 0), (0, 2**63)])
def test_block_out_of_range(pair):
    B = network()["hidden"]
    with pytest.raises(IndexError, match="5 x 5"):
        B.block(*pair)


@pytest.mark.parametrize("method", ["blocks", "norms"])
@pytest.mark.parametrize("key", [("hidden", "hidden"), ("hidden", "output"), ("output", "hidden")], ids="-".join)
def test_pairs_out_of_range(method, key):
    B = network()[key]
    rows, cols = B.grid
    for pair in ((rows, 0), (0, cols), (-1, 0), (0, -1), (2**62, 0)):
        with pytest.raises(IndexError, match=f"{rows} x {cols}"):
            getattr(B, method)(torch.tensor([(0, 0), pair]))


@pytest.mark.parametrize(
    "pairs",
    [
        torch.zeros(2, 2, dtype=torch.int32),
        torch.zeros(2, 2),
        np.zeros((2, 2), dtype=np.int64),
        [("a", "b")],
        [(0, 0), (0,)],
        [(0.5, 0.5)],
        3,
    ],
    ids=["int32", "float", "numpy", "strings", "ragged", "fractions", "number"],
)
@pytest.mark.parametrize("method", ["blocks", "norms"])
def test_pairs_of_another_type(method, pairs):
    with pytest.raises(TypeError, match=r"^pairs: "):
        getattr(network()["hidden"], method)(pairs)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (1, 2, 2), ()])
@pytest.mark.parametrize("method", ["blocks", "norms"])
def test_pairs_of_another_shape(method, shape):
    with pytest.raises(ValueError, match=r"^pairs: "):
        getattr(network()["hidden"], method)(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("index", [0.0, "0", None, (0, 0)])
def test_block_index_of_another_type(index):
    with pytest.raises(TypeError, match=r"^block: "):
        network()["hidden"].block(index, 0)


@pytest.mark.parametrize("key", ["nope", ("hidden", "nope"), ("hidden",), 0, ("hidden", "hidden", "hidden"), None])
def test_unknown_layer(key):
    with pytest.raises(KeyError, match=r"hidden|expected one"):
        network()[key]


def products():
    """Everything that multiplies a vector."""
    H = network()
    return [H, H["hidden"], H["hidden", "output"], H["output", "hidden"], H.gauss_newton(), H.residual()]


@pytest.mark.parametrize("k", range(6))
def test_vectors_that_do_not_fit(k):
    M = products()[k]
    size = M.shape[1]
    for v in (torch.ones(size + 1), torch.ones(size - 1), torch.ones(0), torch.ones(()), torch.ones(size, 1, 1)):
        with pytest.raises(ValueError, match=r"^v: "):
            M @ v.double()
    with pytest.raises(TypeError, match=r"^v: "):
        M @ torch.ones(size)
    with pytest.raises(TypeError, match=r"^v: "):
        M @ np.ones(size)
    with pytest.raises(ValueError, match=r"^v: expected device cpu; got meta"):
        M @ torch.ones(size, dtype=torch.float64, device="meta")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_vectors_not_finite(value):
    for M in products():
        with pytest.raises(ValueError, match=r"v: .*finite"):
            M @ torch.tensor([1.0] * (M.shape[1] - 1) + [value], dtype=torch.float64)


@pytest.mark.parametrize("k", range(6))
def test_out_that_does_not_fit(k):
    M = products()[k]
    rows, cols = M.shape
    out = torch.ones(rows, cols, dtype=torch.float64)
    for wrong in (out[:-1], out[None], out.flatten(), torch.ones(rows, 2 * cols, dtype=torch.float64)[:, ::2]):
        with pytest.raises(ValueError, match=r"^out: "):
            M.dense(out=wrong)
    for wrong in (out.float(), out.numpy(), 3):
        with pytest.raises(TypeError, match=r"^out: "):
            M.dense(out=wrong)
    for wrong in (out.to("meta"), out.clone().requires_grad_()):
        with pytest.raises((ValueError, TypeError), match=r"^out: "):
            M.dense(out=wrong)
    assert (out == 1).all()


@pytest.mark.parametrize("method", ["diagonal_blocks", "ratio", "diagonal", "trace"])
def test_parts_without_a_diagonal(method):
    with pytest.raises(ValueError, match=method):
        getattr(network()["hidden", "output"], method)()


# --- more than the memory there is -------------------------------------------------------------------------------


def huge():
    """300,000 classes: the dense Hessian takes 5.8 TB, its norms alone 360 GB."""
    return hessext.linear(torch.zeros(300_000, 4), torch.ones(2, 4))


@pytest.mark.parametrize(
    ("ask", "needed"),
    [
        (lambda H: H.dense(), 1_200_000**2 * 4),
        (lambda H: H["output"].dense(), 1_200_000**2 * 4),
        (lambda H: H.norms(), 300_000**2 * 4),
        (lambda H: H["output"].norms(), 300_000**2 * 4),
    ],
    ids=["dense", "layer dense", "norms", "layer norms"],
)
def test_too_large_for_memory(ask, needed):
    assert_memory_error(lambda: ask(huge()), needed)


def test_too_many_blocks_for_memory():
    B = hessext.linear(torch.zeros(3, 40_000), torch.ones(2, 40_000))["output"]
    assert_memory_error(lambda: B.blocks([(0, 1)] * 1000), 1000 * 40_000**2 * 4)


def assert_memory_error(ask, needed) -> None:
    """The error names the bytes needed."""
    with pytest.raises(MemoryError) as error:
        ask()
    numbers = [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]{6,}", str(error.value))]
    assert numbers, error.value
    assert max(numbers) >= needed


def test_many_classes_need_no_memory():
    """C = 300,000 has 9e10 blocks: those that are asked for, norms of pairs, diagonal and product are cheap."""
    H = huge()
    B = H["output"]
    pairs = torch.tensor([[0, 0], [299_999, 299_999], [0, 299_999]])
    p = 1 / 300_000
    expected = torch.tensor([p * (1 - p), p * (1 - p), p * p])
    torch.testing.assert_close(B.blocks(pairs)[:, 0, 0].abs(), expected)
    torch.testing.assert_close(B.norms(pairs), 4 * expected)
    torch.testing.assert_close(B.diagonal(), torch.full((1_200_000,), p * (1 - p)))
    torch.testing.assert_close((H @ torch.ones(1_200_000)).abs().max(), torch.tensor(0.0), atol=1e-9, rtol=0)
    ratio = B.ratio()
    assert ratio.diagonal == pytest.approx(16 * (p * (1 - p)) ** 2, rel=1e-5)
    assert ratio.off_diagonal == pytest.approx(16 * p**4, rel=1e-5)


def test_logits_that_overflow():
    W = torch.full((3, 2), 1e30)
    W[1] *= -1
    H = hessext.linear(W, torch.full((4, 2), 1e10))
    for ask in (H.dense, H["output"].norms, H["output"].diagonal, lambda: H @ torch.zeros(6)):
        with pytest.raises(ValueError, match=r"^x: expected logits that torch.float32 can hold; got"):
            ask()
    assert H.to(torch.float64).dense().isfinite().all()
