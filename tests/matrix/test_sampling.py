"""Sampling errors and population shares of approximations: by autograd, term by term, and over draws."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from helpers import explicit
from helpers.cases import Case, make_inputs

import hessext
from hessext.matrix import sample_pairs


def captured(name, weights, Q, own, phi):
    """cos^2 of a row, of samples that count weights[n] times: H of Q_n, factors of `own`."""
    H = explicit.assembled(weights[:, None, None] * Q, phi)
    own = weights[:, None, None] * own
    K, s = Q.shape[1], phi.shape[1]
    F, t = phi.square().sum(1), own.diagonal(dim1=1, dim2=2).sum(1)
    full = H.view(K, s, K, s)
    if name == "K-FAC":
        M = torch.kron(own.sum(0), (weights[:, None] * phi).T @ phi)
    elif name == "Shampoo, squared factors":
        M = torch.kron(torch.einsum("n,nij->ij", F, own), torch.einsum("n,na,nb->ab", t, phi, phi))
    elif name == "one-sided":
        M = torch.kron(torch.einsum("n,nij->ij", F, own), torch.eye(s, dtype=H.dtype))
    elif name == "nearest Kronecker":
        return torch.linalg.svdvals(full.permute(0, 2, 1, 3).reshape(K * K, s * s))[0] ** 2 / H.square().sum()
    else:
        diagonal = torch.eye(K, dtype=torch.bool)[:, None, :, None]
        M = explicit.kept_where(full, diagonal).reshape(H.shape)
    return torch.sum(H * M) ** 2 / H.square().sum() / M.square().sum()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("layer", ["hidden", "output"])
def test_sampling_error(layer, activation):
    """The infinitesimal jackknife: derivatives of the share by what each sample counts, by autograd."""
    H = make_inputs(Case(30, 3, 5, 4, activation), torch.float64).hessian()
    B, own = H[layer], H.gauss_newton()[layer].curvature()
    table, Q, phi = B.approximations(), B.curvature(), B.features
    assert all(math.isnan(table[name].sampling_error) for name in ("E-KFAC", "Shampoo"))  # their eigenvectors move, too
    for name in ("block-diagonal", "K-FAC", "Shampoo, squared factors", "one-sided", "nearest Kronecker"):
        weights = torch.ones(30, dtype=torch.float64, requires_grad=True)
        share = captured(name, weights, Q, own, phi)
        (slope,) = torch.autograd.grad(share, weights)
        assert table[name].captured == pytest.approx(share.item(), rel=1e-10)
        assert table[name].sampling_error == pytest.approx(slope.norm().item(), rel=1e-8), name


@pytest.mark.parametrize("name", ["K-FAC", "Shampoo, squared factors", "one-sided"])
def test_population_of_products(name):
    """Sums over different samples, one by one."""
    N = 14
    B = make_inputs(Case(N, 2, 3, bias="o", scale=3.0), torch.float64).hessian()["output"]
    Q, phi = B.curvature(), B.features
    U, W = torch.einsum("nij,mij->nm", Q, Q), (phi @ phi.T).square()
    F, t, one = phi.square().sum(1), Q.diagonal(dim1=1, dim2=2).sum(1), torch.ones(N, dtype=torch.float64)
    beta, alpha = {"K-FAC": (one, one), "Shampoo, squared factors": (F, t), "one-sided": (F, None)}[name]

    def mean(summand, indices):
        found = [summand(*some).item() for some in permutations(range(N), indices)]
        return sum(found) / len(found)

    H, G = mean(lambda n, m: U[n, m] * W[n, m], 2), mean(lambda n, m: beta[n] * beta[m] * U[n, m], 2)
    if alpha is None:
        inner, A = mean(lambda n, m: U[n, m] * beta[m] * F[n], 2), phi.shape[1]
    else:
        inner = mean(lambda n, m, k: U[n, m] * beta[m] * W[n, k] * alpha[k], 3)
        A = mean(lambda n, m: alpha[n] * alpha[m] * W[n, m], 2)
    assert B.approximations()[name].population == pytest.approx(inner**2 / (G * A * H), rel=1e-10)


def test_sampling_error_is_that_of_draws():
    """Over many draws, shares spread as their sampling errors say; different samples alone give the limit's shares."""
    g = torch.Generator().manual_seed(8)
    W = torch.randn(4, 3, generator=g, dtype=torch.float64)

    def table(N):
        return hessext.linear(W, torch.randn(N, 3, generator=g, dtype=torch.float64))["output"].approximations()

    limit, draws = table(2000), [table(60) for _ in range(200)]
    for name in ("block-diagonal", "diagonal", "K-FAC", "Shampoo, squared factors", "one-sided"):
        shares = torch.tensor([draw[name].captured for draw in draws], dtype=torch.float64)
        spread = torch.tensor([draw[name].sampling_error for draw in draws], dtype=torch.float64).median().item()
        assert 0.6 < spread / shares.std().item() < 1.6, name
        if name in ("block-diagonal", "diagonal"):
            found = torch.tensor([draw[name].population for draw in draws], dtype=torch.float64)
            bound = 4 * (found.std().item() / 200**0.5 + limit[name].sampling_error)
            assert abs(found.mean().item() - limit[name].population) < bound, name


@pytest.mark.parametrize("memory", [None, 128 * 7 * 7], ids=["one tile", "tiles"])
def test_tiles_give_the_same(memory, monkeypatch):
    B = make_inputs(Case(33, 5, 7), torch.float64).hessian()["output"]
    expected = B.approximations()
    if memory:
        monkeypatch.setattr(sample_pairs, "_BYTES", memory)
    for row, other in zip(B.approximations(), expected, strict=True):
        assert row[5:7] == pytest.approx(other[5:7], rel=1e-9, nan_ok=True)
        assert other.name in ("E-KFAC", "Shampoo") or other.sampling_error > 0
