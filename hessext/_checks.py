"""Argument checks. Every error names the argument, what was expected and what came.

TypeError: not a tensor, or a wrong dtype. ValueError: shape, device, emptiness, NaN, infinity or range.
IndexError: a block out of the grid. MemoryError: more than is free.
Checks of values read two numbers back, so on CUDA they wait for the tensor.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import _core
from ._memory import memory
from .model.losses import Loss

# --- tensors ------------------------------------------------------------------------------------------------


def matrix(
    name: str, t: Tensor, *, rows: int | None = None, cols: int | None = None, like: Tensor | None = None
) -> Tensor:
    """Return t detached: a finite, non-empty (rows, cols) float tensor of like's dtype and device."""
    return _floats(name, t, (rows, cols), like)


def vector(name: str, t: Tensor, *, size: int | None = None, like: Tensor | None = None) -> Tensor:
    """Return t detached: a finite, non-empty (size,) float tensor of like's dtype and device."""
    return _floats(name, t, (size,), like)


def samples(name: str, t: Tensor, cols: int, like: Tensor) -> Tensor:
    """Return t detached: finite, non-empty (N, cols) or (N, T, cols), or of more axes, of like's dtype and device."""
    _tensor(name, t)
    return _floats(name, t, (*(None,) * max(1, t.ndim - 1), cols), like)


def finite(name: str, t: Tensor) -> None:
    """Refuse a (non-empty) tensor that holds NaN or infinity; not seen while a CUDA graph is captured."""
    if _captured(t):
        return
    if not all(map(math.isfinite, _bounds(t))):
        count = int((~t.isfinite()).sum())
        raise ValueError(f"{name}: expected finite values; got {count} that are NaN or infinite")


def _captured(t: Tensor) -> bool:
    """Whether t has no values yet."""
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


def targets(y: Tensor | None, shape: tuple[int, ...], C: int, loss: Loss, like: Tensor) -> Tensor | None:
    """Return y detached: labels (N,) or targets (N, C) for samples shaped (N,), labels (N, T) ... for (N, T).

    Labels are int64, in [0, C) or ignored; targets have like's dtype.
    None passes where loss.needs_targets is False. The loss's weights are checked too, and a mean over labels without
    weight, which is nan in torch, is refused. Binary cross-entropy takes targets of the samples' shape, too, and makes
    labels such.
    """
    if y is None and loss.needs_targets:
        raise ValueError("y: this loss's class weights, ignore_index or pos_weight need targets; got None")
    if loss.kind == "binary_cross_entropy":
        single_logit(C)
        y = None if y is None else _binary_targets(y, shape, loss, like)
        for name, weight in (("loss.weight", loss.weight), ("loss.pos_weight", loss.pos_weight)):
            if weight is not None:
                _broadcast(name, weight, (*shape, 1) if y is None else y.shape, like)
        return y
    if loss.weight is not None:
        vector("loss.weight", loss.weight, size=C, like=like)
    if y is None:
        return None
    _tensor("y", y)
    wanted = f"int64 labels {_text(shape)} or {like.dtype} targets {_text((*shape, C))}"
    if y.ndim != len(shape) + y.is_floating_point():  # labels cast to float, or integer one-hot targets
        raise ValueError(f"y: expected {wanted}; got {y.dtype} {_text(y.shape)}")
    if y.is_floating_point():
        if loss.kind == "cross_entropy" and loss.ignore_index >= 0:
            raise ValueError(f"y: ignore_index={loss.ignore_index} needs int64 labels {_text(shape)}; got {y.dtype}")
        return _floats("y", y, (*shape, C), like)
    if y.dtype != torch.int64:
        raise TypeError(f"y: expected {wanted}; got {y.dtype}")
    _layout("y", y, shape, like)
    _labels(y, C, loss, like)
    return y


def divisor(total: Tensor | float) -> None:
    """Refuse a mean over labels that weigh nothing."""
    if not total:
        raise ValueError("y: expected labels whose weights do not sum to 0; all are ignored or weigh nothing")


def single_logit(C: int) -> None:
    """Refuse binary cross-entropy of several logits: each has a curvature of its own."""
    if C != 1:
        raise ValueError(f"loss: binary cross-entropy is supported for one logit, C = 1; got a model with C = {C}")


