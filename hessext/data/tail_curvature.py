"""Rows of S_n = d2 loss / d z_n^2 of layers of any network, and products with it, from their recorded tails."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessext._memory import require

from .question import Piece
from .runs import plain_autograd
from .tail import Tail

if TYPE_CHECKING:
    from .tails import Tails

_WORK = 256 << 20  # bytes of vectors at the outputs that are worked on at once
_FEW = 16  # rows of S_n that do not stand for all of them


class TailCurvature:
    """The curvature at layers' outputs; M_n at the head's inputs and S_n of one layer are kept where they fit."""

    def __init__(self, tails: Tails) -> None:
        self._tails = tails
        self._whole: tuple[int, str, Tensor] | None = None  # S_n (N, K, K) of a layer and a term, not divided
        # M_n are kept where they fit, for which tails may have to go.
        width = 0 if tails.head is None else tails.head.weight.shape[1]
        self._bytes_of_quadratics = (
            sum(len(piece.rows) for piece in tails.pieces if width) * width**2 * tails.dtype.itemsize
        )
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

    def _quadratic(self, piece: Piece, tail: Tail, rows: int) -> Tensor | None:
        """M_n of a batch for products with so many rows of S_n, where forming it pays."""
        if piece.quadratic is None and self._keeps_quadratic and self._tails.outputs.worth_quadratic(rows):
            piece.quadratic = self._tails.outputs.quadratic(tail.at, piece.y)
        return piece.quadratic

    def rows(self, number: int, index: Tensor, term: str) -> Tensor:
        """S_n[i, j] for the rows i in `index`, (I, K, N)."""
        tails = self._tails
        features, K = tails.features[number], len(tails.layers[number].weight)
        size = len(index) * K * len(features) * tails.dtype.itemsize
        require(size, f"{len(index)} rows of the curvature of {tails.layers[number].name!r}", tails.device)
        if self._whole is not None and self._whole[:2] == (number, term):
            tails.check_unchanged()
            return self._whole[2][:, index].permute(1, 2, 0) / tails.divisor
        with plain_autograd(tails.device):
            end = self._end(number, K if len(index) > _FEW else len(index), term)
            return self._rows(number, index, term, end).div_(tails.divisor)

    def _rows(self, number: int, index: Tensor, term: str, end: int | None) -> Tensor:
        """The same before it is divided; with `end`, by S_n of that layer."""
        tails = self._tails
        features, K = tails.features[number], len(tails.layers[number].weight)
        wanted = K if len(index) > _FEW else len(index)
        out = features.new_empty(len(index), K, len(features))
        for piece, tail in tails.opened():
            into = out[:, :, piece.places[number]]
            if end is not None:
                tail, M = tail.ending(end), self._whole[2][piece.places[end]]
            else:
                M = self._quadratic(piece, tail, wanted) if term != "residual" else None
            step = max(1, _WORK // (tail.at.numel() * tails.dtype.itemsize))
            for first in range(0, len(index), step):
                units = index[first : first + step].tolist()
                directions = (_unit(tail.places(number), K, i, features) for i in units)
                self._products(number, tail, piece, directions, term, M, into[first : first + step])
        return out

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
            needed = N * K * K * tails.dtype.itemsize + self._bytes_of_quadratics * self._keeps_quadratic
            if rows < K or tails.kept + needed > tails.question.memory:
                return None
            self._whole = None  # before the next one is made
            self._make_room(needed)
            require(
                N * K * K * tails.dtype.itemsize,
                f"the curvature of {tails.layers[end].name!r}",
                tails.device,
            )
            S = tails.features[end].new_empty(N, K, K)
            step = max(1, _WORK // (N * K * tails.dtype.itemsize))
            for some in torch.arange(K, device=tails.device).split(step):
                S[:, some] = self._rows(end, some, term, None).permute(2, 0, 1)
            self._whole = end, term, S
        return end

    def product(self, number: int, v: Tensor, term: str) -> Tensor:
        """S_n v_n (N, K) of vectors v (N, K)."""
        tails = self._tails
        with plain_autograd(tails.device):
            out = torch.empty_like(v)
            for piece, tail in tails.opened():
                some = piece.places[number]
                self._products(number, tail, piece, [v[some]], term, piece.quadratic, out[some].T[None])
            return out.div_(tails.divisor)

    def _products(
        self,
        number: int,
        tail: Tail,
        piece: Piece,
        directions: Iterable[Tensor],
        term: str,
        M: Tensor | None,
        out: Tensor,
    ) -> None:
        """S e of directions e (n, K), into `out` (R, K, n), before it is divided."""
        moved = []
        for e, into in zip(directions, out, strict=True):
            along, bent = tail.along(number, e, term)
            moved.append(along)
            into.zero_() if bent is None else into.copy_(bent.T)
        if term != "residual":
            curved = self._tails.outputs.product(tail.at, piece.y, torch.stack(moved), M)
            for w, into in zip(curved, out, strict=True):
                into += tail.back(number, w).T


def _unit(places: int, K: int, i: int, like: Tensor) -> Tensor:
    e = like.new_zeros(places, K)
    e[:, i] = 1
    return e
