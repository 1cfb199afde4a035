"""Checks of scalar arguments. Every error names the argument, what was expected and what came."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hessext import _checks

LARGEST = 1e100  # largest number, and 1 over the smallest: so the cubes of numbers and counts stay finite
_LARGEST_COUNT = 2**53  # up to here every integer is a float


def count(name: str, value: Any, least: int = 1) -> int:
    """Return value as an int >= least that a float can hold."""
    return _checks.count(name, value, least, _LARGEST_COUNT)


def nonnegative(name: str, value: Any) -> float:
    """Return value as a float >= 0 of at most LARGEST."""
    number = _checks.real(name, value, 0)
    if number > LARGEST:
        raise ValueError(f"{name}: expected at most {LARGEST:g}; got {number}")
    return number


def positive(name: str, value: Any) -> float:
    """Return value as a float from 1 / LARGEST to LARGEST."""
    number = _checks.positive(name, value)
    if not 1 / LARGEST <= number <= LARGEST:
        raise ValueError(f"{name}: expected {1 / LARGEST:g} to {LARGEST:g}; got {number}")
    return number


def aspect_ratio(gamma: Any, N: Any, d: Any) -> tuple[float, int | None, int | None]:
    """Return (gamma, N, d). With N and d, gamma is d / N and may be None; without them it must be given."""
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
    return np.random.default_rng(_checks.count("seed", seed, 0))


def numbers(name: str, values: Any, dtype: type = float) -> np.ndarray:
    """Return values of any shape as an array of dtype, of magnitudes up to LARGEST."""
    try:
        if dtype is float and np.iscomplexobj(values):
            raise TypeError("they are complex")
        result = np.asarray(values, dtype=dtype)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TypeError(f"{name}: expected numbers; {error}") from None
    if not (np.abs(result) <= LARGEST).all():
        raise ValueError(f"{name}: expected finite values, at most {LARGEST:g}; got {result}")
    return result


def vector(name: str, values: Any) -> np.ndarray:
    """Return values as a non-empty float64 vector."""
    result = numbers(name, values)
    if result.ndim != 1 or not result.size:
        raise ValueError(f"{name}: expected a vector with at least one element; got shape {result.shape}")
    return result


def choice(name: str, value: Any, options: tuple[str, ...]) -> str:
    """Return value, one of the options."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, options))}; got {value!r}")
    return value