def out(t: Tensor | None, shape: tuple[int, ...], like: Tensor, copies: int = 1) -> Tensor:
    """Return t, to write to: contiguous, of this shape, like's dtype and device. For None, a new tensor.

    `copies` of it, t among them, must fit into memory.
    """
    size = math.prod(shape) * like.element_size()
    if t is None:
        what = f"a {_text(shape)} result" + (" and that of a part of the data" if copies > 1 else "")
        memory(copies * size, what, like.device)
        return like.new_empty(shape)
    memory((copies - 1) * size, f"a {_text(shape)} result of a part of the data", like.device)
    _tensor("out", t)
    if t.dtype != like.dtype:
        raise TypeError(f"out: expected {like.dtype}; got {t.dtype}")
    _layout("out", t, shape, like)
    if not t.is_contiguous():
        raise ValueError(f"out: expected a contiguous tensor; got strides {t.stride()}")
    if t.requires_grad:
        raise ValueError("out: expected a tensor that does not require grad; it is overwritten")
    return t


def multiplied(name: str, v: Tensor, size: int, like: Tensor) -> Tensor:
    """Return v detached: finite, (size,) or (size, k) with k >= 0, of like's dtype and device."""
    _tensor(name, v)
    if v.ndim == 1:
        return _floats(name, v, (size,), like)
    if v.ndim == 2 and v.shape == (size, 0) and v.dtype == like.dtype:
        return v
    return _floats(name, v, (size, None), like)


def _floats(name: str, t: Tensor, shape: tuple[int | None, ...], like: Tensor | None) -> Tensor:
    _tensor(name, t)
    dtypes = (torch.float32, torch.float64) if like is None else (like.dtype,)
    if t.dtype not in dtypes:
        raise TypeError(f"{name}: expected {' or '.join(map(str, dtypes))}; got {t.dtype}")
    _layout(name, t, shape, like)
    finite(name, t)
    return t.detach() if t.requires_grad else t


def _tensor(name: str, t: object) -> None:
    if not isinstance(t, Tensor):
        hint = " (torch.from_numpy makes it one)" if type(t).__module__ == "numpy" else ""
        hint = " (a DataLoader makes batches of it)" if isinstance(t, Dataset) else hint
        raise TypeError(f"{name}: expected a torch.Tensor; got {type(t).__name__}{hint}")
    if t.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor; got {t.layout}")


def _layout(name: str, t: Tensor, shape: tuple[int | None, ...], like: Tensor | None) -> None:
    if t.ndim != len(shape) or any(a not in (None, b) for a, b in zip(shape, t.shape, strict=True)):
        raise ValueError(f"{name}: expected shape {_text(shape)}; got {_text(t.shape)}")
    if not t.numel():
        raise ValueError(f"{name}: expected at least one element; got shape {_text(t.shape)}")
    if like is not None and t.device != like.device:
        raise ValueError(f"{name}: expected device {like.device}; got {t.device}")
    if t.is_cuda and not _core.cuda:
        raise ValueError(f"{name}: expected a CPU tensor, as this build has no CUDA kernels; got {t.device}")
    if not t.is_cuda and t.device.type != "cpu":
        raise ValueError(f"{name}: expected a CPU or CUDA tensor; got {t.device}")


def _binary_targets(y: Tensor, shape: tuple[int, ...], loss: Loss, like: Tensor) -> Tensor:
    """Return the targets of one logit in like's dtype, of this shape or (*shape, 1): any numbers, or labels 0 and 1."""
    _tensor("y", y)
    wanted = f"{like.dtype} targets, or int64 or bool labels, {_text(shape)} or {_text((*shape, 1))}"
    if y.shape not in (shape, (*shape, 1)):
        raise ValueError(f"y: expected {wanted}; got {_text(y.shape)}")
    if y.is_floating_point():
        return _floats("y", y, y.shape, like)
    if y.dtype not in (torch.int64, torch.bool):
        raise TypeError(f"y: expected {wanted}; got {y.dtype}")
    _layout("y", y, y.shape, like)
    _labels(y, 2, loss, like)
    return y.to(like.dtype)


