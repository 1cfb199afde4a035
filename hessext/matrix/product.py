"""Exact Hessian-vector products: the R-operator through the forward and the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from hessext import _ops
from hessext.data.samples import Problem, Term
from hessext.model.network import Affine, Layer

# Bytes of a (samples, C) work tensor, a few of which stay in a CPU's cache; and the most, for a GPU and where results
# are wide and adding those of chunks, in float64, takes long.
_CHUNK_BYTES = 1 << 22, 1 << 26
_THIN = 64  # units


def product(problem: Problem, term: Term, direction: dict[str, Affine], wanted: set[str]) -> dict[str, Affine]:
    """H applied to a direction {"hidden": (dW, db), "output": (dV, dc)} (parts may be None), for the wanted layers.

    With R the derivative along the direction and r = d loss / d f: R f = (R a) V^T + a dV^T + dc, B = d2 loss / d f2,
        output rows: (B R f)^T a [Gauss-Newton] + r^T R a [residual]
        hidden rows: (a' (B R f V [Gauss-Newton] + r dV [residual]) + a'' R z (r V) [residual])^T x
    """
    problem.check_unchanged()
    samples, (classes, width) = len(problem.x), problem.network.output[0].shape
    least, most = (size // (classes * problem.x.element_size()) for size in _CHUNK_BYTES)
    widest = most * classes // max(classes, width)
    step = max(64, widest if problem.x.is_cuda else max(least, min(8 * width, most)))
    weight = problem.network.output[0]
    if width <= _THIN and problem.network.hidden is not None:
        # BLAS multiplies by a thin V twice as fast in this layout, and forms thin results faster by rows
        weight = weight.T.contiguous().T
    total: dict[str, list[Tensor]] = {}
    for start in range(0, samples, step):
        rows = slice(start, start + step)
        for kind, parts in _chunk(problem, term, direction, wanted, weight, rows).items():
            if step < samples:
                parts = [p.double() for p in parts]
            total[kind] = [a.add_(b) for a, b in zip(total[kind], parts, strict=True)] if kind in total else parts
    return {kind: tuple(p.to(problem.x.dtype) for p in parts) for kind, parts in total.items()}


def _chunk(
    problem: Problem, term: Term, direction: dict[str, Affine], wanted: set[str], weight: Tensor, rows: slice
) -> dict[str, list[Tensor]]:
    gauss_newton, residual = term != "residual", term != "gauss_newton" and problem.network.hidden is not None
    x, features = problem.x[rows], problem.features[rows]
    Rz, Ra = None, None
    if "hidden" in direction:
        Rz = _apply(x, direction["hidden"])
        Ra = problem.slope[rows] * Rz
    moved = direction.get("output")
    result: dict[str, list[Tensor]] = {}

    back = None  # B R f
    if gauss_newton:
        Rf = _apply(features, moved) if moved is not None else None
        if Ra is not None:
            Rf = Ra @ weight.T if Rf is None else Rf.addmm_(Ra, weight.T)
        back = _output_curvature(problem, rows, Rf)
    if "output" in wanted:
        zero = weight.new_zeros(weight.shape)
        into, bias = ((features.T @ back).T, back.sum(0)) if back is not None else (zero, zero[:, 0])
        if residual and Ra is not None:
            into = into + (Ra.T @ problem.residual[rows]).T
        result["output"] = [into, bias]
    if "hidden" in wanted:
        inner = back @ weight if back is not None else torch.zeros_like(problem.slope[rows])
        if residual and moved is not None and moved[0] is not None:
            inner += problem.residual[rows] @ moved[0]
        inner = problem.slope[rows] * inner
        if residual and Rz is not None and problem.bend is not None:
            inner += problem.bend[rows] * Rz
        result["hidden"] = [inner.T @ x, inner.sum(0)]
    return result


def _apply(x: Tensor, affine: Affine) -> Tensor:
    weight, bias = affine
    if weight is None:
        return bias.expand(len(x), -1).clone()
    return torch.nn.functional.linear(x, weight, bias)


def _output_curvature(problem: Problem, rows: slice, v: Tensor) -> Tensor:
    """B_n v_n for each sample, in place where there is a softmax."""
    c = problem.curvature
    if c.probs is None:
        return c.scale[rows, None] * v
    v = v.contiguous()
    _ops.softmax_product_(v, c.probs[rows], c.scale[rows], c.top[rows])
    return v


# ------------------------------------------------------------------------------------------ vectors and layers


def to_affine(layer: Layer, v: Tensor) -> Affine:
    """A vector over a layer's blocks (blocks * size,) as weight and bias."""
    v = v.view(layer.blocks, layer.size)
    return v[:, : layer.cols] if layer.cols else None, v[:, layer.cols] if layer.ones else None


def from_affine(layer: Layer, affine: Affine) -> Tensor:
    """The inverse of `to_affine`, dropping what the layer does not have."""
    weight, bias = affine
    parts = ([weight] if layer.cols else []) + ([bias[:, None]] if layer.ones else [])
    return torch.cat(parts, 1).reshape(-1)


def columns(apply, v: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """apply(v) for a vector (size,), or column by column for a matrix (size, k)."""
    if v.ndim == 1:
        return apply(v)
    return torch.stack([apply(c) for c in v.unbind(1)], 1) if v.shape[1] else v.new_empty(size, 0, dtype=dtype)
