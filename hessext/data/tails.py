"""Inputs of some layers of a model over all batches, and what comes after them, recorded."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hessext import _hints
from hessext._memory import require
from hessext._progress import steps
from hessext._tensors import Watch, lifted
from hessext.model import targets
from hessext.model.linear import LinearLayer, is_linear
from hessext.model.network import Layer

from .forward import warn_of_probabilities
from .outputs import Outputs
from .question import Piece, Question, targets_of, tensors_in
from .runs import Record, Runner, check_calls, head_rows, plain_autograd
from .tail import SavedBytes, Tail, second_derivatives
from .tail_curvature import TailCurvature

_PROPOSED = 12  # linear layers that are tried for a message, the last ones called


class Tails:
    """Batches are read once and kept; their tails are recorded again where `memory` does not hold them."""

    def __init__(self, question: Question, batches: Iterable[Any], divisor: float | None = None) -> None:
        """`divisor`: what a mean divides by, where it is known; 0 where other batches have a share in it."""
        self.question, self.loss = question, question.loss
        own = question.layers[0].weight.dtype
        self.dtype = question.dtype or torch.promote_types(torch.float32, own)
        self.device = question.device or question.layers[0].weight.device
        self.runner = Runner(
            question.model, question.forward, None if self.dtype == own else self.dtype, question.device
        )
        self.layers = question.layers  # those with a tail
        self.head: LinearLayer | None = None
        self.pieces: list[Piece] = []
        self.features: list[Tensor] = []  # of each layer (N, cols)
        self.head_inputs: Tensor | None = None  # (M, d), where the head is one of the layers that are asked for
        self.graphs = self.kept = 0  # bytes of the recorded tails, and of the layers' inputs
        self.ends: dict[int, int] | None = None  # layers whose tails pass through the outputs of another one alone
        with plain_autograd(self.device):
            self._read(batches)
        if divisor != 0:
            self.divide_by(self.divisor if divisor is None else divisor)
        self._data = Watch(**dict(tensors_in("batches", [piece.batch for piece in self.pieces])))

    def __reduce__(self) -> tuple:
        """Pickle what is asked, the model and the batches among it: everything is collected again."""
        self.check_unchanged()
        try:
            pickle.dumps(self.question.forward)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(f"forward: expected a function that can be pickled, one of a module; {error}") from None
        return Tails, (self.question, [piece.batch for piece in self.pieces], self.divisor)

    def divide_by(self, divisor: float) -> None:
        """Set what a mean divides by. Raises ValueError where that is 0."""
        if self.loss.reduction != "sum":
            targets.check_divisor(divisor)
        self.divisor = divisor if self.loss.reduction != "sum" else 1.0

    def elsewhere(self, device: torch.device, dtype: torch.dtype) -> Tails:
        """The same collected on another device or in another dtype."""
        self.check_unchanged()
        batches = [piece.batch for piece in self.pieces]
        return Tails(replace(self.question, dtype=dtype, device=device), batches, self.divisor)

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
            changed = str(error).partition(";")[0]
            raise RuntimeError(f"model: {changed}; pass a copy of the model, copy.deepcopy(model)") from None
        self._data.check()

    # ----------------------------------------------------------------------------------------------- first reading

    def _read(self, batches: Iterable[Any]) -> None:
        divisor = 0.0
        features: list[list[Tensor]] = []
        head_inputs: list[Tensor] = []
        for k, batch in enumerate(steps(batches, unit="batches")):
            saved = SavedBytes(self.runner.parameters)
            with saved:
                record, rows = self._record_first(batch) if k == 0 else self._record_whole(batch)
            C = record.logits.shape[-1]
            if k == 0:
                warn_of_probabilities(self.runner.model, record.logits, self.loss)
                self.loss = targets.of_any_samples(self.loss, C)
                self.outputs = Outputs(self.loss, None if self.head is None else self._head_layer())
            features = features or [[] for _ in self.layers]
            y = targets_of(record, k, self.loss)
            if y is None and self.layers:
                name = self.layers[0].name
                raise ValueError(
                    f"y: expected targets, or batches (x, y): the Hessian of {name!r} depends on them; got none"
                )
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
                self.ends = self._found_ends(piece.tail)
            self.graphs += saved.total
            if self.graphs + self.kept > self.question.memory:
                self.graphs, piece.tail = self.graphs - saved.total, None
            del record
        if not self.pieces:
            raise ValueError(f"batches: expected at least one; got none{_hints.of_end(batches)}")
        self.divisor = divisor
        self.features = [torch.cat(some) for some in features]
        self.head_inputs = torch.cat(head_inputs) if head_inputs else None
        self.curvature = TailCurvature(self)

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
                return record, rows
        return self.runner.record(batch, self.layers, None, self.question.argument, whole=True), None

    def _record_whole(self, batch: Any) -> tuple[Record, Tensor | None]:
        record = self.runner.record(batch, self.layers, self.head, self.question.argument, whole=True)
        rows = None if self.head is None else head_rows(record)
        if self.head is not None and rows is None:
            raise ValueError(f"batches: expected logits that are outputs of {self.head.name!r}, as in the first batch")
        return record, rows

    def _head_layer(self) -> Layer:
        """The head where the tails end, its weight in half precision as it is."""
        weight, bias = self.head.weight, self.head.bias
        dtype = weight.dtype if lifted(weight.dtype) == self.dtype else self.dtype
        bias = None if bias is None else bias.to(self.device, self.dtype)
        return Layer(self.head.name, weight.to(self.device, dtype), bias)

    def _count_kept(self, numbers: Iterable[int]) -> None:
        """Refuse inputs of the layers that do not fit into `memory`, or, put together, into what is free."""
        self.kept += sum(numbers) * self.dtype.itemsize
        if self.kept > self.question.memory:
            raise MemoryError(
                f"the layers' inputs need {self.kept} bytes ({self.kept / 2**30:.1f} GiB) and more, and "
                f"memory={self.question.memory} allows fewer"
            )
        require(self.kept, "the layers' inputs so far, put together,", self.device)

    # -------------------------------------------------------------------------------------------------- what is refused

    def _check_tail(self, k: int, piece: Piece, record: Record) -> None:
        """Refuse layers whose weight is used again, on which nothing depends, or whose places are mixed."""
        tail, argument = piece.tail, self.question.argument
        for number, layer in enumerate(self.layers):
            if not tail.o.requires_grad:
                raise ValueError(f"{argument}: expected a layer that the logits depend on; got {layer.name!r}")
            with second_derivatives():
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
            if end is not None and (self.ends is None or self.ends.get(number) == end):
                found[number] = end
        return found

    def _coupling(self, piece: Piece) -> Any:
        at = piece.tail.at
        return partial(self.outputs.spread, at, piece.y, w=self.outputs.random_classes(at))

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
            f"{self.question.argument}: expected a layer after which samples and positions are kept apart; those of "
            f"{layer.name!r} are mixed in batch {k}, as by attention, a convolution or batch normalization, and its "
            "Hessian is no sum over them. Of the last linear layers these would do: "
            f"{', '.join(names) or 'none'}"
        )

    # --------------------------------------------------------------------------------------------------------- tails

    def _tail(self, piece: Piece, record: Record) -> Tail:
        at_head = self.head is not None
        o = record.head_inputs[0].flatten(0, -2)[piece.rows] if at_head else record.logits.flatten(0, -2)
        return Tail(record.leaves, record.outputs, o, lambda at: self.outputs.gradient(at, piece.y))

    def opened(self) -> Iterator[tuple[Piece, Tail]]:
        """Every batch with its tail, kept or recorded now."""
        self.check_unchanged()
        for piece in steps(self.pieces, lambda piece: piece.places[0].stop - piece.places[0].start):
            tail = piece.tail
            if tail is None:
                record = self.runner.record(
                    piece.batch, self.layers, self.head, self.question.argument, whole=self.head is None
                )
                tail = self._tail(piece, record)
                del record
            yield piece, tail
            tail.let_go()
            del tail
