"""What results of any Hessian are compared with, and all of them at once."""

from __future__ import annotations

import pytest
import torch

from .reference import TOLERANCE, assert_accurate, matrix


def some_pairs(rows: int, cols: int, count: int = 9) -> torch.Tensor:
    """Pairs in no order, with repeats, corners included."""
    g = torch.Generator().manual_seed(rows * 1000 + cols)
    pairs = torch.stack([torch.randint(n, (count,), generator=g) for n in (rows, cols)], 1)
    corners = torch.tensor([[rows - 1, cols - 1], [0, 0], [0, cols - 1], [rows - 1, 0], [0, 0]])
    return torch.cat([pairs, corners])


def assert_ratio(ratio, squares, rel) -> None:
    """BlockRatio of all squared block norms; one block alone has 0 off the diagonal."""
    own = torch.eye(len(squares), dtype=torch.bool)
    diagonal = squares[own].mean()
    off_diagonal = squares[~own].mean() if len(squares) > 1 else 0 * diagonal
    for out, expected in zip(ratio, (diagonal, off_diagonal, off_diagonal / diagonal), strict=True):
        assert out == pytest.approx(expected.item(), rel=rel, abs=0.0, nan_ok=True)
    assert (ratio.diagonal, ratio.off_diagonal, ratio.ratio) == tuple(ratio) or ratio.ratio != ratio.ratio


def assert_product(out, expected, v) -> None:
    """||out - M v|| <= tolerance ||M|| ||v||: cancellation in M v is the vector's, not the product's."""
    assert out.dtype == v.dtype
    assert out.shape == expected.shape[:1]
    error = (out.double() - expected @ v.double()).norm()
    assert error <= TOLERANCE[v.dtype] * expected.norm() * v.double().norm()


def assert_part(B, expected) -> None:
    """All ways of asking for a part of a layer."""
    rows, cols, a, b = expected.shape
    assert B.grid == (rows, cols)
    assert B.block_shape == (a, b)
    assert_accurate(B.dense(), matrix(expected))
    assert_accurate(B.block(rows - 1, cols - 1), expected[-1, -1])
    assert_accurate(B.blocks([(0, cols - 1), (rows - 1, 0)]), expected[[0, -1], [-1, 0]])
    assert_accurate(B.norms(), expected.flatten(2).norm(dim=2))
    v = torch.linspace(-1, 1, cols * b, dtype=torch.float64)
    assert ((B @ v) - B.dense() @ v).norm() <= 1e-12 * B.dense().norm() * v.norm()


def everything(H) -> list[torch.Tensor]:
    """All results of a Hessian object, as tensors."""
    v = torch.linspace(-1, 1, H.shape[0]).to(H.dense().dtype)
    out = [H.dense(), H @ v, H.norms(), *(t().dense() for t in (H.gauss_newton, H.residual))]
    for r in H.layers:
        for c in H.layers:
            B = H[r, c]
            out += [B.dense(), B.block(0, 0), B.norms(), B.norms([(0, 0)]), B @ v[: B.shape[1]]]
            if B.symmetric:
                ratio = B.ratio()
                out += [B.diagonal_blocks(), B.diagonal(), torch.as_tensor(B.trace())]
                out += [torch.tensor([ratio.diagonal, ratio.off_diagonal, ratio.ratio], dtype=torch.float64)]
    return out


def assert_same_bits(first, second) -> None:
    """Equality of every result, NaN being itself."""
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
