"""Exact Hessian-vector products: the R-operator through the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hessext._ops import Kind
from hessext._products import linear, multiply
from hessext.data.samples import Samples
from hessext.model.network import Affine, Network, ParameterGroup

from .part import Part, Term

# Bytes of a (samples, C) work tensor, a few of which stay in a CPU's cache; and the most, for a GPU and where results
# are wide and adding those of chunks, in float64, takes long.
_CHUNK_BYTES = 1 << 22, 1 << 26
_THIN = 64  # units
_ADDED = 1 << 20  # entries

Direction = dict[int, tuple[Tensor | None, Tensor | None]]  # layer -> (dW, db), of which one may be missing


def product(samples: Samples, term: Term, direction: Direction, wanted: set[int]) -> dict[int, Affine]:
    """H applied to a direction in some layers' parameters: weight and bias of the wanted layers.

    With R the derivative along the direction, B = d2 loss / d f2 and g_l = d loss / d z_l:
        R z_l = dW_l a_{l-1} + db_l + W_l R a_{l-1},   R a_l = act' R z_l,   R g_L = B R f [Gauss-Newton]
        R g_l = act' (W_{l+1}^T R g_{l+1} + dW_{l+1}^T g_{l+1} [residual]) + bend R z_l [residual]
        rows of layer l: (R g_l)^T a_{l-1} + g_l^T R a_{l-1} [residual]
    """
    samples.check_unchanged()
    network = samples.network
    if samples.kind(network.last, network.last) is Kind.GIVEN:  # one layer of a network that is not a chain
        ((layer, (weight, bias)),) = direction.items()
        x = samples.features(layer)
        v = samples.curvature_product(layer, term, _apply(x, weight, bias))
        return {layer: (v.T @ x, v.sum(0))}
    classes, width = network.classes, network.like.shape[1]
    least, most = (size // (classes * network.like.element_size()) for size in _CHUNK_BYTES)
    widest = most * classes // max(classes, width)
    step = max(64, widest if network.like.is_cuda else max(least, min(8 * width, most)))
    last_weight = network.like
    if width <= _THIN and network.last:
        # BLAS multiplies by a thin V twice as fast in this layout, and forms thin results faster by rows
        last_weight = last_weight.T.contiguous().T
    weights = [*(layer.weight for layer in network.layers[:-1]), last_weight]
    total: dict[int, list[Tensor]] = {}
    for start in range(0, len(samples), step):
        rows = slice(start, start + step)
        _add(total, _chunk(samples, term, direction, wanted, weights, rows), several=step < len(samples))
    return {layer: tuple(p.to(network.like.dtype) for p in parts) for layer, parts in total.items()}


def _add(total: dict[int, list[Tensor]], chunk: dict[int, list[Tensor]], several: bool) -> None:
    """Sums of several chunks are in float64; some rows at a time, as adding of two dtypes first copies one of them."""
    for layer, parts in chunk.items():
        if layer not in total:
            total[layer] = [p.double() for p in parts] if several else parts
            continue
        for sums, part in zip(total[layer], parts, strict=True):
            rows = max(1, _ADDED // max(1, part[:1].numel()))
            for into, piece in zip(sums.split(rows), part.split(rows), strict=True):
                into.add_(piece)


def _chunk(
    samples: Samples, term: Term, direction: Direction, wanted: set[int], weights: list[Tensor], rows: slice
) -> dict[int, list[Tensor]]:
    last = samples.network.last
    gauss_newton, residual = term != "residual", term != "gauss_newton" and last > 0
    Rz: dict[int, Tensor] = {}
    Ra: dict[int, Tensor] = {}  # of a layer's inputs
    for layer in range(last + gauss_newton):  # R f has a use in the Gauss-Newton term alone
        if layer in direction:
            Rz[layer] = _apply(samples.features(layer)[rows], *direction[layer])
        if layer in Ra:
            moved, W = Ra[layer], weights[layer]
            Rz[layer] = Rz[layer].addmm_(moved, W.T) if layer in Rz else multiply(moved, W.T)
        if layer < last and layer in Rz:
            Ra[layer + 1] = samples.through(layer, Rz[layer], rows)

    Rg = samples.output.product_(Rz[last], rows) if gauss_newton else None
    result: dict[int, list[Tensor]] = {}
    for layer in range(last, min(wanted) - 1, -1):
        W = weights[layer]
        if layer in wanted:
            x = samples.features(layer)[rows]
            into, bias = _outer(Rg, x, layer == last) if Rg is not None else (torch.zeros_like(W), W.new_zeros(len(W)))
            if residual and layer in Ra:
                into = into + multiply(Ra[layer].T, samples.gradient(layer)[rows]).T
            result[layer] = [into, bias]
        if layer == min(wanted):
            break
        inner = multiply(Rg, W) if Rg is not None else torch.zeros_like(samples.slope(layer - 1)[rows])
        if residual and layer in direction and direction[layer][0] is not None:
            inner += multiply(samples.gradient(layer)[rows], direction[layer][0])
        Rg = samples.through(layer - 1, inner, rows)
        if residual and layer - 1 in Rz and (bend := samples.bend(layer - 1)) is not None:
            Rg += bend[rows] * Rz[layer - 1]
    return result


def _outer(Rg: Tensor, x: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    """(R g)^T x and its sum over samples, the many rows of the output layer formed as columns."""
    return multiply(x.T, Rg).T if last else multiply(Rg.T, x), Rg.sum(0)


def _apply(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return bias.expand(len(x), -1).clone() if weight is None else linear(x, weight, bias)


# ----------------------------------------------------------------------------------------- vectors and parameters


def part_product(part: Part, v: Tensor, *, own_rows: bool = False) -> Tensor:
    """The product of a part of data in memory with a vector or the columns of a matrix, in the data's dtype.

    Where classes are split over ranks, `own_rows` says that v and the result are of the rows that are here.
    """
    samples, row, col = part.samples, part.row, part.col
    if own_rows:
        row, col = (group._replace(blocks=len(part.like)) for group in (row, col))

    def apply(c: Tensor) -> Tensor:
        affine = _to_affine(col, c)
        direction = {col.layer: affine if own_rows else _here(samples.network, col.layer, affine)}
        result = product(samples, part.term, direction, {row.layer})[row.layer]
        return _from_affine(row, result if own_rows else _everywhere(samples, row.layer, result))

    return _by_columns(apply, v.to(part.dtype), row.blocks * row.size)


def hessian_product(samples: Samples, term: Term, v: Tensor) -> Tensor:
    """The same of the whole Hessian, parameters in torch's order."""
    network = samples.network

    def apply(c: Tensor) -> Tensor:
        result = product(samples, term, _split(network, c), set(range(len(network.layers))))
        flat = c.new_empty(network.numel)
        for group in network.whole:
            weight, bias = _everywhere(samples, group.layer, result[group.layer])
            flat[group.start : group.start + weight.numel()] = weight.reshape(-1)
            if group.bias:
                flat[group.start_bias : group.start_bias + group.blocks] = bias
        return flat

    return _by_columns(apply, v.to(network.like.dtype), network.numel)


