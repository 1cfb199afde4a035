"""The Hessian of a whole model."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _checks, _ops, _scipy
from ._blocks import BlockMatrix
from ._network import Affine, Layer
from ._norms import diagonal_entries
from ._problem import Data, Problem, Term
from ._product import columns, product

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class Hessian:
    """The exact Hessian of a loss in all parameters of a linear model or a one-hidden-layer network.

    Made by `linear`, `one_hidden` or `hessian`. H["hidden"] is one layer's BlockMatrix, H["hidden", "output"] a
    cross-layer part. Dense matrices and vectors run over the parameters in torch's order: hidden weight (row-major),
    hidden bias, output weight, output bias. H = Gauss-Newton + residual; `term` says which of them this object is.
    """

    def __init__(self, data: Data, term: Term = "full") -> None:
        self._data, self.term = data, term

    # ------------------------------------------------------------------------------------------------------ parts

    @property
    def layers(self) -> tuple[str, ...]:
        """("hidden", "output"), ("output",), or the parameter names of the model given to `hessian`."""
        network = self._data.network
        return tuple(network.affine if network.names is None else network.parameters)

    def __getitem__(self, key: str | tuple[str, str]) -> BlockMatrix:
        """One layer or parameter, or the part of H between two. Raises KeyError with the names there are."""
        names = key if isinstance(key, tuple | list) else (key, key)
        if len(names) != 2:
            raise KeyError(f"expected one layer name or two; got {key!r}")
        return BlockMatrix(self._data, self.term, *(self._layer(name) for name in names))

    __iter__ = None  # __getitem__ takes names: there is nothing to iterate over

    def _layer(self, name: str) -> Layer:
        layers = self._data.network.layers
        if not isinstance(name, str) or name not in layers:
            raise KeyError(f"expected one of {', '.join(map(repr, layers))}; got {name!r}")
        return layers[name]

    def _restricted(self, term: Term) -> Hessian:
        if self.term not in ("full", term):
            raise ValueError(f"{term}: expected the full Hessian; this is its {self.term} term already")
        return Hessian(self._data, term)

    def gauss_newton(self) -> Hessian:
        """The generalized Gauss-Newton term: sum_n J_n^T (d2 l_n / df2) J_n, J_n = d f_n / d parameters."""
        return self._restricted("gauss_newton")

    def residual(self) -> Hessian:
        """The residual term: sum_n sum_c (d l_n / d f_c) d2 f_c / d parameters2.

        For piecewise linear activations it lives in the cross-layer blocks only: the first terms of (11) and (18).
        """
        return self._restricted("residual")

    # ------------------------------------------------------------------------------------------------------ sizes

    @property
    def shape(self) -> tuple[int, int]:
        """(parameters, parameters)."""
        return (self._data.network.numel,) * 2

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the results."""
        return self._data.network.like.dtype

    @property
    def device(self) -> torch.device:
        """Device of the results."""
        return self._data.network.like.device

    def __repr__(self) -> str:
        """Layers, size, bytes when dense."""
        network = self._data.network
        n = network.numel
        layers = ", ".join(f"{k} {tuple(t.shape)}" for k, t in network.parameters.items())
        size = n * n * self.dtype.itemsize
        return f"Hessian({layers}; {self.term}, {n:,} parameters, {self.dtype}, dense {size:,} bytes)"

    def to(self, *args: Any, **kwargs: Any) -> Hessian:
        """The Hessian of the same parameters and data on another device or in another dtype; arguments as Tensor.to's.

        Raises TypeError for a dtype other than float32 and float64, ValueError for a device that is neither a CPU nor
        a GPU or for values beyond the range of float32, MemoryError.
        """
        try:
            wanted = torch.zeros(1, dtype=self.dtype, device=self.device).to(*args, **kwargs)
        except (RuntimeError, AssertionError) as error:  # not a device, or one that is not there
            raise ValueError(f"to: {str(error).splitlines()[0]}") from None
        _checks.vector("to", wanted)
        if (wanted.dtype, wanted.device) == (self.dtype, self.device):
            return self
        _checks.memory(self._data.numel * wanted.element_size(), "a copy of parameters and data", wanted.device)
        return Hessian(self._data.to(wanted.device, wanted.dtype), self.term)

    # --------------------------------------------------------------------------------------------------- matrices

    def dense(self, out: Tensor | None = None) -> Tensor:
        """The whole Hessian in torch's parameter order, into `out` if given.

        Raises MemoryError before anything is allocated.
        """
        network = self._data.network
        layers = sorted(network.whole, key=lambda layer: layer.kind)  # the core has hidden rows

        def dense(problem: Problem, out: Tensor | None) -> Tensor:
            out = _checks.out(out, self.shape, network.like)
            for row, col in combinations_with_replacement(layers, 2):
                if problem.replicated(row, col):
                    own = slice(row.start, row.start + row.blocks * row.size)
                    out[own, own].zero_()
                axes = [n for layer in (row, col) for n in (layer.start, layer.cols, layer.start_bias, 1)]
                _ops.dense_(out, network.numel, axes, True, True, None, *problem.arguments(row, col, self.term))
            return out

        return self._data.sum(dense, _checks.out(out, self.shape, network.like, self._data.results))

    def __matmul__(self, v: Tensor) -> Tensor:
        """Exact Hessian-vector product with (parameters,) or (parameters, k), at the cost of a few forward passes."""
        network = self._data.network
        v = _checks.multiplied("v", v, self.shape[1], network.like)

        def apply(problem: Problem, _: Tensor | None) -> Tensor:
            return columns(lambda c: self._apply(problem, c), v, self.shape[0], self.dtype)

        return self._data.sum(apply)

    def _apply(self, problem: Problem, v: Tensor) -> Tensor:
        affine = problem.network.affine
        direction: dict[str, Affine] = {}
        at = 0
        for kind, (weight, bias) in affine.items():
            dW = v[at : at + weight.numel()].view(weight.shape)
            at += weight.numel()
            db = None if bias is None else v[at : at + len(bias)]
            at += 0 if bias is None else len(bias)
            direction[kind] = dW, db
        result = product(problem, self.term, direction, set(affine))
        parts = [part.reshape(-1) for k, (_, bias) in affine.items() for part in result[k][: 1 if bias is None else 2]]
        return torch.cat(parts)

    def diagonal(self) -> Tensor:
        """The diagonal (parameters,), in torch's order. No block is formed."""
        parts = [self._layer(name) for name in self._data.network.parameters]

        def entries(problem: Problem, _: Tensor | None) -> Tensor:
            return torch.cat([diagonal_entries(BlockMatrix(problem, self.term, part, part)) for part in parts])

        return self._data.sum(entries)

    def trace(self) -> Tensor:
        """The trace, a scalar tensor."""
        return self.diagonal().sum(dtype=torch.float64).to(self.dtype)

    def to_scipy(self) -> LinearOperator:
        """A scipy.sparse.linalg.LinearOperator, for eigsh, cg, ...: its products are `H @ v`, its dtype is H's."""
        return _scipy.linear_operator(self, self)

    def norms(self) -> Tensor:
        """Frobenius norms of all blocks of all `layers`, one square symmetric map, layer by layer."""
        layers = [self._layer(name) for name in self.layers]
        starts = [0]
        for layer in layers:
            starts.append(starts[-1] + layer.blocks)
        size = starts[-1]
        _checks.memory(size * size * self.dtype.itemsize, f"norms of {size} x {size} blocks", self.device)
        result = self._data.network.like.new_empty(size, size)
        for r, row in enumerate(layers):
            for c, col in enumerate(layers[r:], r):
                part = BlockMatrix(self._data, self.term, row, col).norms()
                result[starts[r] : starts[r + 1], starts[c] : starts[c + 1]] = part
                if c > r:
                    result[starts[c] : starts[c + 1], starts[r] : starts[r + 1]] = part.T
        return result
