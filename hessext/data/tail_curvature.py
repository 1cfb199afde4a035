"""Rows of S_n = d2 loss / d z_n^2 of layers of any network, and products with it, from their recorded tails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessext._memory import require
from hessext._progress import shares, steps

from .question import Piece
from .runs import plain_autograd
from .symmetric import SymmetricMatrices
from .tail import Tail

if TYPE_CHECKING:
    from .tails import Tails

_WORK = 64 << 20  # bytes of vectors at the outputs of which there are four copies at once
_FEW = 16  # rows of S_n that do not stand for all of them


class TailCurvature:
    """The curvature at layers' outputs; M_n at the head's inputs and S_n of one layer are kept where they fit."""

    def __init__(self, tails: Tails) -> None:
        self._tails = tails
        self._whole: tuple[int, str, SymmetricMatrices] | None = None  # S_n of a layer and a term, not divided
        # M_n are kept where they fit, for which tails may have to go.
        width = 0 if tails.head is None else tails.head.weight.shape[1]
        places = sum(len(piece.rows) for piece in tails.pieces) if width else 0
        self._bytes_of_quadratics = SymmetricMatrices.numbers(places, width) * tails.dtype.itemsize
        outputs = sum(len(layer.weight) for layer in tails.layers)
        fits = tails.kept + self._bytes_of_quadratics <= tails.question.memory
        self._keeps_quadratic = fits and bool(width) and tails.outputs.worth_quadratic(outputs)
        if self._keeps_quadratic:
            self._make_room(self._bytes_of_quadratics)

    def _make_room(self, needed: int) -> None:
        """Let go of the recorded tails where they do not fit beside so many bytes."""
        tails = self._tails
        if tails.kept + needed + tails.graphs > tails.question.memory:
            for piece in tails.pieces:
                piece.tail = None
            tails.graphs = 0

    def _quadratic(self, piece: Piece, tail: Tail, rows: int) -> SymmetricMatrices | None:
        """M_n of a batch for products with so many rows of S_n, where forming it pays."""
        if piece.quadratic is None and self._keeps_quadratic and self._tails.outputs.worth_quadratic(rows):
            piece.quadratic = self._tails.outputs.quadratic(tail.at, piece.y)
        return piece.quadratic

    def rows(self, number: int, index: Tensor, term: str) -> Tensor:
        """S_n[i, j] for the rows i in `index`, (I, N, K)."""
        tails = self._tails
        features, K = tails.features[number], len(tails.layers[number].weight)
        size = len(index) * K * len(features) * tails.dtype.itemsize
        require(size, f"{len(index)} rows of the curvature of {tails.layers[number].name!r}", tails.device)
        with plain_autograd(tails.device):
            out = features.new_empty(len(index), len(features), K)
            if self._whole is not None and self._whole[:2] == (number, term):
                tails.check_unchanged()
                for i, row in zip(index.tolist(), out, strict=True):
                    row.copy_(self._whole[2].row(i))
            else:
                through = tails.ends.get(number)
                formed = self._whole is not None and self._whole[0] == through
                first = float(through is not None and not formed)
                with shares(first + 1) as begin:
                    begin(first)
                    end = self._end(number, K if len(index) > _FEW else len(index), term)
                    begin(1)
                    for piece, at, row in self._formed(number, index, term, end):
                        out[at, piece.places[number]] = row
            return out.div_(tails.divisor)

    def _formed(self, number: int, index: Tensor, term: str, end: int | None) -> Iterator[tuple[Piece, int, Tensor]]:
        """Batches, places in `index`, and these rows (n, K) of S_n, not divided; with `end`, by S_n of that layer."""
        tails = self._tails
        K = len(tails.layers[number].weight)
        wanted = K if len(index) > _FEW else len(index)
        for piece, tail in tails.opened():
            if end is not None:
                tail, M = tail.ending(end), self._whole[2][piece.places[end]]
            else:
                M = self._quadratic(piece, tail, wanted) if term != "residual" else None
            step = max(1, _WORK // (max(tail.at.numel(), tail.places(number) * K) * tails.dtype.itemsize))
            for some in steps(torch.arange(len(index)).split(step), len):
                directions = (_unit(tail.places(number), K, i, tail.at) for i in index[some].tolist())
                rows = self._products(number, tail, piece, directions, term, M)
                yield from ((piece, at, row) for at, row in zip(some.tolist(), rows, strict=True))

    def _end(self, number: int, rows: int, term: str) -> int | None:
        """The layer at whose outputs a layer's tail may end, S_n there being kept; None where that does not pay.

        What follows is then the quadratic with S_n, as it is with M_n at the head's inputs: one layer at a time, as it
        may be as large.
        """
        tails = self._tails
        end = tails.ends.get(number)
        if end is None or term == "residual":
            return None
        if self._whole is None or self._whole[:2] != (end, term):
            N, K = len(tails.features[end]), len(tails.layers[end].weight)
            size = SymmetricMatrices.numbers(N, K) * tails.dtype.itemsize
            needed = size + self._bytes_of_quadratics * self._keeps_quadratic
            if rows < K or tails.kept + needed > tails.question.memory:
                return None
            self._whole = None  # before the next one is made
            self._make_room(needed)
            require(size, f"the curvature of {tails.layers[end].name!r}", tails.device)
            S = SymmetricMatrices.empty(N, K, tails.features[end])
            for piece, i, row in self._formed(end, torch.arange(K), term, None):
                S[piece.places[end]].set_row(i, row)
            self._whole = end, term, S
        return end

    def product(self, number: int, v: Tensor, term: str) -> Tensor:
        """S_n v_n (N, K) of vectors v (N, K)."""
        tails = self._tails
        with plain_autograd(tails.device):
            out = torch.empty_like(v)
            for piece, tail in tails.opened():
                some = piece.places[number]
                (out[some],) = self._products(number, tail, piece, [v[some]], term, piece.quadratic)
            return out.div_(tails.divisor)

    def _products(
        self,
        number: int,
        tail: Tail,
        piece: Piece,
        directions: Iterable[Tensor],
        term: str,
        M: SymmetricMatrices | None,
    ) -> list[Tensor]:
        """S e (n, K) of directions e (n, K), before they are divided."""
        moved, found = [], []
        for e in directions:
            along, bent = tail.along(number, e, term)
            moved.append(along)
            found.append(torch.zeros_like(e) if bent is None else bent)
        if term != "residual":
            curved = self._tails.outputs.product(tail.at, piece.y, torch.stack(moved), M)
            found = [bent + tail.back(number, w) for w, bent in zip(curved, found, strict=True)]
        return found


def _unit(places: int, K: int, i: int, like: Tensor) -> Tensor:
    e = like.new_zeros(places, K)
    e[:, i] = 1
    return e
