"""Inputs of some layers of a model over all batches, and the rows of S_n that what comes after them gives."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hessext._memory import require
from hessext._tensors import Watch
from hessext.model import targets
from hessext.model.linear import LinearLayer, is_linear

from .outputs import Outputs
from .question import Piece, Question, targets_of, tensors_in
from .runs import Record, Runner, check_calls, head_rows, plain_autograd
from .tail import SavedBytes, Tail

_WORK = 256 << 20  # bytes of vectors at the outputs that are worked on at once
_FEW = 16  # rows of S_n that do not stand for all of them
_PROPOSED = 12  # linear layers that are tried for a message, the last ones called


class Tails:
    """Batches are read once and kept; their tails are recorded again where `memory` does not hold them."""

    def __init__(self, question: Question, batches: Iterable[Any]) -> None:
        self.question, self.loss = question, question.loss
        own = question.layers[0].weight.dtype
        self.dtype = question.dtype or torch.promote_types(torch.float32, own)
        self.device = question.device or question.layers[0].weight.device
        self.runner = Runner(
            question.model, question.forward, None if self.dtype == own else self.dtype, question.device
        )
        targets.check_single_weights(self.loss)
        self.layers = question.layers  # those with a tail
        self.head: LinearLayer | None = None
        self.pieces: list[Piece] = []
        self.features: list[Tensor] = []  # of each layer (N, cols)
        self.head_inputs: Tensor | None = None  # (M, d), where the head is one of the layers that are asked for
        self._graphs = self._kept = 0
        self._ends: dict[int, int] | None = None  # layers whose tails pass through the outputs of another one alone
        self._whole: tuple[int, str, Tensor] | None = None  # S_n (N, K, K) of such a layer and a term, not divided
        with plain_autograd(self.device):
            self._read(batches)
        self._data = Watch(**dict(tensors_in("batches", [piece.batch for piece in self.pieces])))

    def __reduce__(self) -> tuple:
        """Pickle what is asked, the model and the batches among it: everything is collected again."""
        self.check_unchanged()
        try:
            pickle.dumps(self.question.forward)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(f"forward: expected a function that can be pickled, one of a module; {error}") from None
        return Tails, (self.question, [piece.batch for piece in self.pieces])

    def elsewhere(self, device: torch.device, dtype: torch.dtype) -> Tails:
        """The same collected on another device or in another dtype."""
        self.check_unchanged()
        return Tails(replace(self.question, dtype=dtype, device=device), [piece.batch for piece in self.pieces])

    def head_samples(self) -> tuple[Tensor, Tensor | None]:
        """Inputs (M, d) of the layer that gives the logits, of their rows, and the targets."""
        y = [piece.y for piece in self.pieces]
        return self.head_inputs, None if y[0] is None else torch.cat(y)

    def counted(self, number: int) -> Tensor | None:
        """Which places of a layer the loss counts (N,); None where a batch has not one row of logits for each."""
        found = []
        for piece in self.pieces:
            places = piece.places[number]
            if piece.y is None or len(piece.y) != places.stop - places.start:
                return None
            like = self.features[number].new_empty(()).expand(len(piece.y), self._classes)
            found.append(
                self.loss.scale(piece.y, like) != 0 if self.loss.softmax else piece.y.new_ones(len(piece.y)) > 0
            )
        return torch.cat(found)

    def check_unchanged(self) -> None:
        """Raise RuntimeError where parameters, buffers or batches were changed in place since they were read."""
        try:
            self.runner.watch.check()
        except RuntimeError as error:
            raise RuntimeError(f"model: {error}, of the model: copy.deepcopy(model)") from None
        self._data.check()

    # ----------------------------------------------------------------------------------------------- first reading

    def _read(self, batches: Iterable[Any]) -> None:
        divisor = 0.0
        features: list[list[Tensor]] = []
        head_inputs: list[Tensor] = []
        for k, batch in enumerate(batches):
            saved = SavedBytes(self.runner.parameters)
            with saved:
                record, rows = self._record_first(batch) if k == 0 else self._record_whole(batch)
                features = features or [[] for _ in self.layers]
                y = targets_of(record, k, self.loss)
                if y is None and self.layers:
                    name = self.layers[0].name
                    raise ValueError(f"batch {k}: expected targets: the Hessian of {name!r} depends on them")
                C = record.logits.shape[-1]
                like, self._classes = record.logits.detach().reshape(-1, C), C
                divisor += float(self.loss.divisor(y, like))
                starts = [sum(map(len, some)) for some in features]
                places = [slice(n, n + len(x)) for n, x in zip(starts, record.features, strict=True)]
                piece = Piece(batch, rows, y, places)
                self.pieces.append(piece)
                for found, x in zip(features, record.features, strict=True):
                    found.append(x.to(self.dtype))
                if any(layer.module is self.head.module for layer in self.question.layers if self.head):
                    head_inputs.append(record.head_inputs[0].detach().flatten(0, -2)[rows])
                self._count_kept(x.numel() for x in (*record.features, *head_inputs[-1:]))
                if self.layers:
                    piece.tail = self._tail(piece, record)
                    self._check_tail(k, piece, record)
                    self._ends = self._found_ends(piece.tail)
            self._graphs += saved.total
            if self._graphs + self._kept > self.question.memory:
                self._graphs, piece.tail = self._graphs - saved.total, None
            del record
        if not self.pieces:
            raise ValueError("batches: expected at least one; got none")
        if self.loss.reduction != "sum":
            targets.check_divisor(divisor)
        self.divisor = divisor if self.loss.reduction != "sum" else 1.0
        self.features = [torch.cat(some) for some in features]
        self.head_inputs = torch.cat(head_inputs) if head_inputs else None
        self._reserve_quadratic()

    def _record_first(self, batch: Any) -> tuple[Record, Tensor | None]:
        """Record the first batch, and find out whether the last linear layer gives the logits."""
        calls = self.runner.look(batch)
        check_calls(calls, self.layers)
        self._called = [LinearLayer(*call) for call in calls if is_linear(call[1])]
        candidate = self._called[-1] if self._called else None
        if candidate is not None:
            others = [layer for layer in self.layers if layer.module is not candidate.module]
            record = self.runner.record(batch, others, candidate, self.question.argument, whole=True)
            rows = head_rows(record)
            if rows is not None:
                self.layers, self.head = others, candidate
                self._outputs = Outputs(self.loss, self._head_affine)
                return record, rows
        self._outputs = Outputs(self.loss, None)
        return self.runner.record(batch, self.layers, None, self.question.argument, whole=True), None

    def _record_whole(self, batch: Any) -> tuple[Record, Tensor | None]:
        record = self.runner.record(batch, self.layers, self.head, self.question.argument, whole=True)
        rows = None if self.head is None else head_rows(record)
        if self.head is not None and rows is None:
            raise ValueError(f"batches: expected logits that are outputs of {self.head.name!r}, as in the first batch")
        return record, rows

    @property
    def _head_affine(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.head.weight, self.head.bias
        return tuple(None if t is None else t.to(self.device, self.dtype) for t in (weight, bias))

    def _count_kept(self, numbers: Iterable[int]) -> None:
        """Refuse inputs of the layers that do not fit into `memory`, or, put together, into what is free."""
        self._kept += sum(numbers) * self.dtype.itemsize
        if self._kept > self.question.memory:
            raise MemoryError(
                f"the layers' inputs need {self._kept} bytes ({self._kept / 2**30:.1f} GiB) and more, and "
                f"memory={self.question.memory} allows fewer"
            )
        require(self._kept, "the layers' inputs so far, put together,", self.device)

    # -------------------------------------------------------------------------------------------------- what is refused

    def _check_tail(self, k: int, piece: Piece, record: Record) -> None:
        """Refuse layers whose weight is used again, on which nothing depends, or whose places are mixed."""
        tail, argument = piece.tail, self.question.argument
        for number, layer in enumerate(self.layers):
            if not tail.o.requires_grad:
                raise ValueError(f"{argument}: expected a layer that the logits depend on; got {layer.name!r}")
            used = torch.autograd.grad(
                tail.o,
                [tail.leaves[number], *record.parameters[number]],
                torch.ones_like(tail.o),
                retain_graph=True,
                allow_unused=True,
            )
            if used[0] is None:
                raise ValueError(f"{argument}: expected a layer that the logits depend on; got {layer.name!r}")
            in_head = self.head is not None and any(
                p is q for p in self.head.module.parameters() for q in layer.module.parameters()
            )
            if in_head or any(grad is not None for grad in used[1:]):
                raise ValueError(
                    f"{argument}: expected a layer whose parameters are used nowhere after it; those of "
                    f"{layer.name!r} are used again. A copy in the later place holds it fixed"
                )
        for parameters in record.parameters:
            for p in parameters:
                p.requires_grad_(False)
        for number, layer in enumerate(self.layers):
            if not tail.keeps_apart(number, self._coupling(piece)):
                piece.tail = None
                del tail, record
                raise ValueError(self._mixed(k, layer, piece.batch))

    def _found_ends(self, tail: Tail) -> dict[int, int]:
        """For each layer the first one that its tail passes through alone, in this batch and in those before."""
        modules = [layer.module for layer in self._called]
        order = sorted(range(len(self.layers)), key=lambda number: modules.index(self.layers[number].module))
        found = {}
        for place, number in enumerate(order):
            end = next((other for other in order[place + 1 :] if tail.passes(number, other)), None)
            if end is not None and (self._ends is None or self._ends.get(number) == end):
                found[number] = end
        return found

    def _coupling(self, piece: Piece) -> Any:
        at = piece.tail.at
        return partial(self._outputs.spread, at, piece.y, w=self._outputs.random_classes(at))

    def _mixed(self, k: int, layer: LinearLayer, batch: Any) -> str:
        """The message for a layer whose places are mixed, with the layers that would do."""
        called = [other for other in self._called if other.module is not getattr(self.head, "module", None)]
        once = [other for other in called if sum(other.module is one.module for one in called) == 1][-_PROPOSED:]
        record = self.runner.record(batch, once, self.head, self.question.argument, whole=True)
        rows = None if self.head is None else head_rows(record)
        piece = Piece(batch, rows, targets_of(record, k, self.loss), [])
        piece.tail = self._tail(piece, record)
        names = [repr(other.name) for n, other in enumerate(once) if piece.tail.keeps_apart(n, self._coupling(piece))]
        names += [repr(self.head.name)] if self.head else []
        return (
            f"{self.question.argument}: expected a layer whose places (samples, positions) are kept apart by what "
            f"comes after it; those of {layer.name!r} are mixed in batch {k}, as by attention, a convolution or batch "
            "normalization, and the Hessian is no sum over places. Of the last linear layers these would do: "
            f"{', '.join(names) or 'none'}"
        )

    # --------------------------------------------------------------------------------------------------------- tails

    def _tail(self, piece: Piece, record: Record) -> Tail:
        at_head = self.head is not None
        o = record.head_inputs[0].flatten(0, -2)[piece.rows] if at_head else record.logits.flatten(0, -2)
        return Tail(record, o, lambda at: self._outputs.gradient(at, piece.y))

    def _opened(self) -> Iterator[tuple[Piece, Tail]]:
        """Every batch with its tail, kept or recorded now."""
        self.check_unchanged()
        for piece in self.pieces:
            tail = piece.tail
            if tail is None:
                record = self.runner.record(
                    piece.batch, self.layers, self.head, self.question.argument, whole=self.head is None
                )
                tail = self._tail(piece, record)
                del record
            yield piece, tail
            del tail

    def _reserve_quadratic(self) -> None:
        """Decide whether M_n are kept, for which tails may have to go."""
        width = 0 if self.head is None else self.head.weight.shape[1]
        self._bytes_of_quadratics = (
            sum(len(piece.rows) for piece in self.pieces if width) * width**2 * self.dtype.itemsize
        )
        outputs = sum(len(layer.weight) for layer in self.layers)
        fits = self._kept + self._bytes_of_quadratics <= self.question.memory
        self._keeps_quadratic = fits and bool(width) and self._outputs.worth_quadratic(outputs)
        if self._keeps_quadratic:
            self._make_room(self._bytes_of_quadratics)

    def _make_room(self, needed: int) -> None:
        """Let go of the recorded tails where they do not fit beside so many bytes."""
        if self._kept + needed + self._graphs > self.question.memory:
            for piece in self.pieces:
                piece.tail = None
            self._graphs = 0

    def _quadratic(self, piece: Piece, tail: Tail, rows: int) -> Tensor | None:
        """M_n of a batch for products with so many rows of S_n, where forming it pays."""
        if piece.quadratic is None and self._keeps_quadratic and self._outputs.worth_quadratic(rows):
            piece.quadratic = self._outputs.quadratic(tail.at, piece.y)
        return piece.quadratic

    def rows(self, number: int, index: Tensor, term: str) -> Tensor:
        """S_n[i, j] for the rows i in `index`, (I, K, N)."""
        features, K = self.features[number], len(self.layers[number].weight)
        size = len(index) * K * len(features) * self.dtype.itemsize
        require(size, f"{len(index)} rows of the curvature of {self.layers[number].name!r}", self.device)
        if self._whole is not None and self._whole[:2] == (number, term):
            self.check_unchanged()
            return self._whole[2][:, index].permute(1, 2, 0) / self.divisor
        with plain_autograd(self.device):
            end = self._end(number, K if len(index) > _FEW else len(index), term)
            return self._rows(number, index, term, end).div_(self.divisor)

    def _rows(self, number: int, index: Tensor, term: str, end: int | None) -> Tensor:
        """The same before it is divided; with `end`, by S_n of that layer."""
        features, K = self.features[number], len(self.layers[number].weight)
        wanted = K if len(index) > _FEW else len(index)
        out = features.new_empty(len(index), K, len(features))
        for piece, tail in self._opened():
            into = out[:, :, piece.places[number]]
            if end is not None:
                tail, M = tail.ending(end), self._whole[2][piece.places[end]]
            else:
                M = self._quadratic(piece, tail, wanted) if term != "residual" else None
            step = max(1, _WORK // (tail.at.numel() * self.dtype.itemsize))
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
        end = self._ends.get(number)
        if end is None or term == "residual":
            return None
        if self._whole is None or self._whole[:2] != (end, term):
            N, K = len(self.features[end]), len(self.layers[end].weight)
            needed = N * K * K * self.dtype.itemsize + self._bytes_of_quadratics * self._keeps_quadratic
            if rows < K or self._kept + needed > self.question.memory:
                return None
            self._whole = None  # before the next one is made
            self._make_room(needed)
            require(N * K * K * self.dtype.itemsize, f"the curvature of {self.layers[end].name!r}", self.device)
            S = self.features[end].new_empty(N, K, K)
            step = max(1, _WORK // (N * K * self.dtype.itemsize))
            for some in torch.arange(K, device=self.device).split(step):
                S[:, some] = self._rows(end, some, term, None).permute(2, 0, 1)
            self._whole = end, term, S
        return end

    def product(self, number: int, v: Tensor, term: str) -> Tensor:
        """S_n v_n (N, K) of vectors v (N, K)."""
        with plain_autograd(self.device):
            out = torch.empty_like(v)
            for piece, tail in self._opened():
                some = piece.places[number]
                self._products(number, tail, piece, [v[some]], term, piece.quadratic, out[some].T[None])
            return out.div_(self.divisor)

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
            curved = self._outputs.product(tail.at, piece.y, torch.stack(moved), M)
            for w, into in zip(curved, out, strict=True):
                into += tail.back(number, w).T


def _unit(places: int, K: int, i: int, like: Tensor) -> Tensor:
    e = like.new_zeros(places, K)
    e[:, i] = 1
    return e
