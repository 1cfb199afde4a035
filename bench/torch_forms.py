"""The closed forms as two torch users write them: `plain` the quick one, `careful` the patient one.

Both use only torch's own products and return the Hessian in torch's parameter order. Shapes: x [n, d],
W [m, d], V [c, m], a = relu(x W^T) and on = relu'(x W^T) [n, m], f = a V^T, p = softmax(f) and y [n, c].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cases import Problem

NARROW = 128  # below this many features one pair's product is too small for torch: gather by one unit instead

# ---------------------------------------------------------------------------------------------- plain


def plain(problem: Problem) -> Tensor:
    """Form Khatri-Rao factors, multiply. No symmetry, no sparsity.

    Equations (3), (5), (8), (9), (11), (14), (15), (18), biases left out.
    """
    if problem.hidden_weight is None:
        return _plain_linear(problem)
    w, v, x = problem.hidden_weight, problem.output_weight, problem.x
    (n, d), (c, m) = x.shape, v.shape
    z = x @ w.T
    on = (z > 0).to(x.dtype)  # [n, m] act'(z)
    a = z.relu_()
    f = a @ v.T
    whole = problem.case.part == "dense"
    h = x.new_empty((problem.case.size,) * 2)
    hidden = h[: m * d, : m * d]
    if problem.case.loss == "mse":
        _plain_mse(h, problem, on, a, f, whole)
        return h

    p = f.softmax(1)
    mean = p @ v  # [n, m] sum_c p_c v_ci
    factor = x.new_empty(n, m, d)
    for i in range(m):
        q = (p @ (v * v[:, i : i + 1])).addcmul_(mean, mean[:, i : i + 1], value=-1)  # [n, m] Cov_p(v_i, v_l)
        q.mul_(on).mul_(on[:, i : i + 1]).div_(n)
        torch.mul(q[:, :, None], x[:, None, :], out=factor)
        torch.mm(x.T, factor.view(n, m * d), out=hidden[i * d : (i + 1) * d])
    if not whole:
        return h

    del factor
    cross, output = h[: m * d, m * d :], h[m * d :, m * d :]
    factor = p[:, :, None] * a[:, None, :]
    flat = factor.view(n, c * m)
    torch.addmm(output, flat.T, flat, beta=0, alpha=-1 / n, out=output)
    same_class = output.view(c, m, c, m).diagonal(dim1=0, dim2=2)  # [m, m, c]
    same_class.add_((a.T @ flat).view(m, c, m).transpose(1, 2), alpha=1 / n)

    residual = _cross_entropy_residual(p, problem.y)
    for i in range(m):
        gate = on[:, i : i + 1] / n
        weight = (v[:, i] - mean[:, i : i + 1]).mul_(p).mul_(gate)  # [n, c]
        torch.mul(weight[:, :, None], a[:, None, :], out=factor)
        factor[:, :, i].addcmul_(residual, gate)
        torch.mm(x.T, flat, out=cross[i * d : (i + 1) * d])
    h[m * d :, : m * d] = cross.T
    return h


def _plain_linear(problem: Problem) -> Tensor:
    """Linear model: (3) for mse, (5) for cross entropy."""
    v, x = problem.output_weight, problem.x
    (n, d), c = x.shape, v.shape[0]
    h = x.new_empty(c * d, c * d)
    if problem.case.loss == "mse":
        h.zero_().view(c, d, c, d).diagonal(dim1=0, dim2=2).copy_((x.T @ x).mul_(2 / n)[:, :, None])
        return h
    p = (x @ v.T).softmax(1)
    flat = (p[:, :, None] * x[:, None, :]).view(n, c * d)
    torch.addmm(h, flat.T, flat, beta=0, alpha=-1 / n, out=h)
    same_class = h.view(c, d, c, d).diagonal(dim1=0, dim2=2)  # [d, d, c]
    same_class.add_((x.T @ flat).view(d, c, d).transpose(1, 2), alpha=1 / n)
    return h


def _plain_mse(h: Tensor, problem: Problem, on: Tensor, a: Tensor, f: Tensor, whole: bool) -> None:
    """One hidden layer under mse: (8), (9), (11)."""
    v, x = problem.output_weight, problem.x
    (n, d), (c, m) = x.shape, v.shape
    hidden = h[: m * d, : m * d]
    factor = (on[:, :, None] * x[:, None, :]).view(n, m * d)
    torch.addmm(hidden, factor.T, factor, beta=0, alpha=2 / n, out=hidden)
    hidden.view(m, d, m, d).mul_((v.T @ v)[:, None, :, None])
    if not whole:
        return
    cross, output = h[: m * d, m * d :], h[m * d :, m * d :]
    output.zero_().view(c, m, c, m).diagonal(dim1=0, dim2=2).copy_((a.T @ a).mul_(2 / n)[:, :, None])
    blocks = cross.view(m, d, c, m)
    torch.mul((factor.T @ a).mul_(2 / n).view(m, d, 1, m), v.T.reshape(m, 1, c, 1), out=blocks)
    own_unit = blocks.diagonal(dim1=0, dim2=3)  # [d, c, m]
    own_unit.add_((factor.T @ (f - problem.y)).view(m, d, c).permute(1, 2, 0), alpha=2 / n)
    h[m * d :, : m * d] = cross.T


def plain_ratio(problem: Problem, tile: int = 4096) -> Tensor:
    """Mean ||H_ii||_F^2 and mean ||H_ij||_F^2 of (5): three products of samples, a tile of classes at a time.

    Sums over n, n' of (x_n . x_n')^2 / N^2 times (S S^T) and times (P P^T)^2 - Q Q^T, Q = P^2, S = P - Q.
    """
    v, x = problem.output_weight, problem.x
    n, c = len(x), len(v)
    p = (x @ v.T).softmax(1)
    products, squares, diagonal = x.new_zeros(3, n, n)
    for first in range(0, c, tile):
        some = p[:, first : first + tile]
        q = some.square()
        s = some - q
        products.addmm_(some, some.T)
        squares.addmm_(q, q.T)
        diagonal.addmm_(s, s.T)
    weight = (x @ x.T).div_(n).square_()
    on = (weight * diagonal).sum(dtype=torch.float64)
    off = (weight * (products.square_() - squares)).sum(dtype=torch.float64)
    return torch.stack((on / c, off / (c * (c - 1))))


# -------------------------------------------------------------------------------------------- careful


def careful(problem: Problem) -> Tensor:
    """Gather the active samples of each unit pair (index_select) and compute half of the pairs.

    One gather per unit pair feeds its hidden, output and cross blocks; the mirrored half is copied.
    """
    if problem.hidden_weight is None:
        return _careful_linear(problem)
    w, v, x = problem.hidden_weight, problem.output_weight, problem.x
    (n, d), (c, m) = x.shape, v.shape
    z = x @ w.T
    on = z > 0
    a = z.relu_()
    f = a @ v.T
    whole, mse = problem.case.part == "dense", problem.case.loss == "mse"
    size = problem.case.size
    h = x.new_empty(size, size)
    blocks = h[: m * d, : m * d].view(m, d, m, d)
    if mse:
        gram = (v.T @ v).mul_(2 / n).tolist()
    else:
        p = f.softmax(1)
        mean = p @ v
    if whole:
        corner, left = h[m * d :, m * d :].view(c, m, c, m), h[m * d :, : m * d].view(c, m, m, d)
        residual = (f - problem.y).mul_(2 / n) if mse else _cross_entropy_residual(p, problem.y).div_(n)
        if mse:
            corner.zero_().diagonal(dim1=0, dim2=2).copy_((a.T @ a).mul_(2 / n)[:, :, None])

    for i in range(m):
        rows = on[:, i].nonzero().squeeze(1)
        xi, on_i = x.index_select(0, rows), on.index_select(0, rows)
        if mse and whole:  # (11): v_ji sum_n 1_i x a^T, and the residual where the two units are the same
            moment = a.index_select(0, rows).T @ xi  # [m, d]
            torch.mul(v[:, i, None, None], moment.mul_(2 / n), out=left[:, :, i])
            left[:, i, i].add_(residual.index_select(0, rows).T @ xi)
        if not mse:
            pi, mean_i = p.index_select(0, rows), mean.index_select(0, rows)
            q = (pi @ (v[:, i:] * v[:, i : i + 1])).addcmul_(mean_i[:, i:], mean_i[:, i : i + 1], value=-1)
            q.div_(n)
            if d < NARROW and not whole:
                _careful_narrow(h, i, xi, q.mul_(on_i[:, i:]))
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


def _careful_narrow(h: Tensor, i: int, xi: Tensor, q: Tensor, panel: int = 64) -> None:
    """Block row i of the hidden part from the samples xi [n_i, d] where unit i is active, and its mirror.

    q [n_i, m - i] is zero where the other unit is not active.
    """
    (count, d), top = xi.shape, i * xi.shape[1]
    for first in range(0, q.shape[1], panel):
        factor = (q[:, first : first + panel, None] * xi[:, None, :]).view(count, -1)
        left = top + first * d
        torch.mm(xi.T, factor, out=h[top : top + d, left : left + factor.shape[1]])
    h[top + d :, top : top + d] = h[top : top + d, top + d :].T


def _careful_linear(problem: Problem, panel: int = 512) -> Tensor:
    """Linear model, (5): half of the class pairs, as panels of rows right of the diagonal, mirrored."""
    if problem.case.loss == "mse":
        return _plain_linear(problem)
    v, x = problem.output_weight, problem.x
    (n, d), c = x.shape, v.shape[0]
    h = x.new_empty(c * d, c * d)
    p = (x @ v.T).softmax(1)
    flat = (p[:, :, None] * x[:, None, :]).view(n, c * d)
    step = max(1, panel // d) * d
    for top in range(0, c * d, step):
        end = min(top + step, c * d)
        right = h[top:end, top:]
        torch.addmm(right, flat[:, top:end].T, flat[:, top:], beta=0, alpha=-1 / n, out=right)
        h[end:, top:end] = h[top:end, end:].T
    same_class = h.view(c, d, c, d).diagonal(dim1=0, dim2=2)
    same_class.add_((x.T @ flat).view(d, c, d).transpose(1, 2), alpha=1 / n)
    return h


def _take(t: Tensor, rows: Tensor | None) -> Tensor:
    return t if rows is None else t.index_select(0, rows)


def _cross_entropy_residual(p: Tensor, y: Tensor) -> Tensor:
    """Return p - onehot(y), a new tensor."""
    return p.scatter_add(1, y[:, None], p.new_full((1, 1), -1.0).expand(len(y), 1))
