"""The slow truth: the same Hessian through torch.func, used to check the closed forms. No compiled code runs here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn import functional as F

from . import _checks, _losses
from ._autograd_loss import check_targets, scalar_loss
from ._random import generator
from ._report import CheckReport, PartError

__all__ = ["CheckReport", "PartError", "check", "hessian"]

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
CHUNK_BYTES = 1 << 27  # of intermediates of the vectorized products


def hessian(
    target: Any,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    loss: str | nn.Module = "cross_entropy",
    dtype: torch.dtype = torch.float64,
    chunk_size: int | None = None,
) -> Tensor:
    """Dense Hessian (P, P) by automatic differentiation, parameters in torch's order.

    Args:
        target: a hessext Hessian, whose own data, loss and term (full, gauss_newton: J^T B J, residual: the rest)
            are used, or any nn.Module with x (N, ...) -> logits (N, C).
        x: inputs (N, d), only with a module.
        y: targets as the loss takes them, only with a module.
        loss: as in hessext.hessian, only with a module.
        dtype: dtype of the differentiation; parameters and data are lifted to it exactly. For a Hessian object with a
            piecewise linear activation the side of every kink is the one torch's forward takes in the object's own
            dtype, so that rounding near a kink does not compare two different functions.
        chunk_size: rows per vectorized product; by default as many as fit in 128 MB of intermediates.

    Returns:
        (P, P) tensor of dtype, on the device of the parameters.

    Raises:
        TypeError: x or y missing with a module, or given with a Hessian object; neither of these.
        ValueError: an unknown loss; inputs that the module does not take, or logits that are not (N, C); targets that
            do not fit them.
        MemoryError: the result does not fit.
    """
    dtype = _checks.dtype(dtype)
    chunk_size = None if chunk_size is None else _checks.count("chunk_size", chunk_size)
    truth = _Truth(target, x, y, loss, dtype)
    P = truth.size
    _checks.memory(P * P * dtype.itemsize, "the dense Hessian by autograd")
    out = torch.empty(P, P, dtype=dtype, device=truth.device)
    truth.rows(torch.arange(P, device=truth.device), chunk_size, out)
    return out


class _Truth:
    """Hessian-vector products of one problem with its parameters flattened; `layers` maps names to flat indices."""

    def __init__(self, target: Any, x: Tensor | None, y: Tensor | None, loss: Any, dtype: torch.dtype) -> None:
        self.term = "full"
        if isinstance(target, nn.Module):
            if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
                got = ", ".join(type(t).__name__ for t in (x, y))
                raise TypeError(f"x, y: expected tensors beside a module; got {got}")
            if x.is_meta or x.device != y.device:
                raise ValueError(f"x, y: expected tensors with values, on one device; got {x.device}, {y.device}")
            if not x.ndim or not x.numel():
                raise ValueError(f"x: expected at least one sample; got shape {tuple(x.shape)}")
            _checks.finite("x", x)
            loss = _losses.resolve(loss)
            parameters = dict(target.named_parameters())
            if not parameters:
                raise ValueError("target: expected a module with parameters; got none")
            buffers = {k: _lift(b, dtype) for k, b in target.named_buffers()}
            self.logits: Callable[[Mapping[str, Tensor]], Tensor] = lambda p: functional_call(
                target, {**p, **buffers}, (lifted_x,)
            )
        elif not hasattr(target, "term"):
            raise TypeError(f"target: expected a hessext.Hessian or an nn.Module; got {type(target).__name__}")
        else:
            if x is not None or y is not None:
                raise TypeError("x, y: expected None beside a Hessian, which has its own data; got tensors")
            problem = target._data.in_memory()
            parameters, x, y, loss = problem.network.parameters, problem.x, problem.y, problem.loss
            self.term = target.term
            activation = _activation_at_own_kinks(problem, dtype)
            self.logits = lambda p: _forward(problem, p, lifted_x, activation)
        lifted_x = _lift(x, dtype)
        self.parameters = {k: _lift(p, dtype) for k, p in parameters.items()}
        self.size = sum(p.numel() for p in self.parameters.values())
        self.device, self.dtype = lifted_x.device, dtype
        with torch.no_grad():
            logits = self._logits_of(target, x, y, loss)
        self.loss = scalar_loss(loss, logits, y)
        self.residual = grad(self.loss)(logits)
        self.work = self.size + 8 * x.shape[0] * (sum(p.shape[0] for p in self.parameters.values()) + x[0].numel())

    def _logits_of(self, target: Any, x: Tensor, y: Tensor | None, loss: _losses.Loss) -> Tensor:
        """Logits (N, C), those of a module and its targets checked."""
        if not isinstance(target, nn.Module):
            return self.logits(self.parameters)
        try:
            logits = self.logits(self.parameters)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            cause, shape = str(error).split("\n")[0], tuple(x.shape)
            raise ValueError(f"x: expected inputs that the module takes; got {shape}: {cause}") from None
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"target: expected a module with logits ({len(x)}, C) of x; got {got}")
        check_targets(y, logits, loss)
        return logits

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
        """Writes rows `indices` (R,) of the Hessian into out (R, P)."""
        chunk = chunk_size or max(1, CHUNK_BYTES // (self.work * self.dtype.itemsize))
        product, start = vmap(self.product()), 0
        for part in indices.split(min(chunk, len(indices))):
            unit = torch.zeros(len(part), self.size, dtype=self.dtype, device=self.device)
            unit.scatter_(1, part[:, None], 1.0)
            out[start : start + len(part)] = product(unit)
            start += len(part)

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


def _forward(
    problem: Any, parameters: Mapping[str, Tensor], x: Tensor, activation: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Logits of the problem's one or two linear layers at these parameters."""

    def affine(kind: str, features: Tensor) -> Tensor:
        weight, bias = (parameters.get(problem.network.name_of(kind, part)) for part in ("weight", "bias"))
        return F.linear(features, weight, bias)

    return affine("output", x if activation is None else activation(affine("hidden", x)))


