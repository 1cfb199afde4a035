"""Norms of all blocks of a softmax layer, or between the last two layers, from dense pieces of the matrix.

Where blocks are small, one product for each pair of features, whose rows and columns are classes, costs less than one
for each block. Pieces are all classes with some features, or the blocks of some hidden units, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from hessext import _ops
from hessext._memory import require
from hessext._ops import Curvature, Kind
from hessext._progress import steps

from .curvature import Assemblies, Sides
from .part import Part

_PIECE = 64 << 20  # bytes of a dense piece
_ROWS = 2 << 20  # bytes of its rows, in float64, that are squared at once


def fits(part: Part) -> bool:
    """Whether the smallest piece is within bounds."""
    entries = part.grid[0] ** 2
    if part.kind is Kind.CROSS:
        entries = part.upright.row.size * part.upright.col.size * part.upright.grid[1]
    return entries * part.dtype.itemsize <= _PIECE


def dense_squares(part: Part) -> Tensor:
    """||H_ij||_F^2 (rows, columns), float64, of all blocks of an upright part."""
    rows, cols = part.grid
    require(8 * rows * cols + 2 * _PIECE, f"norms of {rows} x {cols} blocks", part.device)
    result = torch.zeros(rows, cols, dtype=torch.float64, device=part.device)
    assemblies = Assemblies(part)
    pieces = _some_features if part.of_output else _some_units
    for where, times, sides, curvature in pieces(part, assemblies.sides, assemblies.curvature):
        sizes = [t.shape[1] + ones for t, ones in ((sides.left, sides.left_ones), (sides.right, sides.right_ones))]
        out = part.like.new_empty(curvature.rows * sizes[0], cols * sizes[1])
        axes = [n for t, size in zip((sides.left, sides.right), sizes, strict=True) for n in _axis(t.shape[1], size)]
        _ops.dense_(out, out.shape[1], axes, True, sides.same_features, None, *sides, *curvature)
        step = max(1, _ROWS // (8 * sizes[0] * out.shape[1]))
        for found, some in zip(result[where].split(step), out.split(step * sizes[0]), strict=True):
            squares = some.double().square_().view(len(found), sizes[0], -1).sum(1)
            found.add_(squares.view(len(found), cols, sizes[1]).sum(2), alpha=times)
        del out  # before the next one is made
    return result


def _axis(cols: int, size: int) -> tuple[int, ...]:
    return 0, size, cols, size, cols


Piece = tuple[slice, int, Sides, Curvature]  # rows of the grid; how often it counts


def _some_features(part: Part, sides: Sides, curvature: Curvature) -> Iterator[Piece]:
    """Within a softmax layer: pairs of some features, and of others that come later, which count twice."""
    few = max(1, int((_PIECE / (part.grid[0] ** 2 * part.dtype.itemsize)) ** 0.5))
    count = sides.left.shape[1] + sides.left_ones
    some = [(sides.left[:, a : a + few], sides.left_ones and a + few >= count) for a in range(0, count, few)]
    for one, other in steps(list(combinations_with_replacement(some, 2))):
        yield slice(None), 1 if other is one else 2, Sides(*one, *other, other is one), curvature


def _some_units(part: Part, sides: Sides, curvature: Curvature) -> Iterator[Piece]:
    """Between the last two layers: some units, whose features come first, as the residual adds to those of a unit."""
    unit = part.row.size * part.col.size * part.grid[1] * part.dtype.itemsize
    few, units = max(1, _PIECE // unit), torch.arange(curvature.rows, device=part.device)
    for some in steps(units.split(few), len):
        own = slice(int(some[0]), int(some[-1]) + 1)
        fields = {name: getattr(curvature, name) for name in ("weight", "slope", "shift")}
        fields = {name: None if t is None else t[:, own].contiguous() for name, t in fields.items()}
        right = sides.right
        if right.shape[1]:
            right = torch.cat([right[:, own], right[:, : own.start], right[:, own.stop :]], 1)
        yield own, 1, sides._replace(right=right), curvature._replace(rows=len(some), **fields)
