"""The closed forms as a torch user writes them first: form the Khatri-Rao factors, and multiply.

Neither symmetry nor sparsity is used. Shapes: x [n, d], W [m, d], V [c, m], a = relu(x W^T) and on = relu'(x W^T)
[n, m], f = a V^T, p = softmax(f) and y [n, c]. There are no biases. Results are in torch's parameter order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .cases import Problem
from .plain_deep import plain_deep


class Network(NamedTuple):
    """Tensors that the parts of one problem share."""

    x: Tensor
    v: Tensor
    on: Tensor  # [n, m] act'(z)
    a: Tensor
    f: Tensor
    y: Tensor


def forward(problem: Problem) -> Network:
    """Run the forward pass of a network."""
    z = problem.x @ problem.hidden_weight.T
    on = (z > 0).to(z.dtype)
    a = z.relu_()
    return Network(problem.x, problem.output_weight, on, a, a @ problem.output_weight.T, problem.y)


def plain(problem: Problem) -> Tensor:
    """Return the quantity of the case. The dense equations are (3), (5), (8), (9), (11), (14), (15), (18)."""
    case = problem.case
    if case.deep:
        return plain_deep(problem)
    if case.quantity != "dense":
        other = {
            "blocks": plain_blocks,
            "diagonal blocks": plain_blocks,
            "norms": plain_norms,
            "ratio": plain_ratio,
            "approximations": plain_approximations,
        }
        return other[case.quantity](problem)
    h = problem.x.new_empty(case.result_shape)
    if problem.hidden_weight is None:
        _softmax_layer(h, problem.x, (problem.x @ problem.output_weight.T).softmax(1))
        return h
    net, cross_entropy = forward(problem), case.loss == "cross_entropy"
    parts = (_hidden_ce, _output_ce, _cross_ce) if cross_entropy else (_hidden_mse, _output_mse, _cross_mse)
    if cross_entropy:
        net = net._replace(f=net.f.softmax(1))
    if case.part != "all":
        parts[("hidden", "output", "cross").index(case.part)](h, net)
        return h
    size = case.parameters["hidden"]
    views = h[:size, :size], h[size:, size:], h[:size, size:]
    for fill, view in zip(parts, views, strict=True):
        fill(view, net)
    h[size:, :size] = views[2].T
    return h


def _hidden_ce(h: Tensor, net: Network) -> None:
    """(14) into h [m d, m d]; net.f is p."""
    x, v, on, _, p, _ = net
    (n, d), m = x.shape, v.shape[1]
    mean = p @ v  # [n, m] sum_c p_c v_ci
    factor = x.new_empty(n, m, d)
    for i in range(m):
        q = (p @ (v * v[:, i : i + 1])).addcmul_(mean, mean[:, i : i + 1], value=-1)  # [n, m] Cov_p(v_i, v_l)
        q.mul_(on).mul_(on[:, i : i + 1]).div_(n)
        torch.mul(q[:, :, None], x[:, None, :], out=factor)
        torch.mm(x.T, factor.view(n, m * d), out=h[i * d : (i + 1) * d])


def _output_ce(h: Tensor, net: Network) -> None:
    """(15) into h [c m, c m]."""
    _softmax_layer(h, net.a, net.f)


def _softmax_layer(h: Tensor, phi: Tensor, p: Tensor) -> None:
    """(5), (15): sum_n (diag p - p p^T) (x) phi phi^T / n for features phi [n, s]."""
    (n, s), c = phi.shape, p.shape[1]
    flat = (p[:, :, None] * phi[:, None, :]).view(n, c * s)
    torch.addmm(h, flat.T, flat, beta=0, alpha=-1 / n, out=h)
    same_class = h.view(c, s, c, s).diagonal(dim1=0, dim2=2)  # [s, s, c]
    same_class.add_((phi.T @ flat).view(s, c, s).transpose(1, 2), alpha=1 / n)


def _cross_ce(h: Tensor, net: Network) -> None:
    """(18) into h [m d, c m]."""
    x, v, on, a, p, y = net
    (n, d), (c, m) = x.shape, v.shape
    mean, residual = p @ v, cross_entropy_residual(p, y)
    factor = x.new_empty(n, c, m)
    for i in range(m):
        gate = on[:, i : i + 1] / n
        weight = (v[:, i] - mean[:, i : i + 1]).mul_(p).mul_(gate)  # [n, c]
        torch.mul(weight[:, :, None], a[:, None, :], out=factor)
        factor[:, :, i].addcmul_(residual, gate)
        torch.mm(x.T, factor.view(n, c * m), out=h[i * d : (i + 1) * d])


def _gated(net: Network) -> Tensor:
    """1(z > 0) (x) x, [n, m d]."""
    return (net.on[:, :, None] * net.x[:, None, :]).view(len(net.x), -1)


def _hidden_mse(h: Tensor, net: Network) -> None:
    """(8) into h [m d, m d]."""
    (n, d), m = net.x.shape, net.v.shape[1]
    factor = _gated(net)
    torch.addmm(h, factor.T, factor, beta=0, alpha=2 / n, out=h)
    h.view(m, d, m, d).mul_((net.v.T @ net.v)[:, None, :, None])


def _output_mse(h: Tensor, net: Network) -> None:
    """(9) into h [c m, c m]."""
    c, m = net.v.shape
    own = (net.a.T @ net.a).mul_(2 / len(net.a))
    h.zero_().view(c, m, c, m).diagonal(dim1=0, dim2=2).copy_(own[:, :, None])


def _cross_mse(h: Tensor, net: Network) -> None:
    """(11) into h [m d, c m]."""
    (n, d), (c, m) = net.x.shape, net.v.shape
    factor, blocks = _gated(net), h.view(m, d, c, m)
    torch.mul((factor.T @ net.a).mul_(2 / n).view(m, d, 1, m), net.v.T.reshape(m, 1, c, 1), out=blocks)
    own_unit = blocks.diagonal(dim1=0, dim2=3)  # [d, c, m]
    own_unit.add_((factor.T @ (net.f - net.y)).view(m, d, c).permute(1, 2, 0), alpha=2 / n)


def cross_entropy_residual(p: Tensor, y: Tensor) -> Tensor:
    """Return p - onehot(y), a new tensor."""
    return p.scatter_add(1, y[:, None], p.new_full((1, 1), -1.0).expand(len(y), 1))


# ------------------------------------------------------------------------- cross-entropy, without the whole matrix


def plain_blocks(problem: Problem) -> Tensor:
    """Blocks X^T diag(q_ij) X of a linear model, for a list of pairs or for all (i, i), one at a time."""
    x, case = problem.x, problem.case
    p = (x @ problem.output_weight.T).softmax(1)
    blocks = x.new_empty(case.result_shape)
    pairs = problem.pairs.tolist() if case.quantity == "blocks" else [(i, i) for i in range(case.sizes.C)]
    for (i, j), block in zip(pairs, blocks, strict=True):
        q = p[:, i] * (float(i == j) - p[:, j]) / len(x)
        torch.mm((x * q[:, None]).T, x, out=block)
    return blocks


def plain_norms(problem: Problem) -> Tensor:
    """Norms of all blocks of (5) or (14), one row of blocks at a time."""
    x, v, c = problem.x, problem.output_weight, problem.case.sizes.C
    n, d = x.shape
    norms = x.new_empty(problem.case.result_shape)
    if problem.hidden_weight is not None:
        net = forward(problem)
        p, on = net.f.softmax(1), net.on
        mean = p @ v
    else:
        p = (x @ v.T).softmax(1)
    for i, row in enumerate(norms):
        if problem.hidden_weight is None:
            own = (torch.arange(c, device=p.device) == i).to(p.dtype)
            q = p * (own - p[:, i : i + 1]) / n
        else:
            q = ((p @ (v * v[:, i : i + 1])) - mean * mean[:, i : i + 1]) * on * on[:, i : i + 1] / n
        blocks = x.T @ (q[:, :, None] * x[:, None, :]).view(n, -1)
        torch.linalg.vector_norm(blocks.view(d, -1, d), dim=(0, 2), out=row)
    return norms


def plain_ratio(problem: Problem) -> Tensor:
    """Mean ||H_ii||_F^2 and mean ||H_ij||_F^2 of (5), from sums over pairs of samples."""
    diagonal, off, weight, c = *_pairs(problem), len(problem.output_weight)
    on = (weight * diagonal).sum(dtype=torch.float64)
    off = (weight * off).sum(dtype=torch.float64)
    return torch.stack((on / c, off / (c * (c - 1))))


def plain_approximations(problem: Problem) -> Tensor:
    """Relative errors of block-diagonal, diagonal, Adam-mini, K-FAC and one-sided approximations of (5)."""
    on, off, W = (t.double() for t in _pairs(problem))
    x = problem.x.double()
    squares, length = x.square(), x.square().sum(1)
    V, U, n, s = squares @ squares.T / len(x) ** 2, on + off, len(x), x.shape[1]
    whole, one = (U * W).sum(), torch.ones_like(length)
    lost = [(off * W).sum(), whole - (on * V).sum(), whole - (on * torch.outer(length, length)).sum() / s / n**2]
    g, w = U @ one, W @ one / n
    lost.append(whole - 2 * g @ w + U.sum() * W.sum() / n**2)
    g, square = U @ length / s, length @ U @ length / s
    lost.append(whole - 2 * g @ length / n**2 + square / n**2)
    return (torch.stack(lost) / whole).sqrt()


def _pairs(problem: Problem, tile: int = 4096) -> tuple[Tensor, Tensor, Tensor]:
    """S S^T, (P P^T)^2 - Q Q^T and (x_n . x_n')^2 / N^2, Q = P^2, S = P - Q, a tile of classes at a time."""
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
    return diagonal, products.square_() - squares, (x @ x.T).div_(n).square_()