def _activation_at_own_kinks(problem: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    """The activation; a piecewise linear one as z times its slopes at the pre-activations in the problem's dtype."""
    activation = problem.network.activation
    if activation is None or not activation.piecewise_linear:
        return None if activation is None else activation.value
    z = F.linear(problem.x, *problem.network.hidden)
    slopes = grad(lambda z: activation.value(z).sum())(z.to(dtype))
    return lambda z: slopes * z


def check(
    H: Any, *, rtol: float | None = None, max_bytes: int = 1 << 28, samples: int = 16, seed: int = 0
) -> CheckReport:
    """Compares the blocks of every layer pair of H with float64 autograd.

    Where the dense truth fits in max_bytes, all blocks are compared. Otherwise `samples` rows of each layer are drawn,
    their truth is a Hessian-vector product with a unit vector, and in each row `samples` blocks of every column layer
    are compared, the diagonal one among them.

    Args:
        H: a hessext Hessian, of any term.
        rtol: allowed ||difference||_F / ||truth||_F of each layer pair; by default 1e-6 (float32) or 1e-12 (float64)
            times the largest |logit| where that exceeds 1, since a logit's rounding is a probability's relative error.
            Where the truth of a part is exactly zero, the difference is measured against the whole Hessian instead.
        max_bytes: bound on the dense truth, and on the blocks that are held at once when sampling.
        samples: rows of each layer and blocks of each row, when sampling.
        seed: of the sample.

    Returns:
        A report with one row per layer pair.

    Raises:
        TypeError: H is not a Hessian.
        ValueError: rtol < 0, max_bytes < 0 or samples < 1.
        MemoryError: not even one row of the truth fits.
    """
    if not hasattr(H, "term"):
        raise TypeError(f"H: expected a hessext.Hessian; got {type(H).__name__}")
    rtol = None if rtol is None else _checks.real("rtol", rtol, 0)
    max_bytes, samples = _checks.count("max_bytes", max_bytes, 0), _checks.count("samples", samples)
    random = generator("check", seed)
    truth = _Truth(H, None, None, None, torch.float64)
    dtype = H.dtype
    if rtol is None:
        rtol = TOLERANCE[dtype] * max(1.0, truth.logits(truth.parameters).abs().max().item())
    complete = truth.size * truth.size * 8 <= max_bytes
    compare = _compare_all if complete else _compare_sample
    found = compare(H, truth, max_bytes, samples, random)
    whole = torch.tensor([norm for *_, norm in found], dtype=torch.float64, device="cpu").norm().item()
    parts = []
    for layers, blocks, worst, difference, norm in found:
        scale = norm or whole
        parts.append(PartError(layers, blocks, worst, difference / scale if difference else 0.0))
    return CheckReport(tuple(parts), dtype, rtol, complete)


def _compare_all(H: Any, truth: _Truth, *_: Any) -> list[tuple]:
    """(layers, blocks, largest error, norm of the difference, norm of the truth) of every layer pair."""
    P = truth.size
    dense = torch.empty(P, P, dtype=truth.dtype, device=truth.device)
    truth.rows(torch.arange(P, device=truth.device), None, dense)
    layers = {name: truth.layer(name).to(truth.device) for name in H.layers}
    found = []
    for r, rows in layers.items():
        for c, cols in layers.items():
            expected = dense[rows.flatten()[:, None], cols.flatten()]
            found.append(_errors((r, c), len(rows) * len(cols), H[r, c].dense(), expected))
    return found


def _compare_sample(H: Any, truth: _Truth, max_bytes: int, samples: int, generator: torch.Generator) -> list[tuple]:
    """The same from sampled rows of every layer and sampled blocks in each of them."""
    _checks.memory(4 * truth.work * truth.dtype.itemsize, "one row of the Hessian by autograd", truth.device)
    layers = {name: truth.layer(name) for name in H.layers}
    found = []
    for r, rows in layers.items():
        count = max(1, min(samples, max_bytes // (truth.size * truth.dtype.itemsize)))
        chosen = torch.randint(rows.numel(), (count,), generator=generator, device="cpu")
        lines = torch.empty(count, truth.size, dtype=truth.dtype, device=truth.device)
        truth.rows(rows.flatten()[chosen].to(truth.device), None, lines)
        for c, cols in layers.items():
            B, (a, b) = H[r, c], (rows.shape[1], cols.shape[1])
            per_row = max(1, min(samples, max_bytes // (a * b * 8)))
            outs, expected = [], []
            for line, k in zip(lines, chosen.tolist(), strict=True):
                j = torch.randint(len(cols), (per_row,), generator=generator, device="cpu")
                j[0] = k // a if r == c else j[0]
                j = j.unique()
                pairs = torch.stack([torch.full_like(j, k // a), j], 1)
                outs.append(B.blocks(pairs)[:, k % a])
                expected.append(line[cols[j].to(line.device)])
            blocks = sum(len(e) for e in expected)
            found.append(_errors((r, c), blocks, torch.cat(outs), torch.cat(expected)))
    return found


def _errors(layers: tuple[str, str], blocks: int, out: Tensor, expected: Tensor) -> tuple:
    difference = out.to(expected.dtype) - expected
    return layers, blocks, difference.abs().max().item(), difference.norm().item(), expected.norm().item()
