"""The parameters of figures: each once, with its type, the help text of its option, and its check."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from hessext import _checks, _files


class Parameter(NamedTuple):
    """kind: int, float, str, bool or Path. text: help of the option. choices: of a str. least: smallest int.

    Where a figure's default is a list, the parameter takes several values.
    """

    kind: type
    text: str
    choices: tuple[str, ...] = ()
    least: int | None = 1


PARAMETERS = {
    "classes": Parameter(int, "C", least=2),
    "samples": Parameter(int, "N"),
    "features": Parameter(int, "d"),
    "hidden": Parameter(int, "m, hidden units"),
    "layers": Parameter(int, "of a network, the last one counted", least=2),
    "networks": Parameter(int, "of random depth and widths", least=2),
    "clusters": Parameter(int, "k, clusters of the data"),
    "draws": Parameter(int, "random draws of each point", least=2),
    "steps": Parameter(int, "of training"),
    "learning_rate": Parameter(float, "at the first step"),
    "data": Parameter(str, "where x and y come from", ("cifar100", "digits", "gaussian")),
    "data_folder": Parameter(Path, "that holds CIFAR-100, or where --download puts it"),
    "download": Parameter(bool, "CIFAR-100 (169 MB) into the folder if it is not there"),
    "workers": Parameter(int, "processes of a sweep (cores)"),
    "seed": Parameter(int, "of all random numbers", least=None),
    "dtype": Parameter(str, "of the data, the weights and the Hessian", ("float32", "float64")),
}
COMMON = {"seed": 0, "dtype": "float32"}  # every figure has them


def completed(given: Mapping[str, object], defaults: Mapping[str, object], owner: str) -> dict[str, object]:
    """Return the defaults, with given values in their place. Raises ValueError, or TypeError as for an unknown name."""
    for name in given:
        if name not in defaults:
            raise TypeError(
                f"{name}: expected a parameter of {owner} ({', '.join(defaults)}); got {name}={given[name]!r}"
            )
    return {
        name: _check(name, given[name], default) if name in given else default for name, default in defaults.items()
    }


def text_of(value: object) -> str:
    """The value as on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _check(name: str, value: object, default: object) -> object:
    if value is None and default is None:
        return None
    several = isinstance(value, Iterable) and not isinstance(value, (str, os.PathLike))
    if isinstance(default, list):
        values = list(value) if several else [value]
        if not values:
            raise ValueError(f"{name}: expected at least one value; got none")
        return [_check_one(name, one) for one in values]
    if several:
        raise ValueError(f"{name}: expected one value for this figure; got {value!r}")
    return _check_one(name, value)


def _check_one(name: str, value: object) -> object:
    kind, _, choices, least = PARAMETERS[name]
    if kind is int:
        return _checks.count(name, value, least)
    if kind is Path:
        return _files.path_of(name, value)
    if kind is float:
        return _checks.positive(name, value)
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected a {kind.__name__}; got {value!r}")
    if choices and value not in choices:
        raise ValueError(f"{name}: expected {' or '.join(choices)}; got {value!r}")
    return value
