"""What decides how norms are computed: from blocks that are formed, or from sums over pairs of samples (`gram`).

Every function returns a number of multiply-adds; the cheapest form is taken.
"""

from __future__ import annotations

import torch

from .part import Part

_IN_FLOAT64 = {torch.float32: 2, torch.float64: 1}  # what a multiply-add in float64 costs beside one of the dtype


def blocks(part: Part, pairs: int) -> float:
    """Of blocks that are formed and squared: one outer product for each sample, half of it where it is symmetric."""
    row, col, samples = part.row, part.col, part.samples
    entries = row.size * (row.size + 1) / 2 if part.symmetric else row.size * col.size
    active = 1.0
    for group in (row, col):
        if group.layer < samples.network.last:
            active *= samples.active(group.layer)
    return pairs * entries * len(samples) * active


def pair_squares(part: Part, pairs: float) -> float:
    """Of squared norms of so many blocks by `gram.PairSquares`, in float64; of a sum of them, half as many count."""
    terms = 1 if part.within else 3  # blocks between layers are sums of two terms, with one product of both
    return _IN_FLOAT64[part.dtype] * _sample_pairs(part, terms * pairs)


def softmax_sums(part: Part) -> float:
    """Of the sums over all blocks by `softmax_gram.softmax_sums`."""
    return _sample_pairs(part, 1.5 * part.grid[0])


def class_pair_squares(part: Part) -> float:
    """Of all blocks by `softmax_gram.class_pair_squares`: whole panels of classes, and forming their rows.

    The constants of the rows are measured by scripts/calibrate.
    """
    classes = part.grid[0]
    rows = (1700 + 46 * classes) * 8 / part.dtype.itemsize
    return len(part.samples) ** 2 / 2 * ((-(-classes // 32) * 32) ** 2 / 2 + rows)


def _sample_pairs(part: Part, products: float) -> float:
    """N^2 for each product of samples, those of the features among them."""
    sizes = part.row.size + (0 if part.symmetric else part.col.size)
    return len(part.samples) ** 2 * (products + sizes)
