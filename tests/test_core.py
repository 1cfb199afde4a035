"""Every instruction set of this machine, and sizes that need several tiles, chunks of samples and batches."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, HIDDEN, LINEAR, OVERFLOWING, PEAKED, Case, make_inputs
from reference import (
    assert_accurate,
    assert_silent,
    assert_softmax,
    assert_softmax_product,
    dense,
    matrix,
    plain,
    truth,
)

from hessext import _core

# Beyond one tile (504 x 512, or 126 x 128 where there are few pairs), one slab of columns (128) and one chunk (192
# samples), with classes, units or features filling the tile.
LARGE = [
    Case(15, 520, 3, 4, bias="h"),
    Case(15, 3, 520, 4, bias="o"),
    Case(25, 150, 131, 6, loss="mse"),
    Case(230, 140, 3, 2, bias="ho"),
    Case(200, 3, 150, 4),
    Case(197, 9, 5, 40, activation="tanh"),
    Case(210, 131, 133, 2, loss="ce weight smooth", bias="o"),
    Case(195, 2, 70),
    Case(60, 300, 3, bias="o"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LINEAR[::2] + HIDDEN[::2] + LARGE, ids=lambda c: c.name)
def test_every_instruction_set(case, dtype, isa):
    inputs = make_inputs(case, dtype)
    H, expected, bar = inputs.hessian(), truth(case, dtype), plain(case, dtype)
    assert_accurate(H.dense(), dense(expected, inputs.lift()), dense(bar, inputs))
    for row in H.layers:
        for col in H.layers:
            B, blocks = H[row, col], expected[row, col]
            assert_accurate(B.dense(), matrix(blocks), matrix(bar[row, col]))
            assert_accurate(B.norms(), blocks.flatten(2).norm(dim=2))
            assert_accurate(B.blocks([(0, 0), (B.grid[0] - 1, B.grid[1] - 1)]), blocks[[0, -1], [0, -1]])


@pytest.mark.parametrize("case", PEAKED, ids=lambda c: c.name)
def test_every_instruction_set_under_a_peaked_softmax(case, isa):
    inputs = make_inputs(case, torch.float64)
    assert_accurate(inputs.hessian().dense(), dense(truth(case, torch.float64), inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 33, 97, 1023, 1025, 2100])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_softmax(classes, scale, dtype, isa):
    assert_softmax(classes, scale, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 17, 97, 1025])
def test_softmax_product(classes, dtype, isa):
    assert_softmax_product(classes, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", OVERFLOWING, ids=lambda c: c.name)
def test_inactive_unit_under_overflow(case, dtype):
    assert_silent(make_inputs(case, dtype))


def test_unknown_instruction_set():
    with pytest.raises(ValueError, match="'v9' is not available here"):
        _core.set_isa("v9")
