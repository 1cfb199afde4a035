"""What the tests of the Gram form share: sums over blocks that are formed, and the memory it works in."""

from __future__ import annotations

import torch

import hessext
from hessext import _ops
from hessext.matrix import norms, softmax_gram
from hessext.matrix.gram import SamplePairs
from hessext.matrix.sample_curvature import sample_curvature


def squared_norms(H):
    """||H_ij||_F^2 by blocks, in float64."""
    B = H["output"]
    K = B.grid[0]
    pairs = torch.cartesian_prod(torch.arange(K), torch.arange(K))
    return norms.block_squares(B._part)(pairs).view(K, K)


def softmax_sums(part):
    """Sums of ||H_jj||_F^2 and of ||H_jk||_F^2, j != k, in the Gram form."""
    *found, unit = softmax_gram.softmax_sums(part)
    return tuple(value * unit * unit for value in found)


def sums(squares):
    return squares.diagonal().sum().item(), (squares - squares.diagonal().diag()).sum().item()


def close(value, expected, tolerance):
    assert abs(value - expected) <= tolerance * abs(expected), (value, expected, value / expected - 1)


def assert_tiles(H, lifted, dtype):
    """<Q_n, Q_n'> over entries i = j and i != j of each layer, in tiles, against Q_n of the same values in float64."""
    for name in [name for name in H.layers if "bias" not in name]:
        part, Q = H[name]._part, lifted[name].curvature()
        N = len(Q)
        on, off = torch.zeros(2, N, N, dtype=torch.float64)
        for tile in sample_curvature(part).tiles(SamplePairs(N, 16, part.device)):
            for matrix, found in ((on, tile.on.cpu()), (off, tile.off.cpu())):
                matrix[tile.a, tile.b] = found
                matrix[tile.b, tile.a] = found.T
        diagonal = Q.diagonal(dim1=1, dim2=2)
        own = diagonal @ diagonal.T
        other = torch.einsum("nij,mij->nm", Q, Q) - own
        # what an entry would be if nothing cancelled
        size = (Q.abs().flatten(1) @ Q.abs().flatten(1).T).sqrt()
        bound = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype] * size.max() ** 2
        for found, expected in ((on, own), (off, other)):
            assert (found - expected).abs().max() <= bound, name


def mostly_small(device="cpu", samples=70, classes=203):
    """The part of a softmax layer in float32 whose classes from 40 on have probabilities of about 1e-5."""
    torch.manual_seed(0)
    W, x = torch.randn(classes, 6) / 8, torch.randn(samples, 6)
    x[:, 0] = 1
    W[40:, 0] -= 8
    return hessext.linear(W.to(device), x.to(device))["output"]._part


def assert_rounded(device="cpu"):
    """What stages of small probabilities add to the sums is rounded on tensor cores, and only there, without a bias."""
    torch.manual_seed(0)
    left, right = (torch.rand(88, samples) / 2048 for samples in (66, 70))
    left[32:64] *= 100  # no small stages
    powers = [2.0 ** -torch.randint(4, (t.shape[1],)).double() for t in (left, right)]
    W = torch.rand(66, 70)
    on_device = [t.to(device) for t in (left, right, W, *powers)]
    products, sums = on_device[2].double().zero_(), torch.zeros(2, 2, dtype=torch.float64, device=device)
    _ops.gram_sums_(*on_device[:3], False, products, [], on_device[3:], *sums)
    a, b, w = left.double(), right.double(), W.double() * torch.outer(*powers)
    own, other = ((t * t * power).double() for t, power in zip((a, b), powers, strict=True))  # p^2 over the power
    small = torch.arange(88) // 32 != 1

    def total(x, y):
        return torch.sum(w * (x.T @ y)).item()

    core, by = _ops._who(on_device[0])
    rounded = total(own[small], b[small]) + total(a[small], other[small]), total(own[small], other[small])
    assert (products.cpu() / (torch.outer(*powers) * (a.T @ b)) - 1).abs().max() < 1e-6
    close(sums[0, 0].item(), total(a - own, b - other), 1e-6)
    close(sums[0, 1].item(), total(own, other), 1e-6)
    for found, expected in zip(sums[1].tolist(), rounded, strict=True):
        close(found, expected if core.tensor_cores(by) else 0, 1e-4)  # truncated numbers would be off by 4e-4
