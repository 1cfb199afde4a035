"""Numbers and means of samples beside their predictions."""

from __future__ import annotations

import math

import numpy as np


def close(found, expected, rel=1e-9):
    """All entries agree to rel; entries that are +inf are equal."""
    np.testing.assert_allclose(np.array(found, float), np.array(expected, float), rtol=rel)


def within(samples, predicted, sigmas=4.0):
    """Column means of (draws, k) samples are predicted within `sigmas` of their standard errors."""
    error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    deviations = (samples.mean(0) - np.array(predicted)) / np.where(error > 0, error, 1e-300)
    assert (np.abs(deviations) < sigmas).all(), deviations
