"""Hessian-vector products in one layer of a model that is run as it is, all places and what mixes them included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hessext._tensors import moved
from hessext.data.places import NoPlaces, OneLayer, Places
from hessext.data.runs import Runner, plain_autograd
from hessext.data.shared import Shared
from hessext.model import targets

from ._loss import scalar_loss
from ._truth import Truth


def truth_of(target: Any, x: Tensor | None, y: Tensor | None, loss: Any, dtype: torch.dtype) -> Truth:
    """The truth of a Hessian object, or of a module with data."""
    data = getattr(target, "_data", None)
    if isinstance(data.local if isinstance(data, Shared) else data, OneLayer):
        if x is not None or y is not None:
            raise TypeError("x, y: expected None beside a Hessian, which has its own data; got tensors")
        return LayerTruth(target, dtype)
    return Truth(target, x, y, loss, dtype)


class LayerTruth(Truth):
    """The truth of a Hessian from `hessext.layer`: the whole model, lifted to dtype, run on each batch."""

    def __init__(self, target: Any, dtype: torch.dtype) -> None:
        self.ranks = target._data.ranks
        self._places: OneLayer = target._data.in_memory()
        self.term, self.dtype, self.device = target.term, dtype, target.device
        self.parameters = {k: p.detach().to(dtype) for k, p in self._places.network.parameters.items()}
        self.size = self.work = sum(p.numel() for p in self.parameters.values())
        self.logits: Callable[[Any], Tensor]
        if isinstance(self._places, NoPlaces):
            self.logits, own = lambda _: torch.zeros(1, device=self.device), 0.0
        else:
            self.logits, own = self._read()
        self._divisor = sum(self.ranks.notes("divisor", own)) if self._places.loss.reduction != "sum" else 1.0

    def _read(self) -> tuple[Callable[[Any], Tensor], float]:
        """What gives the largest logit of each batch, and the share of these batches in the divisor."""
        question = self._places.question
        self._runner = Runner(question.model, question.forward, self.dtype, question.device)
        self._sum = replace(question.loss, reduction="sum")
        largest, found = [], []
        for f, y in self._runs(dict(self.parameters)):
            largest.append(f.abs().max())
            found.append(y)
            classes = f.shape[1]
        y = torch.cat(found)
        own = float(question.loss.divisor(y, y.new_empty((), dtype=self.dtype).expand(len(y), classes)))
        return lambda _: torch.stack(largest), own

    def _runs(self, parameters: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (M, C) and targets of each batch with these parameters of the layer."""
        layer, (own,) = self._places.layer, self._places.network.layers
        weight, bias = (parameters.get(own.name_of(part)) for part in ("weight", "bias"))
        for batch in self._places.batches:
            logits, y = self._runner.with_layer(batch, layer, weight, bias)
            C = logits.shape[-1]
            loss = moved(self._sum, logits.device, logits.dtype)
            yield logits.reshape(-1, C), targets.of_logits(y, logits.detach(), loss)

    def rows(self, indices: Tensor, chunk_size: int | None, out: Tensor) -> None:
        """Writes rows `indices` (R,) of the Hessian into out (R, P), one product after the other, batch by batch."""
        out.zero_()
        if isinstance(self._places, Places):
            self._add_rows(indices, out)
        out /= self._divisor
        self.ranks.sum(out)

    def _add_rows(self, indices: Tensor, out: Tensor) -> None:
        leaves = {k: p.clone().requires_grad_() for k, p in self.parameters.items()}
        with plain_autograd(self.device):
            for f, y in self._runs(leaves):
                product = self._product(list(leaves.values()), f, y)
                for into, i in zip(out, indices.tolist(), strict=True):
                    e = torch.zeros(self.size, dtype=self.dtype, device=self.device)
                    e[i] = 1
                    into += product(list(self._unflatten(e).values()))

    def _product(self, leaves: list[Tensor], f: Tensor, y: Tensor) -> Callable[[list[Tensor]], Tensor]:
        """v -> H v (P,) of one batch's sum of losses; no term is formed as a difference of the others."""
        at = f.detach().requires_grad_()
        loss = scalar_loss(self._sum, at.detach(), y)
        (r,) = torch.autograd.grad(loss(at), at, create_graph=True)
        if self.term == "gauss_newton":
            u = torch.zeros_like(at, requires_grad=True)
            pulled = torch.autograd.grad(f, leaves, u, create_graph=True)

            def gauss_newton(v: list[Tensor]) -> Tensor:
                (moved,) = torch.autograd.grad(pulled, u, v, retain_graph=True)
                (curved,) = torch.autograd.grad(r, at, moved, retain_graph=True)
                return _flat(torch.autograd.grad(f, leaves, curved, retain_graph=True))

            return gauss_newton
        value = (r.detach() * f).sum() if self.term == "residual" else loss(f)
        gradient = torch.autograd.grad(value, leaves, create_graph=True)

        def product(v: list[Tensor]) -> Tensor:
            if not any(g.requires_grad for g in gradient):
                return torch.zeros(self.size, dtype=self.dtype, device=self.device)
            return _flat(
                torch.autograd.grad(gradient, leaves, v, retain_graph=True, allow_unused=True, materialize_grads=True)
            )

        return product


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])
