"""The Hessian of a whole model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate, combinations_with_replacement, pairwise
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from hessext import _checks
from hessext._memory import require
from hessext._progress import steps
from hessext.data.data import Data
from hessext.data.ranks import Ranks, collective
from hessext.data.samples import Samples
from hessext.model.network import ParameterGroup

from . import assemble, notebook, scipy_operator
from .block_matrix import BlockMatrix
from .part import Part, Term
from .product import hessian_product

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse.linalg import LinearOperator


class Hessian:
    """The exact Hessian of a loss in all parameters of a feed-forward network, or of one linear layer of any network.

    Made by `linear`, `one_hidden`, `feed_forward`, `hessian`, `layer` or `head`. H["hidden"] is one layer's
    BlockMatrix, H["hidden", "output"] a cross-layer part. Dense matrices and vectors run over the parameters in torch's
    order: the weight (row-major) and the bias of each layer, one layer after the other. H = Gauss-Newton + residual;
    `term` says which of them this object is.
    """

    def __init__(self, data: Data, term: Term = "full") -> None:
        self._data, self.term = data, term

    # ------------------------------------------------------------------------------------------------------ parts

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, such as ("hidden", "output"), or of the parameters of a model."""
        network = self._data.network
        return tuple(network.parameters) if network.by_parameter else self._whole_layers

    @property
    def _whole_layers(self) -> tuple[str, ...]:
        """Names of the layers, each with its weight and bias together."""
        return tuple(group.name for group in self._data.network.whole)

    def __getitem__(self, key: str | tuple[str, str]) -> BlockMatrix:
        """One layer or parameter, or the part of H between two. Raises KeyError with the names there are."""
        names = key if isinstance(key, tuple | list) else (key, key)
        if len(names) != 2:
            raise KeyError(f"expected one layer name or two; got {key!r}")
        return BlockMatrix(self._part(*(self._group(name) for name in names)))

    def __getattr__(self, name: str) -> NoReturn:
        message = f"{type(self).__name__!r} object has no attribute {name!r}"
        if not name.startswith("_") and hasattr(BlockMatrix, name) and not hasattr(type(self), name):
            names = self._whole_layers
            message += f", which belongs to one layer: H[{names[0]!r}].{name}, of {', '.join(map(repr, names))}"
        raise AttributeError(message)

    __iter__ = None  # __getitem__ takes names: there is nothing to iterate over

    def _group(self, name: str) -> ParameterGroup:
        groups = self._data.network.groups
        if not isinstance(name, str) or name not in groups:
            raise KeyError(f"expected one of {', '.join(map(repr, groups))}; got {name!r}")
        return groups[name]

    def _part(self, row: ParameterGroup, col: ParameterGroup) -> Part:
        return Part(self._data, self.term, row, col)

    def _whole_groups(self) -> Iterable[ParameterGroup]:
        """Weights and bias of each layer together: steps of what is done one by one."""
        return steps(self._data.network.whole, lambda group: group.numel)

    def _own_parts(self, samples: Samples) -> Iterable[Part]:
        """Each parameter's part with itself, of some samples, in torch's order: steps of what is done one by one."""
        groups = [self._group(name) for name in self._data.network.parameters]
        return steps([self._part(g, g).of(samples) for g in groups], lambda part: part.row.numel)

    def _restricted(self, term: Term) -> Hessian:
        if self.term not in ("full", term):
            raise ValueError(f"{term}: expected the full Hessian; this is its {self.term} term already")
        return Hessian(self._data, term)

    def gauss_newton(self) -> Hessian:
        """The generalized Gauss-Newton term: sum_n J_n^T (d2 l_n / df2) J_n, J_n = d f_n / d parameters."""
        return self._restricted("gauss_newton")

    def residual(self) -> Hessian:
        """The residual term: sum_n sum_c (d l_n / d f_c) d2 f_c / d parameters2.

        For piecewise linear activations it lives in the cross-layer blocks only, such as the first terms of (11), (18).
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

    @property
    def ranks(self) -> Ranks:
        """Who has the other samples, and must ask for the same results."""
        return self._data.ranks

    def __repr__(self) -> str:
        """Layers, size, bytes when dense."""
        network = self._data.network
        n = network.numel
        layers = ", ".join(f"{k} {tuple(t.shape)}" for k, t in network.parameters.items())
        size = n * n * self.dtype.itemsize
        return f"Hessian({layers}; {self.term}, {n:,} parameters, {self.dtype}, dense {size:,} bytes)"

    def _repr_html_(self) -> str:
        """For notebooks: a table of the layers, and a small picture of the norms of all blocks where that is cheap."""
        pairs = combinations_with_replacement(map(self._group, self.layers), 2)
        blocks = {name: self[name] for name in self.layers}
        return notebook.page(repr(self), blocks, [self._part(*pair) for pair in pairs], self.norms)

    @collective
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
        require(self._data.numel * wanted.element_size(), "a copy of parameters and data", wanted.device)
        return Hessian(self._data.to(wanted.device, wanted.dtype), self.term)

    # --------------------------------------------------------------------------------------------------- matrices

    @collective
    def dense(self, out: Tensor | None = None) -> Tensor:
        """The whole Hessian in torch's parameter order, into `out` if given.

        Raises MemoryError before anything is allocated.
        """
        return assemble.dense_hessian(self._data, self.term, out)

    @collective
    def __matmul__(self, v: Tensor) -> Tensor:
        """Exact Hessian-vector product with (parameters,) or (parameters, k), at the cost of a few forward passes."""
        v = _checks.multiplied("v", v, self.shape[1], self._data.network.like)
        return self._data.sum(lambda samples, _: hessian_product(samples, self.term, v))

    @collective
    def diagonal(self) -> Tensor:
        """The diagonal (parameters,), in torch's order. No block is formed."""
        return self._data.sum(lambda samples, _: torch.cat([*map(assemble.diagonal, self._own_parts(samples))]))

    @collective
    def trace(self) -> Tensor:
        """The trace, a scalar tensor. The diagonal is not formed."""
        return self._data.sum(lambda samples, _: sum(map(assemble.trace, self._own_parts(samples)))).to(self.dtype)

    def positions(self, name: str) -> Tensor:
        """Where a layer's parameters stand in torch's order: v[H.positions("0")] is ordered as H["0"] is."""
        return self._group(name).positions(self.device)

    @collective
    def solve_block_diagonal(self, v: Tensor, damping: float = 0.0) -> Tensor:
        """u, like v in torch's order, with (H_ii + damping I) u_i = v_i for the block of every neuron of every layer.

        v is (parameters,) or (parameters, k). A neuron's block has its weights and its bias. Raises as that of a part.
        """
        v = _checks.multiplied("v", v, self.shape[1], self._data.network.like)
        result = torch.empty_like(v, memory_format=torch.contiguous_format)
        for group in self._whole_groups():
            at = group.positions(self.device)
            result[at] = BlockMatrix(self._part(group, group)).solve_block_diagonal(v[at], damping)
        return result

    @collective
    def eigh_blocks(self) -> dict[str, torch.return_types.linalg_eigh]:
        """`BlockMatrix.eigh_blocks` of every layer by its name; entries of eigenvectors as in `positions`."""
        return {group.name: BlockMatrix(self._part(group, group)).eigh_blocks() for group in self._whole_groups()}

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """The whole Hessian for numpy, in torch's order."""
        return scipy_operator.dense_array(self, dtype, copy)

    def to_scipy(self) -> LinearOperator:
        """A scipy.sparse.linalg.LinearOperator, for eigsh, cg, ...: its products are `H @ v`, its dtype is H's."""
        return scipy_operator.linear_operator(self, self)

    @collective
    def norms(self) -> Tensor:
        """Frobenius norms of all blocks of all `layers`, one square symmetric map, layer by layer."""
        groups = [self._group(name) for name in self.layers]
        ends = [0, *accumulate(group.blocks for group in groups)]
        size = ends[-1]
        require(size * size * self.dtype.itemsize, f"norms of {size} x {size} blocks", self.device)
        result = self._data.network.like.new_empty(size, size)
        at = {group.name: slice(*both) for group, both in zip(groups, pairwise(ends), strict=True)}
        for row, col in assemble.pairs_of_groups(groups):
            norms = BlockMatrix(self._part(row, col)).norms()
            result[at[row.name], at[col.name]] = norms
            if row is not col:
                result[at[col.name], at[row.name]] = norms.T
        return result

    @collective
    def shares(self) -> dict[tuple[str, str], float]:
        """Share of ||H||_F^2 of each layer and of what lies between two, (i, j) and (j, i) together; nan for H = 0."""
        squares, _ = self._squares()
        total = sum(squares.values())
        return {names: square / total if total else math.nan for names, square in squares.items()}

    @collective
    def norm(self) -> float:
        """||H||_F; no block is kept."""
        squares, unit = self._squares()
        return math.sqrt(sum(squares.values())) * unit

    def _squares(self) -> tuple[dict[tuple[str, str], float], float]:
        """Squared norms of what `shares` names over the square of a power of two, the second."""
        groups, found = self._data.network.whole, {}
        for row, col in assemble.pairs_of_groups(groups):
            found[row.name, col.name] = BlockMatrix(self._part(row, col)).norm()
        largest = max(found.values())
        unit = 2.0 ** math.frexp(largest)[1] if 0 < largest < math.inf else 1.0
        return {names: (1 + (names[0] != names[1])) * (norm / unit) ** 2 for names, norm in found.items()}, unit
