"""What comes after some layers of a model, differentiated twice: S_n = d2 loss / d z_n^2, row by row.

The tail maps the outputs z of a layer to o, the logits or the inputs of the head. With J = do/dz, u the gradient and C
the curvature at o, S = J^T C J [Gauss-Newton] + d2 <u, o> / dz^2 [residual]. Both come from <J^T u, e>: its gradient in
u is J e, and its gradient in z is the residual term's product with e. One pass gives the rows of all places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import Node

from hessext._random import generator

# Layers that are kept apart give exact zeros. What mixes by less than a few roundings is lost among those of a result.
_ROUNDINGS = 128


class Tail:
    """One batch's map from the outputs of some layers to o (M, D), recorded, with the gradient u there."""

    def __init__(
        self, leaves: list[Tensor], outputs: list[Tensor], o: Tensor, gradient: Callable[[Tensor], Tensor]
    ) -> None:
        self.leaves, self.o, self._outputs = leaves, o, outputs  # as in Record, whose logits may be large
        self.at = o.detach()
        self._u = gradient(self.at).requires_grad_()
        self._pulled: tuple[int, Tensor | None] = -1, None
        self._ending: dict[int, Tail] = {}

    def places(self, number: int) -> int:
        """Places of a layer."""
        leaf = self.leaves[number]
        return leaf.numel() // leaf.shape[-1]

    def passes(self, number: int, through: int) -> bool:
        """Whether o depends on a layer's outputs, and through the outputs of another layer alone."""
        leaf, z = self.leaves[number], self._outputs[through].grad_fn
        return number != through and _reaches(z, leaf, None) and not _reaches(self.o.grad_fn, leaf, z)

    def ending(self, number: int) -> Tail:
        """The map to the outputs z of a layer in place of o, with the gradient there."""
        if number not in self._ending:
            (g,) = torch.autograd.grad(self.o, self.leaves[number], self._u.detach(), retain_graph=True)
            z = self._outputs[number].flatten(0, -2)
            self._ending[number] = Tail(self.leaves, self._outputs, z, lambda _: g.flatten(0, -2))
        return self._ending[number]

    def along(self, number: int, e: Tensor, term: str) -> tuple[Tensor | None, Tensor | None]:
        """J e (M, D), and the residual term's product with e (N, K); None for what the term does not have."""
        leaf = self.leaves[number]
        if self._pulled[0] != number:
            self._pulled = -1, None  # before the next one is made
            with second_derivatives():
                (g,) = torch.autograd.grad(self.o, leaf, self._u, create_graph=True, allow_unused=True)
                _check_differentiable(g)
            self._pulled = number, g
        g = self._pulled[1]
        if g is None:  # nothing depends on this layer
            return torch.zeros_like(self.at), torch.zeros_like(e)
        inputs = {"full": [self._u, leaf], "gauss_newton": [self._u], "residual": [leaf]}[term]
        found: list[Tensor | None] = [None] * len(inputs)
        if g.requires_grad:
            with second_derivatives():
                found = list(torch.autograd.grad(g, inputs, e.view(leaf.shape), retain_graph=True, allow_unused=True))
        moved = found.pop(0) if term != "residual" else None
        bent = found.pop(0) if term != "gauss_newton" else None
        if term != "residual" and moved is None:
            moved = torch.zeros_like(self.at)
        return moved, None if bent is None else bent.reshape(e.shape)

    def back(self, number: int, w: Tensor) -> Tensor:
        """J^T w (N, K) of w (M, D)."""
        leaf = self.leaves[number]
        (result,) = torch.autograd.grad(self.o, leaf, w, retain_graph=True, allow_unused=True)
        return leaf.new_zeros(self.places(number), leaf.shape[-1]) if result is None else result.flatten(0, -2)

    def mixed(self, number: int, couple: Callable[[Tensor], Tensor]) -> float:
        """The largest share of H e that lies at places where e is zero; 0 where the tail keeps places apart.

        e is random at the places whose numbers have a bit set, for one bit after the other: any two places are told
        apart by one of them, so that no pair is left out. `couple` stands for the curvature at o.
        """
        leaf, N = self.leaves[number], self.places(number)
        v = torch.randn(N, leaf.shape[-1], generator=generator("places", N), dtype=torch.float64).to(leaf)
        place, worst = torch.arange(N, device=leaf.device), 0.0
        for bit in range((N - 1).bit_length()):
            on = (place >> bit) % 2 == 1
            moved, bent = self.along(number, v * on[:, None], "full")
            product = self.back(number, couple(moved))
            product = product if bent is None else product + bent
            whole = product.norm().item()
            if whole > 0:
                worst = max(worst, product[~on].norm().item() / whole)
        self.let_go()
        return worst

    def let_go(self) -> None:
        """Drop J^T u, which each use makes anew: its graph may be as large as what is recorded."""
        self._pulled = -1, None
        for ending in self._ending.values():
            ending.let_go()

    def keeps_apart(self, number: int, couple: Callable[[Tensor], Tensor]) -> bool:
        """Whether no two places of a layer are mixed."""
        return self.mixed(number, couple) <= _ROUNDINGS * torch.finfo(self.o.dtype).eps


@contextmanager
def second_derivatives() -> Iterator[None]:
    """Raise TypeError where an operation of the tail cannot be differentiated twice."""
    try:
        yield
    except RuntimeError as error:
        cause = str(error).split("\n")[0]
        if not any(text in cause for text in ("not implemented", "differentia", "double backward", "checkpoint")):
            raise
        raise TypeError(
            "model: expected operations with second derivatives after the layer (plain attention instead of a fused "
            f"one, no once_differentiable, torch.compile or gradient checkpointing); got: {cause}"
        ) from error


def _check_differentiable(g: Tensor | None) -> None:
    """Raise where g has a part that may be differentiated once: autograd would take it for constant."""
    if g is not None and any(node.name().endswith("::Error") for node in _nodes(g.grad_fn)):
        raise RuntimeError("a function marked with @once_differentiable")


def _reaches(start: Node, leaf: Tensor, without: Node | None) -> bool:
    """Whether a graph leads from a node to a leaf, not counting what comes through one of its nodes."""
    return any(getattr(node, "variable", None) is leaf for node in _nodes(start, without))


def _nodes(start: Node | None, without: Node | None = None) -> Iterator[Node]:
    """All nodes that a graph leads to, none of them through `without`."""
    nodes = [] if start is None else [start]
    seen = {start, without}
    while nodes:
        node = nodes.pop()
        yield node
        new = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= new
        nodes.extend(new)


class SavedBytes:
    """Counts the memory that autograd keeps, parameters left out, of what runs within it."""

    def __init__(self, without: list[Tensor]) -> None:
        self._without = {t.untyped_storage().data_ptr() for t in without}
        self._sizes: dict[int, int] = {}

    def __enter__(self) -> SavedBytes:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in self._without:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return t

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self._sizes.values())
