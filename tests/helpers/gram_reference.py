"""What the tests of the Gram form share: sums over blocks that are formed, and the memory it works in."""

from __future__ import annotations

import torch

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
