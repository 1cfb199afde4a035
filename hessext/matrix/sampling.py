"""What other samples would have given for the share of ||H||^2 that an approximation captures, cos^2.

The standard error is the infinitesimal jackknife, for independent samples: with t_n what a further weight on sample n
would change log cos^2 by, it is cos^2 (sum t_n^2)^(1/2). The population's share is estimated from sums over different
samples alone: pairs n = n' inflate ||H||^2. Both are rough where samples are few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .kronecker import KroneckerProduct
from .sample_pairs import Pairs, PairSum


class Sampling(NamedTuple):
    """Standard error over cos^2, and the population's cos^2; nan where they are not known."""

    relative_error: float = math.nan
    population: float = math.nan

    @classmethod
    def of(cls, change: Tensor, population: float = math.nan) -> Sampling:
        """From half of t_n (N,). A share that is none, as of few samples, is not known."""
        return cls(2 * change.square().sum().sqrt().item(), population if 0 <= population <= 1 else math.nan)


class Shares:
    """Beside the sums over pairs of samples that ||H||^2 is."""

    def __init__(self, pairs: Pairs, whole: PairSum) -> None:
        self._pairs, self._whole = pairs, whole
        self._change = whole.rows / whole.total  # of log ||H||^2

    def of_partition(self, kept: PairSum) -> Sampling:
        """Of entries of H."""
        if not kept.total:
            return Sampling()
        population = kept.apart / self._whole.apart if self._whole.apart > 0 else math.nan
        return Sampling.of(kept.rows / kept.total - self._change, population)

    def of_fixed(self, product: KroneckerProduct) -> Sampling:
        """Of a product that is given, or the nearest one, which small changes of its factors do not change."""
        moved = product.G.products * product.A.products
        return Sampling.of(moved / moved.sum() - self._change) if product.inner else Sampling()

    def of_sums(self, products: Sequence[KroneckerProduct]) -> list[Sampling]:
        """Of products whose G, and A if it is not the identity, are sums over samples."""
        pairs = self._pairs
        same = pairs.gauss_newton is pairs.curvature
        beta, g = (torch.stack([getattr(p.G, name) for p in products]) for name in ("weights", "products"))
        w = torch.stack([p.A.products for p in products])
        alpha = torch.stack(
            [b.new_zeros(len(b)) if p.A.weights is None else p.A.weights for p, b in zip(products, beta, strict=True)]
        )
        if same:
            along, both, own = pairs.products(w, beta * alpha)
            of_G = g
        else:
            found = pairs.gauss_newton.against(
                torch.cat([pairs.curvature.sum(w), *(p.G.matrix[None] for p in products)])
            )
            along, of_G = found.split(len(products))
        of_A = pairs.weighted(g)
        results = []
        for k, p in enumerate(products):
            total = g[k] @ w[k]
            change = g[k] * w[k] / total - self._change + beta[k] * (along[k] / total - of_G[k] / p.G.square)
            if p.A.weights is not None:
                change = change + alpha[k] * (of_A[k] / total - w[k] / p.A.square)
            population = self._apart(p, both[k].sum(), own) if same else math.nan
            results.append(Sampling.of(change, population) if total else Sampling())
        return results

    def _apart(self, p: KroneckerProduct, both: Tensor, own: Tensor) -> float:
        """cos^2 from sums over different samples; `both` is sum_nn' U W[n, n'] beta_n' alpha_n', `own` U[n, n]."""
        n, beta, alpha = int(self._pairs.counted.sum()), p.G.weights, p.A.weights
        if n < 3 or self._whole.apart <= 0:
            return math.nan
        two, three = 1 - 1 / n, (1 - 1 / n) * (1 - 2 / n)
        g = p.G.products - own * beta
        square = (beta @ g).item() / two * self._whole.apart / two
        if alpha is None:
            inner, square = (g @ p.A.products).item() / two, square * p.A.square
        else:
            w_own = self._pairs.features.squares.square()
            w = p.A.products - w_own * alpha
            inner = (g @ w - both + (own * w_own * beta * alpha).sum()).item() / three
            square *= (alpha @ w).item() / two
        return inner * inner / square if square > 0 else math.nan
