"""What decides how norms are computed: the form that costs the fewest multiply-adds."""

from __future__ import annotations

from enum import Enum, auto

import torch

from . import softmax_gram
from .part import Part

_IN_FLOAT64 = {torch.float32: 2, torch.float64: 1}  # what a multiply-add in float64 costs beside one of the dtype


class Form(Enum):
    """How squared norms are found."""

    BLOCKS = auto()  # blocks are formed, some at a time, and squared
    PAIRS = auto()  # gram.PairSquares: sums over pairs of samples for each block
    CLASS_PAIRS = auto()  # softmax_gram.class_pair_squares: all blocks of a softmax layer at once
    SUMS = auto()  # softmax_gram.softmax_sums: only the sums over all blocks of a softmax layer


def form_of_squares(part: Part, pairs: int) -> Form:
    """The form of squared norms of so many blocks, for each of them."""
    return Form.PAIRS if not part.replicated and _pairs(part, pairs) < _blocks(part, pairs) else Form.BLOCKS


def form_of_all(part: Part) -> Form:
    """The form of all squared norms within a layer."""
    every = _upper(part)
    cheapest = min(_blocks(part, every), _pairs(part, every))
    softmax = part.of_output and part.same and part.term != "residual" and softmax_gram.one_sign(part)
    if softmax and _class_pairs(part) < cheapest:
        return Form.CLASS_PAIRS
    return form_of_squares(part, every)


def form_of_ratio(part: Part) -> Form:
    """The form of the sums of squared norms over the diagonal and over all other blocks of a layer."""
    every = _upper(part)
    if part.of_output and softmax_gram.one_sign(part):
        form, cost = Form.SUMS, _sample_pairs(part, 1.5 * part.grid[0])
    else:
        form, cost = Form.PAIRS, _pairs(part, every / 2)  # a sum needs half of the products
    return form if cost < _blocks(part, every) else Form.BLOCKS


# ------------------------------------------------------------------------------------------- multiply-adds of each


def _upper(part: Part) -> int:
    """Number of blocks (i, j), i <= j."""
    return part.grid[0] * (part.grid[0] + 1) // 2


def _blocks(part: Part, pairs: int) -> float:
    """One outer product for each block and sample, half of it where it is symmetric."""
    row, col, samples = part.row, part.col, part.samples
    entries = row.size * (row.size + 1) / 2 if part.same else row.size * col.size
    active = 1.0
    for group in (row, col):
        if group.layer < samples.network.last:
            active *= samples.active(group.layer)
    return pairs * entries * len(samples) * active


def _pairs(part: Part, pairs: float) -> float:
    """One product of samples for each block, in float64; blocks between layers have two terms and their product."""
    if part.residual_far:  # twice the samples, and weights of its own for each row
        products = 4 * (_sample_pairs(part, pairs) + part.upright.grid[0] * _sample_pairs(part, 0))
    else:
        products = _sample_pairs(part, (1 if part.within else 3) * pairs)
    return _IN_FLOAT64[part.dtype] * products


def _class_pairs(part: Part) -> float:
    """Whole panels of classes, and forming their rows; scripts/calibrate measures the constants of the rows."""
    classes = part.grid[0]
    rows = (1700 + 46 * classes) * 8 / part.dtype.itemsize
    return len(part.samples) ** 2 / 2 * ((-(-classes // 32) * 32) ** 2 / 2 + rows)


def _sample_pairs(part: Part, products: float) -> float:
    """N^2 for each product of samples, those of the features among them."""
    sizes = part.row.size + (0 if part.same else part.col.size)
    return len(part.samples) ** 2 * (products + sizes)
