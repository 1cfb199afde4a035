"""Many symmetric matrices in five eighths of their memory."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

_PANELS = 4


class _Panel(NamedTuple):
    start: int  # its first row, and its first column
    stop: int
    entries: Tensor  # (N, stop - start, D - start)


class SymmetricMatrices:
    """M_n (N, D, D), as panels of rows: of each what is right of its diagonal block is kept, and the block."""

    def __init__(self, panels: list[_Panel]) -> None:
        self._panels = panels

    @classmethod
    def empty(cls, N: int, D: int, like: Tensor) -> SymmetricMatrices:
        """Without values, in the dtype and on the device of `like`."""
        return cls([_Panel(start, stop, like.new_empty(N, stop - start, D - start)) for start, stop in _bounds(D)])

    @staticmethod
    def numbers(N: int, D: int) -> int:
        """Entries that are kept."""
        return N * sum((stop - start) * (D - start) for start, stop in _bounds(D))

    def __getitem__(self, samples: slice) -> SymmetricMatrices:
        """Some of the matrices, in the same memory."""
        return SymmetricMatrices([panel._replace(entries=panel.entries[samples]) for panel in self._panels])

    def set(self, matrices: Tensor) -> None:
        """Take over M_n (N, D, D)."""
        for start, stop, entries in self._panels:
            entries.copy_(matrices[:, start:stop, start:])

    def set_row(self, i: int, row: Tensor) -> None:
        """Take over row i of all matrices, (N, D)."""
        for start, stop, entries in self._panels:
            if start <= i < stop:
                entries[:, i - start] = row[:, start:]

    def row(self, i: int) -> Tensor:
        """Row i of all matrices, (N, D)."""
        parts = [entries[:, :, i - start] for start, stop, entries in self._panels if stop <= i]
        parts += [entries[:, i - start] for start, stop, entries in self._panels if start <= i < stop]
        return torch.cat(parts, 1)

    def product(self, v: Tensor) -> Tensor:
        """M_n v_n of vectors v (R, N, D)."""
        v = v.transpose(0, 1)
        out = torch.zeros_like(v, memory_format=torch.contiguous_format)
        for start, stop, entries in self._panels:
            out[:, :, start:stop] += torch.bmm(v[:, :, start:], entries.mT)
            if stop < v.shape[2]:
                out[:, :, stop:] += torch.bmm(v[:, :, start:stop], entries[:, :, stop - start :])
        return out.transpose(0, 1)


def _bounds(D: int) -> list[tuple[int, int]]:
    edges = [D * k // _PANELS for k in range(_PANELS + 1)]
    return [(start, stop) for start, stop in pairwise(edges) if start < stop]
