"""The closed forms as a patient torch user writes them: only active samples, and only half of the pairs.

Shapes and parameter order are those of plain.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cases import Problem
from .plain import cross_entropy_residual, plain

NARROW = 128  # with fewer features the product of one pair is too small for torch: gather by one hidden unit only


def careful(problem: Problem) -> Tensor:
    """Return the dense part. The blocks of a pair of hidden units use only the samples at which both are active.

    The mirrored half is copied. Where neither saves work, this is `plain`.
    """
    case = problem.case
    if problem.hidden_weight is None:
        return _panels(problem.x, (problem.x @ problem.output_weight.T).softmax(1))
    if case.loss == "mse" and case.part in ("output", "cross"):
        return plain(problem)
    w, v, x = problem.hidden_weight, problem.output_weight, problem.x
    (n, d), (c, m) = x.shape, v.shape
    z = x @ w.T
    on = z > 0
    a = z.relu_()
    f = a @ v.T
    if case.part == "output":
        return _panels(a, f.softmax(1))
    if case.part == "cross":
        return _cross(problem, on, a, f.softmax(1))
    whole, mse = case.part == "all", case.loss == "mse"
    h = x.new_empty(case.result_shape)
    blocks = h[: m * d, : m * d].view(m, d, m, d)
    if mse:
        gram = (v.T @ v).mul_(2 / n).tolist()
    else:
        p = f.softmax(1)
        mean = p @ v
    if whole:
        corner, left = h[m * d :, m * d :].view(c, m, c, m), h[m * d :, : m * d].view(c, m, m, d)
        residual = (f - problem.y).mul_(2 / n) if mse else cross_entropy_residual(p, problem.y).div_(n)
        if mse:
            corner.zero_().diagonal(dim1=0, dim2=2).copy_((a.T @ a).mul_(2 / n)[:, :, None])

    for i in range(m):
        rows = on[:, i].nonzero().squeeze(1)
        xi, on_i = x.index_select(0, rows), on.index_select(0, rows)
        if mse and whole:  # (11): v_ji sum_n 1_i x a^T, plus the residual if both hidden units are the same
            moment = a.index_select(0, rows).T @ xi  # [m, d]
            torch.mul(v[:, i, None, None], moment.mul_(2 / n), out=left[:, :, i])
            left[:, i, i].add_(residual.index_select(0, rows).T @ xi)
        if not mse:
            pi, mean_i = p.index_select(0, rows), mean.index_select(0, rows)
            q = (pi @ (v[:, i:] * v[:, i : i + 1])).addcmul_(mean_i[:, i:], mean_i[:, i : i + 1], value=-1)
            q.div_(n)
            if d < NARROW and not whole:
                _narrow(h, i, xi, q.mul_(on_i[:, i:]))
                continue
            if whole:
                ai, ri = a.index_select(0, rows), residual.index_select(0, rows)
                wi = (v[:, i] - mean_i[:, i : i + 1]).mul_(pi).div_(n)  # [n_i, c]
        for j in range(i, m):
            sub = None if i == j else on_i[:, j].nonzero().squeeze(1)
            xs = _take(xi, sub)
            if mse:
                block = torch.mm(xs.T, xs).mul_(gram[i][j])
            else:
                block = torch.mm(xs.T, xs * _take(q[:, j - i], sub)[:, None])
            blocks[i, :, j] = block
            if i != j:
                blocks[j, :, i] = block.T
            if not whole or mse:
                continue
            ps, a_i, a_j = _take(pi, sub), _take(ai[:, i], sub), _take(ai[:, j], sub)
            weighted = ps * (a_i * a_j / n)[:, None]
            block = torch.addmm(ps.new_empty(c, c), weighted.T, ps, beta=0, alpha=-1)  # [c, c]
            block.diagonal().add_(weighted.sum(0))
            corner[:, i, :, j] = block
            if i != j:
                corner[:, j, :, i] = block.T
            weight = _take(wi, sub) * a_j[:, None]
            left[:, j, i] = torch.mm((weight.add_(ri) if i == j else weight).T, xs)
            if i != j:
                weight = (v[:, j] - _take(mean_i[:, j], sub)[:, None]).mul_(ps).mul_(a_i[:, None] / n)
                left[:, i, j] = torch.mm(weight.T, xs)
    if whole:
        h[: m * d, m * d :] = h[m * d :, : m * d].T
    return h


def _narrow(h: Tensor, i: int, xi: Tensor, q: Tensor, panel: int = 64) -> None:
    """Write block row i of the hidden part and its mirror, from the samples xi [n_i, d] at which unit i is active.

    q [n_i, m - i] is zero where the other hidden unit is not active.
    """
    (count, d), top = xi.shape, i * xi.shape[1]
    for first in range(0, q.shape[1], panel):
        factor = (q[:, first : first + panel, None] * xi[:, None, :]).view(count, -1)
        left = top + first * d
        torch.mm(xi.T, factor, out=h[top : top + d, left : left + factor.shape[1]])
    h[top + d :, top : top + d] = h[top : top + d, top + d :].T


def _cross(problem: Problem, on: Tensor, a: Tensor, p: Tensor) -> Tensor:
    """(18) alone, [m d, c m]: one product per unit, over the samples at which it is active."""
    v, x = problem.output_weight, problem.x
    (n, d), m = x.shape, v.shape[1]
    h = x.new_empty(problem.case.result_shape)
    mean, residual = p @ v, cross_entropy_residual(p, problem.y)
    for i in range(m):
        rows = on[:, i].nonzero().squeeze(1)
        weight = (v[:, i] - mean[rows, i, None]).mul_(p.index_select(0, rows)).div_(n)  # [n_i, c]
        factor = weight[:, :, None] * a.index_select(0, rows)[:, None, :]
        factor[:, :, i].add_(residual.index_select(0, rows), alpha=1 / n)
        torch.mm(x.index_select(0, rows).T, factor.view(len(rows), -1), out=h[i * d : (i + 1) * d])
    return h


def _panels(phi: Tensor, p: Tensor, panel: int = 512) -> Tensor:
    """(5), (15) from half of the class pairs: panels of rows right of the diagonal, which are then mirrored."""
    (n, s), c = phi.shape, p.shape[1]
    h = phi.new_empty(c * s, c * s)
    flat = (p[:, :, None] * phi[:, None, :]).view(n, c * s)
    step = max(1, panel // s) * s
    for top in range(0, c * s, step):
        end = min(top + step, c * s)
        right = h[top:end, top:]
        torch.addmm(right, flat[:, top:end].T, flat[:, top:], beta=0, alpha=-1 / n, out=right)
        h[end:, top:end] = h[top:end, end:].T
    same_class = h.view(c, s, c, s).diagonal(dim1=0, dim2=2)
    same_class.add_((phi.T @ flat).view(s, c, s).transpose(1, 2), alpha=1 / n)
    return h


def _take(t: Tensor, rows: Tensor | None) -> Tensor:
    return t if rows is None else t.index_select(0, rows)
