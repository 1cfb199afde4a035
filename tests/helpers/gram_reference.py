"""What the tests of the Gram form share: sums over blocks that are formed, and the memory it works in."""

from __future__ import annotations

import torch

from hessext.matrix import norms


def squared_norms(H):
    """||H_ij||_F^2 by blocks, in float64."""
    B = H["output"]
    K = B.grid[0]
    pairs = torch.cartesian_prod(torch.arange(K), torch.arange(K))
    return norms.block_squares(B._part)(pairs).view(K, K)


def sums(squares):
    return squares.diagonal().sum().item(), (squares - squares.diagonal().diag()).sum().item()


def close(value, expected, tolerance):
    assert abs(value - expected) <= tolerance * abs(expected), (value, expected, value / expected - 1)
