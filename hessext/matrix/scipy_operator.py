"""numpy's and scipy's views of a Hessian or of a part of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class Multiplies(Protocol):
    """What has products and a dense matrix: a Hessian, a BlockMatrix."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    def __matmul__(self, v: Tensor) -> Tensor: ...

    def dense(self) -> Tensor:
        """The whole matrix."""
        ...


def dense_array(A: Multiplies, dtype: np.dtype | None, copy: bool | None) -> np.ndarray:
    """Return A's dense matrix, as numpy asks for it in `__array__`. Raises ValueError for copy=False."""
    if copy is False:
        raise ValueError("copy: expected True or None, as the matrix is formed now; got False")
    array = A.dense().numpy(force=True)
    return array if dtype is None else array.astype(dtype, copy=False)  # astype(None) is float64


def linear_operator(A: Multiplies, transpose: Multiplies) -> LinearOperator:
    """Return A as a scipy.sparse.linalg.LinearOperator of A's dtype; vectors pass through the host."""
    from scipy.sparse.linalg import LinearOperator  # takes a second, and few need it

    dtype = torch.empty(0, dtype=A.dtype).numpy().dtype

    def product(M: Multiplies) -> Callable[[np.ndarray], np.ndarray]:
        def apply(v: np.ndarray) -> np.ndarray:
            v = v.astype(dtype, order="C", casting="same_kind")  # no complex vectors; torch takes no negative strides
            return (M @ torch.from_numpy(v).to(M.device)).cpu().numpy()

        return apply

    forward, backward = product(A), product(transpose)
    return LinearOperator(A.shape, forward, backward, forward, dtype, backward)
