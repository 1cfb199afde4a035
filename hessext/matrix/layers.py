"""Several layers of one network, each with its own Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from hessext import _checks
from hessext._progress import steps
from hessext.data.ranks import collective

from . import notebook
from .block_matrix import BlockMatrix
from .hessian import Hessian
from .part import Term


class LayerHessians(Hessian):
    """Hessians of several layers, as `hessext.layer` gives them for a list of names; parts between them are not formed.

    H["up"] or H["up.weight"] is one layer's part. `diagonal`, `trace` and `to` are those of all layers; what needs the
    parts between layers raises ValueError.
    """

    def __init__(self, each: dict[str, Hessian]) -> None:
        first = next(iter(each.values()))
        super().__init__(first._data, first.term)
        self._each = each

    @property
    def each(self) -> tuple[Hessian, ...]:
        """The Hessian of each layer alone."""
        return tuple(self._each.values())

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers' parameters."""
        return tuple(name for H in self.each for name in H.layers)

    @property
    def _whole_layers(self) -> tuple[str, ...]:
        return tuple(self._each)

    def __getitem__(self, key: str | tuple[str, str]) -> BlockMatrix:
        """One layer or parameter, or the part between two of one layer. Raises KeyError with the names there are."""
        names = tuple(key) if isinstance(key, tuple | list) else (key, key)
        owners = [next((k for k, H in self._each.items() if name in H._data.network.groups), None) for name in names]
        if len(names) == 2 and None not in owners and owners[0] != owners[1]:
            raise KeyError(
                f"expected names of one layer, as parts between {' and '.join(map(repr, names))} are not formed"
            )
        if len(names) != 2 or None in owners:
            raise KeyError(f"expected one of {', '.join(map(repr, (*self._each, *self.layers)))}; got {key!r}")
        return self._each[owners[0]][key]

    def _restricted(self, term: Term) -> Hessian:
        return self._of_each(lambda H: H._restricted(term))

    def _of_each(self, change: Callable[[Hessian], Hessian]) -> LayerHessians:
        return LayerHessians({name: change(H) for name, H in self._each.items()})

    @property
    def shape(self) -> tuple[int, int]:
        """(parameters, parameters) of all layers."""
        return (sum(H.shape[0] for H in self.each),) * 2

    def __repr__(self) -> str:
        """The layers' own."""
        return f"LayerHessians({', '.join(map(repr, self.each))})"

    def _repr_html_(self) -> str:
        """For notebooks: a table of the layers."""
        return notebook.page(repr(self), {name: self[name] for name in self.layers}, [], self.norms)

    @collective
    def to(self, *args: Any, **kwargs: Any) -> LayerHessians:
        """The Hessians on another device or in another dtype, as `Hessian.to`."""
        return self._of_each(lambda H: H.to(*args, **kwargs))

    @collective
    def diagonal(self) -> Tensor:
        """The diagonals of all layers, one after another."""
        return torch.cat([H.diagonal() for H in steps(self.each)])

    @collective
    def trace(self) -> Tensor:
        """The sum of the traces of all layers."""
        return torch.stack([H.trace() for H in steps(self.each)]).sum()

    @collective
    def solve_block_diagonal(self, v: Tensor, damping: float = 0.0) -> Tensor:
        """As of one Hessian; v is that of all layers, one after another."""
        v = _checks.multiplied("v", v, self.shape[1], self._data.network.like)
        parts = iter(v.split([H.shape[0] for H in self.each]))
        return torch.cat([H.solve_block_diagonal(next(parts), damping) for H in steps(self.each)])

    @collective
    def eigh_blocks(self) -> dict[str, torch.return_types.linalg_eigh]:
        """As of one Hessian."""
        return {name: found for H in steps(self.each) for name, found in H.eigh_blocks().items()}

    def positions(self, name: str) -> Tensor:
        """As of one Hessian, among the parameters of all layers."""
        start = 0
        for H in self.each:
            if name in H._data.network.groups:
                return start + H.positions(name)
            start += H.shape[0]
        raise KeyError(f"expected one of {', '.join(map(repr, (*self._each, *self.layers)))}; got {name!r}")

    def dense(self, out: Tensor | None = None) -> NoReturn:
        """Not formed for several layers."""
        self._refuse("dense")

    def __matmul__(self, v: Tensor) -> NoReturn:
        """Not formed for several layers."""
        self._refuse("H @ v")

    def norms(self) -> NoReturn:
        """Not formed for several layers."""
        self._refuse("norms")

    def norm(self) -> NoReturn:
        """Not formed for several layers."""
        self._refuse("norm")

    def shares(self) -> NoReturn:
        """Not formed for several layers."""
        self._refuse("shares")

    def to_scipy(self) -> NoReturn:
        """Not formed for several layers."""
        self._refuse("to_scipy")

    def _refuse(self, what: str) -> NoReturn:
        first = next(iter(self._each))
        raise ValueError(
            f"{what}: expected one layer, as the parts between several are not formed; ask for one of them, "
            f"H[{first!r}], or give hessext.layer one name"
        )