def _split(network: Network, v: Tensor) -> Direction:
    """A vector over all parameters as weights and biases of the layers."""
    direction: Direction = {}
    for group in network.whole:
        dW = v[group.start : group.start + group.blocks * group.cols].view(group.blocks, group.cols)
        db = v[group.start_bias : group.start_bias + group.blocks] if group.bias else None
        direction[group.layer] = _here(network, group.layer, (dW, db))
    return direction


def _here(network: Network, layer: int, affine: tuple) -> tuple:
    """The rows that this rank has, where those of the last layer are split."""
    if network.split is None or layer != network.last:
        return affine
    first, end = network.split[0], network.split[0] + len(network.like)
    return tuple(None if t is None else t[first:end] for t in affine)


def _everywhere(samples: Samples, layer: int, affine: Affine) -> Affine:
    """The rows of all ranks."""
    if samples.network.split is None or layer != samples.network.last:
        return affine
    return tuple(samples.all_classes(t.contiguous(), 0) for t in affine)


def _to_affine(group: ParameterGroup, v: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """A vector over a group's blocks (blocks * size,) as weight and bias."""
    v = v.view(group.blocks, group.size)
    return v[:, : group.cols] if group.cols else None, v[:, group.cols] if group.bias else None


def _from_affine(group: ParameterGroup, affine: Affine) -> Tensor:
    """The inverse of `_to_affine`, dropping what the group does not have."""
    weight, bias = affine
    parts = ([weight] if group.cols else []) + ([bias[:, None]] if group.bias else [])
    return torch.cat(parts, 1).reshape(-1)


def _by_columns(apply: Callable[[Tensor], Tensor], v: Tensor, size: int) -> Tensor:
    """apply(v) for a vector, or column by column for a matrix (size, k)."""
    if v.ndim == 1:
        return apply(v)
    return torch.stack([apply(c) for c in v.unbind(1)], 1) if v.shape[1] else v.new_empty(size, 0)
