"""Rows of Hessians by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn import functional as F

from hessext import _checks
from hessext._progress import steps
from hessext._tensors import moved
from hessext.data.ranks import Ranks
from hessext.data.samples import Samples
from hessext.model import targets
from hessext.model.loss_arguments import resolve
from hessext.model.losses import Loss
from hessext.model.network import Layer, Network
from hessext.model.pruned import masked_kept

from ._loss import scalar_loss

CHUNK_BYTES = 1 << 27  # of intermediates of the vectorized products


class Truth:
    """Hessian-vector products of one problem with its parameters flattened; `layers` maps names to flat indices."""

    def __init__(self, target: Any, x: Tensor | None, y: Tensor | None, loss: Any, dtype: torch.dtype) -> None:
        self.term, self.ranks = "full", Ranks()
        if isinstance(target, nn.Module):
            if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
                got = ", ".join(type(t).__name__ for t in (x, y))
                raise TypeError(f"x, y: expected tensors beside a module; got {got}")
            if x.is_meta or x.device != y.device:
                raise ValueError(f"x, y: expected tensors with values, on one device; got {x.device}, {y.device}")
            if not x.ndim or not x.numel():
                raise ValueError(f"x: expected at least one sample; got shape {tuple(x.shape)}")
            _checks.finite("x", x)
            loss = resolve(loss)
            parameters = dict(target.named_parameters())
            if not parameters:
                raise ValueError("target: expected a module with parameters; got none")
            buffers = {k: _lift(b, dtype) for k, b in target.named_buffers()}
            self.logits: Callable[[Mapping[str, Tensor]], Tensor] = lambda p: _called(
                target, {**p, **buffers}, lifted_x
            )
        elif not hasattr(target, "term"):
            raise TypeError(f"target: expected a hessext.Hessian or an nn.Module; got {type(target).__name__}")
        else:
            if x is not None or y is not None:
                raise TypeError("x, y: expected None beside a Hessian, which has its own data; got tensors")
            samples, self.ranks = target._data.in_memory().whole(), target._data.ranks
            network, x, y, loss = samples.network, samples.x, samples.y, samples.loss
            self.term, parameters = target.term, network.parameters
            activations = _activations_at_own_kinks(samples, dtype)
            self.logits = lambda p: _forward(network, p, lifted_x, activations)
        lifted_x = _lift(x, dtype)
        self.parameters = {k: _lift(p, dtype) for k, p in parameters.items()}
        self.size = sum(p.numel() for p in self.parameters.values())
        self.device, self.dtype = lifted_x.device, dtype
        with torch.no_grad():
            logits, y = self._logits_of(target, x, y, loss)
        self.loss = scalar_loss(loss, logits, y)
        self.residual = grad(self.loss)(logits)
        self.work = self.size + 8 * x.shape[0] * (sum(p.shape[0] for p in self.parameters.values()) + x[0].numel())

    def _logits_of(self, target: Any, x: Tensor, y: Tensor | None, loss: Loss) -> tuple[Tensor, Tensor | None]:
        """Logits (N, C) and targets, those of a module checked."""
        if not isinstance(target, nn.Module):
            return self.logits(self.parameters), y
        try:
            logits = self.logits(self.parameters)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            cause, shape = str(error).split("\n")[0], tuple(x.shape)
            raise ValueError(f"x: expected inputs that the module takes; got {shape}: {cause}") from None
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"target: expected a module with logits ({len(x)}, C) of x; got {got}")
        own = moved(loss, logits.device, logits.dtype)
        return logits, targets.checked_targets(_lift(y, logits.dtype), logits.shape[:1], logits.shape[1], own, logits)

    def product(self) -> Callable[[Tensor], Tensor]:
        """v -> H v (P,) of the object's term alone; no term is formed as a difference of the others.

        Reverse over reverse: H and B are symmetric, so a pull-back through the gradient is the product; J v is the
        pull-back through u -> J^T u.
        """
        if self.term == "gauss_newton":  # J^T B J v
            logits, transposed = vjp(self.logits, self.parameters)
            forward = vjp(lambda u: transposed(u)[0], torch.zeros_like(logits))[1]
            curvature = vjp(grad(self.loss), logits)[1]
            return lambda v: self._flatten(transposed(*curvature(*forward(self._unflatten(v))))[0])
        if self.term == "residual":  # second derivative of <r, f> with r held fixed
            gradient = grad(lambda p: (self.residual * self.logits(p)).sum())
        else:
            gradient = grad(lambda p: self.loss(self.logits(p)))
        pull_back = vjp(gradient, self.parameters)[1]
        return lambda v: self._flatten(pull_back(self._unflatten(v))[0])

    def rows(self, indices: Tensor, chunk_size: int | None, out: Tensor) -> None:
        """Writes rows `indices` (R,) of the Hessian into out (R, P), those of all ranks together."""
        chunk = chunk_size or max(1, CHUNK_BYTES // (self.work * self.dtype.itemsize))
        product, start = vmap(self.product()), 0
        for part in steps(indices.split(min(chunk, len(indices))), len):
            basis = torch.zeros(len(part), self.size, dtype=self.dtype, device=self.device)
            basis.scatter_(1, part[:, None], 1.0)
            out[start : start + len(part)] = product(basis)
            start += len(part)
        self.ranks.sum(out)

    def _unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([p.numel() for p in self.parameters.values()])
        return {k: part.view_as(p) for part, (k, p) in zip(parts, self.parameters.items(), strict=True)}

    @staticmethod
    def _flatten(tangent: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([t.flatten() for t in tangent.values()])

    def layer(self, name: str) -> Tensor:
        """Flat indices (blocks, block size) of a layer or parameter: one row per neuron, its bias last."""
        starts, position = {}, 0
        for key, p in self.parameters.items():
            starts[key] = torch.arange(position, position + p.numel(), device="cpu").view(p.shape[0], -1)
            position += p.numel()
        if name in starts:
            return starts[name]
        return torch.cat([starts[k] for k in (f"{name}.weight", f"{name}.bias") if k in starts], 1)


def _lift(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.detach().to(dtype) if t.is_floating_point() else t.detach()


def _called(module: nn.Module, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The module's output with these parameters and buffers."""
    with masked_kept(module):
        return functional_call(module, tensors, (x,))


def _forward(
    network: Network, parameters: Mapping[str, Tensor], x: Tensor, activations: list[Callable[[Tensor], Tensor]]
) -> Tensor:
    """Logits of the network at these parameters."""
    for layer, activation in zip(network.layers, [*activations, lambda logits: logits], strict=True):
        weight, bias = (parameters.get(layer.name_of(part)) for part in ("weight", "bias"))
        x = activation(F.linear(x, weight, bias))
    return x


def _activations_at_own_kinks(samples: Samples, dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
    """The hidden layers' activations; a piecewise linear one as z times its slopes at z in the samples' dtype."""

    def at_own_kinks(number: int, layer: Layer) -> Callable[[Tensor], Tensor]:
        activation = layer.activation
        if not activation.piecewise_linear:
            return activation.value
        z = F.linear(samples.features(number), *layer.affine)
        slopes = grad(lambda z: activation.value(z).sum())(z.to(dtype))
        return lambda z: torch.where(slopes != 0, slopes * z, 0)  # 0 where a unit is off, as relu's own backward gives

    return [at_own_kinks(*numbered) for numbered in enumerate(samples.network.layers[:-1])]
