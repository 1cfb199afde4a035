"""Checks of scalar arguments. Every error names the argument, what was expected and what came."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

from hessext._checks import count


def nonnegative(name: str, value: Any) -> float:
    """Return value as a finite float >= 0."""
    number = _real(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name}: expected a finite number >= 0; got {value!r}")
    return number


def positive(name: str, value: Any) -> float:
    """Return value as a finite float > 0."""
    number = _real(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0; got {value!r}")
    return number


def aspect_ratio(gamma: Any, N: Any, d: Any) -> tuple[float, int | None, int | None]:
    """Return (gamma, N, d). With N and d, gamma = d / N and may come as None; without them it must be given."""
    if N is None and d is None:
        return positive("gamma", gamma), None, None
    if N is None or d is None:
        raise ValueError(f"N, d: expected both or neither; got N={N!r}, d={d!r}")
    N, d = count("N", N), count("d", d)
    if gamma is not None and not math.isclose(positive("gamma", gamma), d / N, rel_tol=1e-6):
        raise ValueError(f"gamma: expected None or d / N = {d / N}; got {gamma!r}")
    return d / N, N, d


def power_of_two(name: str, value: Any) -> int:
    """Return value as an int that is a power of 2."""
    number = count(name, value)
    if number & (number - 1):
        raise ValueError(f"{name}: expected a power of 2; got {number}")
    return number


def generator(seed: Any) -> np.random.Generator:
    """Return numpy's generator for an integer seed >= 0."""
    return np.random.default_rng(count("seed", seed, 0))


def array(name: str, values: Any, ndim: int) -> np.ndarray:
    """Return values, finite and not empty, as float64 of ndim dimensions."""
    try:
        result = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected numbers; {error}") from None
    if result.ndim != ndim or not result.size:
        raise ValueError(f"{name}: expected {ndim} dimensions and at least one element; got shape {result.shape}")
    if not np.isfinite(result).all():
        raise ValueError(f"{name}: expected finite values; got NaN or infinity")
    return result


def choice(name: str, value: Any, options: tuple[str, ...]) -> str:
    """Return value, one of the options."""
    if value not in options:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, options))}; got {value!r}")
    return value


def _real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number; got {value!r}")
    return float(value)
