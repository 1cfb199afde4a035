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
    """What small probabilities add to the sums is rounded on tensor cores, and only there, within bounds, unbiased."""
    part = mostly_small(device)
    x, weight = part.samples.x, part.samples.network.layers[-1].weight
    P, every = softmax_gram.OtherClasses(part), slice(0, len(x))
    W = (x @ x.T).square()
    found, plain = (
        softmax_gram.sums_of_classes(P, P, every, every, True, W, rounding=rounding)[0].tolist()
        for rounding in (True, False)
    )
    w, p = W.double(), torch.softmax(x.double() @ weight.double().T, 1)
    s, q = p * (1 - p), p.square()
    exact = [torch.sum(w * (s @ s.T)).item(), torch.sum(w * ((p @ p.T).square() - q @ q.T)).item()]
    p, q = p[:, 48:], q[:, 48:]  # in whole stages
    rounded = [2 * torch.sum(w * (q @ p.T)).item(), torch.sum(w * (q @ q.T)).item()]
    assert plain[2:] == [0, 0]
    core, by = _ops._who(x)
    if not core.tensor_cores(by):
        rounded = [0, 0]
    for k in range(2):
        close(plain[k], exact[k], 1e-6)
        close(found[k], exact[k], 1e-6)
        close(found[2 + k], rounded[k], 1e-4)  # truncated numbers would be off by 4e-4
