"""The closed form of ReLU networks of any depth as a torch user writes it first: form every S_n, and multiply.

Per sample, with on_l = relu'(z_l), D_l = diag on_l, J_kl = d z_k / d z_l, g_l = d loss / d z_l:

    S_L = (diag p - p p^T) / n,  S_l = D_l W_{l+1}^T S_{l+1} W_{l+1} D_l,  J_kl = W_k D_{k-1} J_{k-1,l}
    H_ll = sum S_l (x) a_{l-1} a_{l-1}^T
    H_lk = sum (S_k J_kl)^T (x) a_{l-1} a_{k-1}^T + sum g_k[j] a_{l-1} (D_{k-1} J_{k-1,l} e_i)^T
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .cases import Problem


class _Passes(NamedTuple):
    """Results of the forward and the backward pass, for each layer."""

    features: list[Tensor]  # [n, inputs]
    on: list[Tensor]  # [n, units], 1 where the unit is active; of all layers but the last
    gradient: list[Tensor]  # [n, units]
    curvature: list[Tensor]  # S [n, units, units]


def plain_deep(problem: Problem) -> Tensor:
    """Return the quantity of the case: the whole Hessian, or a layer's diagonal blocks or ratio."""
    case = problem.case
    if case.quantity == "diagonal blocks":
        return _diagonal_blocks(problem)
    passes = _passes(problem, int(case.part) if case.part != "all" else 0)
    if case.quantity == "ratio":
        return _ratio(passes.features[int(case.part)], passes.curvature[0])
    return _dense(problem, passes)


def _passes(problem: Problem, first: int) -> _Passes:
    """Run the passes, the backward one down to layer `first`."""
    weights, x = list(problem.weights.values()), problem.x
    features, on = [x], []
    for weight in weights[:-1]:
        z = features[-1] @ weight.T
        on.append((z > 0).to(z.dtype))
        features.append(z.relu_())
    p = (features[-1] @ weights[-1].T).softmax(1)
    curvature = [(torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).div_(len(x))]
    gradient = [p.scatter_add(1, problem.y[:, None], p.new_full((1, 1), -1.0).expand(len(p), 1)).div_(len(x))]
    for weight, gate in zip(weights[:first:-1], on[::-1], strict=False):
        jacobian = weight * gate[:, None, :]
        curvature.insert(0, jacobian.mT @ curvature[0] @ jacobian)
        gradient.insert(0, (gradient[0] @ weight).mul_(gate))
    return _Passes(features, on, gradient, curvature)


def _diagonal_blocks(problem: Problem) -> Tensor:
    """Blocks X^T diag(S[i, i]) X of the layer, one at a time. Only the diagonal of S is formed."""
    number, weights = int(problem.case.part), list(problem.weights.values())
    passes, weight = _passes(problem, number + 1), weights[number + 1]
    entries = ((passes.curvature[0] @ weight) * weight).sum(1).mul_(passes.on[number])  # [n, units]
    x = passes.features[number]
    blocks = x.new_empty(problem.case.result_shape)
    for q, block in zip(entries.T, blocks, strict=True):
        torch.mm((x * q[:, None]).T, x, out=block)
    return blocks


def _ratio(x: Tensor, S: Tensor) -> Tensor:
    """Mean ||H_ii||_F^2 and mean ||H_ij||_F^2, from sums over n, n' of S_n[i, j] S_n'[i, j] (x_n . x_n')^2."""
    units = S.shape[1]
    weight, diagonal = (x @ x.T).square_(), S.diagonal(dim1=1, dim2=2).contiguous()
    S.diagonal(dim1=1, dim2=2).zero_()
    on, off = ((weight * (t @ t.T)).sum(dtype=torch.float64) for t in (diagonal, S.flatten(1)))
    return torch.stack((on / units, off / (units * (units - 1))))


def _dense(problem: Problem, passes: _Passes) -> Tensor:
    """Every part between two layers, and its mirror."""
    weights, n = list(problem.weights.values()), len(problem.x)
    h = problem.x.new_empty(problem.case.result_shape)
    ends = torch.tensor([0] + [w.numel() for w in weights]).cumsum(0).tolist()
    own = [slice(*some) for some in pairwise(ends)]
    for row, left in enumerate(passes.features[: len(weights)]):
        jacobian = torch.eye(len(weights[row]), dtype=left.dtype, device=left.device).expand(n, -1, -1)
        for col in range(row, len(weights)):
            right, activated = passes.features[col], None
            if col > row:
                activated = passes.on[col - 1][:, :, None] * jacobian  # a_{k-1} by z_l
                jacobian = weights[col] @ activated
            q = (passes.curvature[col] @ jacobian).mT
            products = (left[:, :, None] * right[:, None, :]).view(n, -1)
            shape = *q.shape[1:], left.shape[1], right.shape[1]
            part = (q.reshape(n, -1).T @ products).view(shape).permute(0, 2, 1, 3)
            if activated is not None:
                outer = (passes.gradient[col][:, :, None] * left[:, None, :]).view(n, -1)
                extra = (activated.mT.reshape(n, -1).T @ outer).view(shape[0], shape[3], shape[1], shape[2])
                part = part + extra.permute(0, 3, 2, 1)
            h[own[row], own[col]] = part.reshape(weights[row].numel(), -1)
            h[own[col], own[row]] = h[own[row], own[col]].T
    return h
