"""Operands of instructions: registers, immediates, special registers, as numpy arrays of any type.

A value has an element for each lane, or is a scalar where all lanes have the same one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import shared

if TYPE_CHECKING:
    from .machine import Run

Source = Callable[["Run"], Any]

TYPES = {f"{kind}{8 * size}": np.dtype(f"{letter}{size}")
         for kind, letter in (("u", "u"), ("b", "u"), ("s", "i")) for size in (1, 2, 4, 8)}  # fmt: skip
TYPES |= {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64), "pred": np.dtype(bool)}
UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}


def reinterpret(value: Any, dtype: np.dtype) -> Any:
    """The same bits, or the lowest of them."""
    if value.dtype == dtype:
        return value
    if value.dtype.itemsize != dtype.itemsize:
        value = value.view(UNSIGNED[value.dtype.itemsize]).astype(UNSIGNED[dtype.itemsize])
    return value.view(dtype)


def immediate(text: str, dtype: np.dtype) -> Any:
    """0f3F800000, 0d3FF0000000000000 or an integer."""
    if text.startswith(("0f", "0F", "0d", "0D")):
        return reinterpret(UNSIGNED[4 if text[1] in "fF" else 8].type(int(text[2:], 16)), dtype)
    number = int(text.rstrip("U"), 0)
    if dtype.kind == "b":
        return np.bool_(number)
    return reinterpret(UNSIGNED[dtype.itemsize].type(number & ((1 << 8 * dtype.itemsize) - 1)), dtype)


SPECIAL = {
    "%tid.x": lambda run: run.tid,
    "%ctaid.x": lambda run: run.ctaid,
    "%ntid.x": lambda run: np.uint32(run.threads),
    "%nctaid.x": lambda run: np.uint32(run.grid),
    "%laneid": lambda run: run.tid % np.uint32(32),
}


def source(operand: str, dtype: np.dtype) -> Source:
    """How an operand is read."""
    if operand in SPECIAL:
        special = SPECIAL[operand]
        return lambda run: special(run).astype(dtype)
    if operand.startswith("%"):
        return lambda run: reinterpret(run.register(operand), dtype)
    if re.match(r"-?\d", operand):
        value = immediate(operand, dtype)
        return lambda run: value
    if match := re.fullmatch(r"param_(\d+)", operand):
        number = int(match[1])
        return lambda run: dtype.type(run.parameter_addresses[number])
    # the one other symbol: dynamic shared memory
    return lambda run: dtype.type(shared.BASE)


def address(operand: str) -> Source:
    """Of `[register+offset]`, `[symbol+offset]`."""
    base, offset = re.fullmatch(r"\[([^\]+\s]+)(?:\s*\+\s*(-?\d+))?\]", operand).groups()
    read, distance = source(base, np.dtype(np.int64)), np.int64(int(offset or 0))
    narrow = source(base, np.dtype(np.uint32))

    def value(run: Run) -> Any:
        if base.startswith("%") and run.register(base).dtype.itemsize == 4:  # of shared memory
            return narrow(run).astype(np.int64) + distance
        return read(run) + distance

    return value


def members(operand: str) -> list[str]:
    """Registers of `{a, b}`, or the one."""
    return [name.strip() for name in operand.strip("{}").split(",")]
