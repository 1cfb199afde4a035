"""Every result of data in batches, against that of all samples at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.cases import DTYPES, HIDDEN, LINEAR, Case, make_inputs
from helpers.reference import TOLERANCE

import hessext
from hessext.data import batches as data_batches

CASES = [c for c in LINEAR + HIDDEN if c.N > 1 and c.d * (c.hidden or c.C) + c.C * (c.hidden or 0) < 700]
CASE = Case(33, 6, 4, 5, loss="ce weight smooth", bias="ho")


def cut(N: int) -> list[int]:
    """Sizes of unequal batches: one sample, then more and more."""
    sizes = []
    while sum(sizes) < N:
        sizes.append(min(1 + 3 * len(sizes), N - sum(sizes)))
    return sizes


def batched(inputs, sizes=None):
    """The same inputs as a list of batches."""
    sizes = sizes or cut(len(inputs.x))
    batches = list(zip(inputs.x.split(sizes), inputs.y.split(sizes), strict=True))
    return inputs, replace(inputs, x=batches, y=None)


@pytest.fixture(params=[4000, None], ids=["pieces", "together"])
def piece(request, monkeypatch):
    """How many bytes of samples are worked on at once."""
    if request.param is not None:
        monkeypatch.setattr(data_batches, "_PIECE", request.param)


def close(out, expected, scale=None) -> bool:
    assert out.dtype == expected.dtype and out.shape == expected.shape
    scale = expected.double().norm() if scale is None else scale
    return bool((out.double() - expected.double()).norm() <= 4 * TOLERANCE[out.dtype] * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_what_is_a_sum_over_samples(case, dtype, piece):
    whole, batches = (i.hessian() for i in batched(make_inputs(case, dtype)))
    assert repr(batches) == repr(whole)
    for restrict in (lambda H: H, lambda H: H.gauss_newton(), lambda H: H.residual()):
        H, expected = restrict(batches), restrict(whole)
        size = whole.dense().double().norm()
        assert close(H.dense(), expected.dense(), size)
        assert close(H.diagonal(), expected.dense().diagonal(), size)
        v = torch.linspace(-1, 1, H.shape[0], dtype=dtype)
        assert close(H @ v, expected @ v, size * v.norm())
        for row in H.layers:
            B, wanted = H[row], expected[row]
            assert close(B.diagonal(), wanted.diagonal(), size)
            assert close(B.trace(), wanted.trace(), size * B.shape[0] ** 0.5)
            assert close(B.diagonal_blocks(), wanted.diagonal_blocks(), size)
            for col in H.layers:
                B, wanted = H[row, col], expected[row, col]
                assert close(B.dense(), wanted.dense(), size)
                pairs = [(0, 0), (B.grid[0] - 1, B.grid[1] - 1), (B.grid[0] - 1, 0)]
                assert close(B.blocks(pairs), wanted.blocks(pairs), size)
                assert close(B @ v[: B.shape[1]], wanted @ v[: B.shape[1]], size * v.norm())


@pytest.mark.parametrize("case", CASES[::3], ids=lambda c: c.name)
def test_what_is_not(case, piece):
    """Norms are those of all samples, and bit for bit: the samples are kept, in their order."""
    whole, batches = (i.hessian() for i in batched(make_inputs(case, torch.float64)))
    assert torch.equal(batches.norms(), whole.norms())
    for row in whole.layers:
        assert batches[row].ratio() == pytest.approx(whole[row].ratio(), rel=1e-14, nan_ok=True)
        for out, expected in zip(batches[row].row_norms(), whole[row].row_norms(), strict=True):
            assert torch.equal(out, expected)


def test_autograd_agrees(piece):
    _, batches = batched(make_inputs(CASE, torch.float64))
    report = hessext.autograd.check(batches.hessian())
    assert report.passed, str(report)


def test_block_diagonal_tools(piece):
    whole, batches = (i.hessian()["output"] for i in batched(make_inputs(CASE, torch.float64)))
    v = torch.linspace(-1, 1, whole.shape[0], dtype=torch.float64)
    expected = whole.solve_block_diagonal(v, 0.1)
    assert (batches.solve_block_diagonal(v, 0.1) - expected).norm() <= 1e-11 * expected.norm()
    assert torch.allclose(batches.eigh_blocks().eigenvalues, whole.eigh_blocks().eigenvalues, rtol=1e-11, atol=1e-14)
