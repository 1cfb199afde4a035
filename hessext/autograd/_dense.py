"""The whole Hessian by automatic differentiation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hessext import _checks
from hessext._memory import require
from hessext._progress import as_call

from ._layer_truth import truth_of


@as_call
def hessian(
    target: Any,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    loss: str | nn.Module = "cross_entropy",
    dtype: torch.dtype = torch.float64,
    chunk_size: int | None = None,
) -> Tensor:
    """Dense Hessian (P, P) by automatic differentiation, parameters in torch's order.

    Args:
        target: a hessext Hessian, whose own data, loss and term (full, gauss_newton: J^T B J, residual: the rest)
            are used, or any nn.Module with x (N, ...) -> logits (N, C).
        x: inputs (N, d), only with a module.
        y: targets as the loss takes them, only with a module.
        loss: as in hessext.hessian, only with a module.
        dtype: dtype of the differentiation; parameters and data are lifted to it exactly. For a Hessian object with a
            piecewise linear activation the side of every kink is the one torch's forward takes in the object's own
            dtype, so that rounding near a kink does not compare two different functions.
        chunk_size: rows per vectorized product; by default as many as fit in 128 MB of intermediates.

    Returns:
        (P, P) tensor of dtype, on the device of the parameters.

    Raises:
        TypeError: x or y missing with a module, or given with a Hessian object; neither of these.
        ValueError: an unknown loss; inputs that the module does not take, or logits that are not (N, C); targets that
            do not fit them.
        MemoryError: the result does not fit.
    """
    dtype = _checks.dtype(dtype)
    chunk_size = None if chunk_size is None else _checks.count("chunk_size", chunk_size)
    truth = truth_of(target, x, y, loss, dtype)
    P = truth.size
    require(P * P * dtype.itemsize, "the dense Hessian by autograd")
    out = torch.empty(P, P, dtype=dtype, device=truth.device)
    truth.rows(torch.arange(P, device=truth.device), chunk_size, out)
    return out
