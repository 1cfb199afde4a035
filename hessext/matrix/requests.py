"""What may be asked of a part: blocks, groups of rows, factors, samples.

Errors are as those of `_checks`, and IndexError for what is not there.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hessext import _checks


def block_index(i: int, j: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Return (i, j) as ints: a block in the grid, where negative indices are not."""
    try:
        i, j = operator.index(i), operator.index(j)
    except TypeError:
        raise TypeError(f"block: expected two integers; got {i!r}, {j!r}") from None
    if not (0 <= i < grid[0] and 0 <= j < grid[1]):
        raise IndexError(f"block: expected a pair within the {grid[0]} x {grid[1]} grid; got ({i}, {j})")
    return i, j


def pairs(pairs: Tensor | Sequence[tuple[int, int]], rows: int, cols: int, device: torch.device) -> Tensor:
    """Return (P, 2) int64 on the device: P > 0 pairs (i, j) with 0 <= i < rows and 0 <= j < cols."""
    if isinstance(pairs, Sequence):
        try:
            pairs = torch.tensor(pairs, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"pairs: expected an int64 tensor (P, 2) or a list of (i, j); {error}") from None
    _checks.tensor("pairs", pairs)
    _checks.layout("pairs", pairs, (None, 2), None)
    if pairs.dtype != torch.int64:
        raise TypeError(f"pairs: expected int64; got {pairs.dtype}")
    for column, size in enumerate((rows, cols)):
        low, high = _checks.bounds(pairs[:, column])
        if low < 0 or high >= size:
            raise IndexError(
                f"pairs: expected {'rows' if column == 0 else 'columns'} of the {rows} x {cols} grid; "
                f"got {low if low < 0 else high}"
            )
    return pairs.to(device)


def groups(value: int | Tensor | Sequence[int] | None, rows: int, device: torch.device) -> Tensor | None:
    """Return the number of each row's group (rows,), of so many groups of equal size, or of each row's group."""
    if value is None:
        return None
    if not isinstance(value, Tensor | Sequence) or isinstance(value, str):
        number = _checks.count("groups", value, 1, rows)
        if rows % number:
            raise ValueError(f"groups: expected a number that divides {rows}, or the group of each row; got {number}")
        return torch.arange(rows, device=device) // (rows // number)
    try:
        value = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"groups: expected a number or an integer for each row; {error}") from None
    _checks.tensor("groups", value)
    _checks.layout("groups", value, (rows,), None)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"groups: expected integers; got {value.dtype}")
    return value.to(device, torch.int64)


def factors(name: str, value: object, grid: tuple[int, int], block_shape: tuple[int, int], like: Tensor) -> tuple:
    """Return a pair (G, A) of matrices of K and of s rows and columns."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name}: expected a pair (G, A) of matrices; got {type(value).__name__}")
    sides = zip(("G", "A"), value, (grid, block_shape), strict=True)
    return tuple(_checks.matrix(f"{name}: {side}", t, rows=size[0], cols=size[1], like=like) for side, t, size in sides)


def symmetric_factors(
    name: str, value: object, grid: tuple[int, int], block_shape: tuple[int, int], like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return such a pair of symmetric matrices, in float64."""
    G, A = factors(name, value, grid, block_shape, like)
    return symmetric(f"{name}: G", G), symmetric(f"{name}: A", A)


def symmetric(name: str, t: Tensor) -> Tensor:
    """Return t, a matrix or several (..., n, n), in float64 and symmetric, which it is but for rounding before."""
    off, size = (t - t.mT).abs().max().item(), t.abs().max().item()
    if off > 1e3 * torch.finfo(t.dtype).eps * size:
        raise ValueError(
            f"{name}: expected symmetric matrices; got entries that differ from their transposes by {off:.3g}"
        )
    t = t.double()
    return (t + t.mT) / 2


def named_factors(
    value: object, taken: Sequence[str], grid: tuple[int, int], block_shape: tuple[int, int], like: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return pairs (G, A) of symmetric matrices, in float64, by names that are not taken."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"factors: expected a dict of names and pairs (G, A); got {type(value).__name__}")
    found = {}
    for name, pair in value.items():
        if not isinstance(name, str) or name in taken:
            raise ValueError(f"factors: expected a name other than the table's own; got {name!r}")
        found[name] = symmetric_factors(f"factors[{name!r}]", pair, grid, block_shape, like)
    return found


def numbers_of(name: str, value: object, size: int, device: torch.device) -> Tensor:
    """Return int64 numbers (n,), n > 0, 0 <= number < size, of a slice, a list or a tensor of them; None: all."""
    every = torch.arange(size, device=device)
    if value is None or isinstance(value, slice):
        found = every if value is None else every[value]
    else:
        try:
            found = torch.as_tensor(value, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name}: expected integers, a list or a tensor of them, or a slice; {error}") from None
        if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
            raise TypeError(f"{name}: expected integers; got {found.dtype}")
        found = found.reshape(-1)
    if not len(found):
        raise ValueError(f"{name}: expected at least one; got none")
    low, high = _checks.bounds(found)
    if low < 0 or high >= size:
        raise IndexError(f"{name}: expected numbers below {size}; got {low if low < 0 else high}")
    return found.long()
