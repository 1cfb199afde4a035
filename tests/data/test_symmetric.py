"""Symmetric matrices of which half is kept, beside the whole ones."""

import pytest
import torch

from hessext.data.symmetric import SymmetricMatrices


@pytest.mark.parametrize("D", [1, 2, 3, 5, 17, 64])
@pytest.mark.parametrize("N", [1, 7])
def test_products_and_rows_are_those_of_the_whole_matrices(D, N):
    g = torch.Generator().manual_seed(D)
    M = torch.randn(N, D, D, generator=g, dtype=torch.float64)
    M = M + M.mT
    kept, by_rows = (SymmetricMatrices.empty(N, D, M) for _ in range(2))
    kept.set(M)
    for i in range(D):
        by_rows[: N // 2].set_row(i, M[: N // 2, i])
        by_rows[N // 2 :].set_row(i, M[N // 2 :, i])
    v = torch.randn(3, N, D, generator=g, dtype=torch.float64)
    for one in (kept, by_rows):
        torch.testing.assert_close(one.product(v), torch.einsum("nij,rnj->rni", M, v), rtol=1e-14, atol=1e-13)
        torch.testing.assert_close(one[1:].product(v[:, 1:]), one.product(v)[:, 1:], rtol=0, atol=0)
        assert torch.equal(torch.stack([one.row(i) for i in range(D)], 1), M)


def test_large_ones_take_five_eighths():
    assert SymmetricMatrices.numbers(3, 64) == 3 * 64 * 64 * 5 // 8
    assert SymmetricMatrices.numbers(2, 1) == 2