def _broadcast(name: str, t: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Refuse what is not finite, not of like's dtype and device, or does not broadcast to shape."""
    _floats(name, t, t.shape, like)
    if t.ndim > len(shape) or any(a not in (1, b) for a, b in zip(t.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(f"{name}: expected a shape that broadcasts to {_text(shape)}; got {_text(t.shape)}")


def _labels(y: Tensor, C: int, loss: Loss, like: Tensor) -> None:
    if _captured(y):
        return
    low, high = _bounds(y)
    ignored = loss.ignore_index is not None and low <= loss.ignore_index <= high
    if ignored:
        kept = y[y != loss.ignore_index]
        low, high = _bounds(kept) if len(kept) else (0, 0)
    if low < 0 or high >= C:
        raise ValueError(f"y: expected labels in [0, {C}); got {low if low < 0 else high}")
    by_weight = loss.kind == "cross_entropy" and loss.reduction == "mean" and (ignored or loss.weight is not None)
    if by_weight:
        divisor(loss.divisor(y, like))


def _bounds(t: Tensor) -> tuple[float, float]:
    """Minimum and maximum in one pass, without temporaries, and one wait for a GPU; NaN if there is one."""
    low, high = torch.aminmax(t)
    return tuple(torch.stack((low, high)).tolist()) if t.is_cuda else (low.item(), high.item())


def _text(shape: Sequence[int | None]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)}{',' * (len(shape) == 1)})"


# --- blocks -------------------------------------------------------------------------------------------------


def block_index(i: int, j: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Return (i, j) as ints: a block in the grid, where negative indices are not."""
    try:
        i, j = operator.index(i), operator.index(j)
    except TypeError:
        raise TypeError(f"block: expected two integers; got {i!r}, {j!r}") from None
    if not (0 <= i < grid[0] and 0 <= j < grid[1]):
        raise IndexError(f"block: expected a pair within the {grid[0]} x {grid[1]} grid; got ({i}, {j})")
    return i, j


def pairs(pairs: Tensor | Sequence[tuple[int, int]], rows: int, cols: int, device: torch.device) -> Tensor:
    """Return (P, 2) int64 on the device: P > 0 pairs (i, j) with 0 <= i < rows and 0 <= j < cols."""
    if isinstance(pairs, Sequence):
        try:
            pairs = torch.tensor(pairs, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"pairs: expected an int64 tensor (P, 2) or a list of (i, j); {error}") from None
    _tensor("pairs", pairs)
    _layout("pairs", pairs, (None, 2), None)
    if pairs.dtype != torch.int64:
        raise TypeError(f"pairs: expected int64; got {pairs.dtype}")
    for column, size in enumerate((rows, cols)):
        low, high = _bounds(pairs[:, column])
        if low < 0 or high >= size:
            raise IndexError(
                f"pairs: expected {'rows' if column == 0 else 'columns'} of the {rows} x {cols} grid; "
                f"got {low if low < 0 else high}"
            )
    return pairs.to(device)


# --- numbers ------------------------------------------------------------------------------------------------


def count(name: str, value: object, least: int | None = 1, most: int | None = None) -> int:
    """Return value as an int >= least, or any int, and <= most."""
    try:
        number = operator.index(None if isinstance(value, bool) else value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer; got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name}: expected at least {least}; got {number}")
    if most is not None and number > most:
        raise ValueError(f"{name}: expected at most {most}; got {number}")
    return number


def number(name: str, value: object) -> float:
    """Return value as a float, infinite where it is too large for one. Raises TypeError, also for text and bools."""
    try:
        return float(None if isinstance(value, bool | str | bytes | complex) else value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected a number; got {value!r}") from None


def real(name: str, value: object, least: float) -> float:
    """Return value as a finite float >= least."""
    result = number(name, value)
    if not least <= result < math.inf:
        raise ValueError(f"{name}: expected a finite number >= {least:g}; got {result}")
    return result


def positive(name: str, value: object) -> float:
    """Return value as a finite float > 0."""
    result = number(name, value)
    if not 0 < result < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0; got {result}")
    return result


def dtype(value: object) -> torch.dtype:
    """Return torch.float32 or torch.float64."""
    if value not in (torch.float32, torch.float64):
        raise ValueError(f"dtype: expected torch.float32 or torch.float64; got {value!r}")
    return value
