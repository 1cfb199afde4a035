"""What decides how norms are computed: the form that costs the fewest multiply-adds."""

from __future__ import annotations

from enum import Enum, auto

import torch

from hessext._ops import Kind

from . import dense_norms
from .part import Part

_ENTRY = 250  # multiply-adds in float64 that an entry of a hidden layer's Q_n costs beside its products
_TOPS = 150  # multiply-adds that the top classes of a pair of samples cost in `softmax_sums`
_IN_FLOAT64 = {torch.float32: 2, torch.float64: 1}  # what a multiply-add in float64 costs beside one of the dtype


class Form(Enum):
    """How squared norms are found."""

    BLOCKS = auto()  # blocks are formed, some at a time, and squared
    PAIRS = auto()  # gram.PairSquares: sums over pairs of samples for each block
    CLASS_PAIRS = auto()  # softmax_gram.class_pair_norms: all blocks of a softmax layer at once
    DENSE = auto()  # dense_norms.dense_squares: dense pieces of the matrix are formed, where blocks are small
    SUMS = auto()  # softmax_gram.softmax_sums: only the sums over all blocks of a softmax layer


def form_of_squares(part: Part, pairs: int) -> Form:
    """The form of squared norms of so many blocks, for each of them."""
    by_pairs, by_blocks = _pairs(part, pairs), _blocks(part, pairs)
    if part.kind is Kind.HIDDEN and part.same:  # where blocks are small, what comes beside the products counts
        by_pairs += _IN_FLOAT64[part.dtype] * _ENTRY * pairs * part.largest
        by_blocks = pairs / _every(part) * _block_cycles(part) * (64 / part.dtype.itemsize)
    return Form.PAIRS if not part.replicated and by_pairs < by_blocks else Form.BLOCKS


def form_of_all(part: Part) -> Form:
    """The form of all squared norms of a part."""
    every = _every(part)
    cheapest = min(_blocks(part, every), _pairs(part, every))
    softmax_layer = part.of_output and part.same and part.term != "residual" and not part.block_diagonal
    alone = part.ranks.alone
    if softmax_layer and alone and _one_sign(part) and _class_pairs(part) < cheapest:
        return Form.CLASS_PAIRS
    form = form_of_squares(part, every)
    at_once = softmax_layer or (part.kind is Kind.CROSS and part.in_closed_form)
    dense = alone and part.like.is_cpu and at_once and dense_norms.fits(part)
    return Form.DENSE if form is Form.BLOCKS and dense and _dense_cycles(part) < _block_cycles(part) else form


def form_of_ratio(part: Part) -> Form:
    """The form of the sums of squared norms over the diagonal and over all other blocks of a layer."""
    every = _every(part)
    if part.of_output and _one_sign(part):
        form, cost = Form.SUMS, _sample_pairs(part, 1.5 * part.grid[0] + _TOPS)
    else:
        form, cost = Form.PAIRS, _pairs(part, every / 2)  # a sum needs half of the products
    return form if cost < _blocks(part, every) else Form.BLOCKS


def _one_sign(part: Part) -> bool:
    """Whether no two scales c_n have opposite signs, as class weights or targets below zero bring."""
    loss, y = part.samples.loss, part.samples.y
    labels = y is None or not y.is_floating_point()
    if part.ranks.alone and loss.softmax and loss.weight is None and labels:
        return True  # a GPU is not waited for
    least, most = torch.aminmax(part.samples.scale)
    low, most = part.ranks.largest(torch.stack([-least, most]))
    return bool(low <= 0) or bool(most <= 0)


# ------------------------------------------------------------------------------------------- multiply-adds of each


def _every(part: Part) -> int:
    """Number of blocks, within a layer of those (i, j), i <= j."""
    rows, cols = part.grid
    return rows * (rows + 1) // 2 if part.within else rows * cols


def _blocks(part: Part, pairs: int) -> float:
    """One outer product for each block and sample, half of it where it is symmetric."""
    row, col = part.row, part.col
    entries = row.size * (row.size + 1) / 2 if part.same else row.size * col.size
    return pairs * entries * part.largest * _active(part, row.layer) * _active(part, col.layer)


def _active(part: Part, layer: int) -> float:
    """Share of a layer's units that are on; the largest of all ranks, which must choose the same form."""
    if layer in (-1, part.samples.network.last):
        return 1.0
    active = part.samples.active(layer)
    return active if part.ranks.alone else max(part.ranks.notes("active units", active))


def _block_cycles(part: Part) -> float:
    """Of the assembly that squares the blocks, in cycles of a vector of multiply-adds: those of csrc/cpu/plan.h."""
    part = part.upright
    lanes, s, t = 64 / part.dtype.itemsize, part.row.size, part.col.size
    active = _active(part, part.row.layer)
    if part.kind is Kind.CROSS:
        each = 12 + active * (s * t / lanes + 40 + 0.75 * (s + t))
    elif part.kind is Kind.HIDDEN:
        each = 12 + active**2 * (s * (s + 1) / 2 / lanes + 40 + 1.5 * s)
    else:
        area = s * (s + 1) / 2 / lanes
        each = min(6 + area, 12 + area + 40 + 1.5 * s)
    return _every(part) * part.largest * each


def _dense_cycles(part: Part) -> float:
    """Of dense pieces: a product for each pair of features, or of a unit and a feature; then squares of entries."""
    part = part.upright
    lanes, s, t, (rows, cols) = 64 / part.dtype.itemsize, part.row.size, part.col.size, part.grid
    features = _active(part, part.col.layer - 1)  # the layer before makes them
    if part.kind is Kind.CROSS:
        products, active = rows * t, _active(part, part.row.layer) * features
        each = 12 + active * (s * cols / lanes + 40 + 0.75 * (s + cols))
    else:
        products, active = s * (s + 1) / 2, features**2
        each = 12 + active * (rows * (rows + 1) / 2 / lanes + 40 + 1.5 * rows)
    return products * part.largest * each + 16 * rows * cols * s * t


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
    return part.largest**2 / 2 * ((-(-classes // 32) * 32) ** 2 / 2 + rows)


def _sample_pairs(part: Part, products: float) -> float:
    """N^2 for each product of samples, those of the features among them; a rank's share of them."""
    sizes = part.row.size + (0 if part.same else part.col.size)
    return part.largest * sum(part.counts) * (products + sizes)
