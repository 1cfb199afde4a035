"""Means over draws, their standard errors and slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hessext.matrix.results import Approximation


def moments(diagonal: np.ndarray, off_diagonal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both means and their ratio (3,), and each draw's deviation from these to first order (3, draws)."""
    on, off = diagonal.mean(), off_diagonal.mean()
    ratio = off / on if on else math.nan
    deviations = np.stack([diagonal - on, off_diagonal - off, (off_diagonal - ratio * diagonal) / (on or math.nan)])
    return np.array([on, off, ratio]), deviations


def standard_error(deviations: np.ndarray) -> np.ndarray:
    """Standard error (k,) of the means whose draws have the deviations (k, draws)."""
    draws = deviations.shape[1]
    return np.sqrt((deviations**2).sum(1) / (draws * (draws - 1)))


def slope(x: np.ndarray, y: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """Slope of y over x by least squares with weights 1/error^2, and its standard error.

    If the points scatter about the line more than their errors allow, the standard error is enlarged accordingly.
    """
    weight = error**-2.0
    centred = x - np.average(x, weights=weight)
    curvature = (weight * centred**2).sum()
    fitted = (weight * centred * y).sum() / curvature
    rest = y - np.average(y, weights=weight) - fitted * centred
    scatter = (weight * rest**2).sum() / (len(x) - 2) if len(x) > 2 else 1.0
    return float(fitted), float(math.sqrt(max(1.0, scatter) / curvature))


def captured(rows: Sequence[Approximation]) -> tuple[float, float]:
    """Mean over draws of the share captured, and its standard error; for a single draw its sampling error."""
    if len(rows) == 1:
        return rows[0].captured, rows[0].sampling_error
    shares = np.array([row.captured for row in rows])
    return float(shares.mean()), float(standard_error(shares[None] - shares.mean())[0])
