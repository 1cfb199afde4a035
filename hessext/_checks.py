"""Argument checks. Every error names the argument, what was expected and what came.

TypeError: not a tensor, or a wrong dtype. ValueError: shape, device, emptiness, NaN, infinity or range.
MemoryError: more than is free.
Checks of values read two numbers back, so on CUDA they wait for the tensor.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _core, _hints
from ._memory import in_huge_pages, require

# --- tensors ------------------------------------------------------------------------------------------------


HALVES = torch.bfloat16, torch.float16  # which are lifted to float32


def matrix(
    name: str,
    t: Tensor,
    *,
    rows: int | None = None,
    cols: int | None = None,
    like: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Return t detached: a finite, non-empty (rows, cols) float tensor. `options` are those of `shaped`."""
    return floats(name, t, (rows, cols), like, **options)


def vector(name: str, t: Tensor, *, size: int | None = None, like: Tensor | None = None, **options: Any) -> Tensor:
    """Return t detached: a finite, non-empty (size,) float tensor. `options` are those of `shaped`."""
    return floats(name, t, (size,), like, **options)


def samples(name: str, t: Tensor, cols: int, like: Tensor, hint: str = "") -> tuple[Tensor, float]:
    """Return t detached: finite, non-empty (N, cols) or (N, T, cols), or of more axes, of like's dtype and device.

    Second what `finite` returns.
    """
    tensor(name, t)
    shaped(name, t, (*(None,) * max(1, t.ndim - 1), cols), like, hint=hint)
    largest = finite(name, t)
    return t.detach() if t.requires_grad else t, largest


def finite(name: str, t: Tensor) -> float:
    """Refuse a (non-empty) tensor that holds NaN or infinity, and return the largest magnitude.

    While a CUDA graph is captured nothing is seen, and 1 is returned.
    """
    if captured(t):
        return 1.0
    low, high = bounds(t)
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int((~t.isfinite()).sum())
        raise ValueError(f"{name}: expected finite values; got {count} that are NaN or infinite")
    return max(high, -low)


def captured(t: Tensor) -> bool:
    """Whether t has no values yet."""
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


def out(t: Tensor | None, shape: tuple[int, ...], like: Tensor, copies: int = 1) -> Tensor:
    """Return t, to write to: contiguous, of this shape, like's dtype and device. For None, a new tensor.

    `copies` of it, t among them, must fit into memory.
    """
    size = math.prod(shape) * like.element_size()
    if t is None:
        what = f"a {tuple(shape)} result" + (" and that of a part of the data" if copies > 1 else "")
        require(copies * size, what, like.device)
        return in_huge_pages(like.new_empty(shape))
    require((copies - 1) * size, f"a {shape_text(shape)} result of a part of the data", like.device)
    tensor("out", t)
    if t.dtype != like.dtype:
        raise TypeError(f"out: expected {like.dtype}; got {t.dtype}")
    layout("out", t, shape, like)
    if not t.is_contiguous():
        raise ValueError(f"out: expected a contiguous tensor; got strides {t.stride()}")
    if t.requires_grad:
        raise ValueError("out: expected a tensor that does not require grad; it is overwritten")
    return t


def multiplied(name: str, v: Tensor, size: int, like: Tensor) -> Tensor:
    """Return v detached: finite, (size,) or (size, k) with k >= 0, of like's dtype and device."""
    tensor(name, v)
    if v.ndim == 1:
        return floats(name, v, (size,), like)
    if v.ndim == 2 and v.shape == (size, 0) and v.dtype == like.dtype:
        return v
    return floats(name, v, (size, None), like)


def floats(name: str, t: Tensor, shape: tuple[int | None, ...], like: Tensor | None, **options: Any) -> Tensor:
    """Return t detached: a finite, non-empty float tensor. Shape, like and `options` are those of `shaped`."""
    tensor(name, t)
    shaped(name, t, shape, like, **options)
    finite(name, t)
    return t.detach() if t.requires_grad else t


def shaped(
    name: str,
    t: Tensor,
    shape: tuple[int | None, ...],
    like: Tensor | None,
    *,
    half: bool = False,
    hint: str = "",
) -> None:
    """Refuse another shape (None: any size), or what is not float32 or float64 or of like's dtype and device.

    With `half`, bfloat16 and float16 stand for float32. A message on the shape or dtype ends with the hint.
    """
    dtypes = (torch.float32, torch.float64) if like is None else (like.dtype,)
    if t.dtype not in dtypes and not (half and t.dtype in HALVES and torch.float32 in dtypes):
        hint = hint or (f" (.to({dtypes[0]}) converts it)" if t.is_floating_point() else "")
        raise TypeError(f"{name}: expected {' or '.join(map(str, dtypes))}; got {t.dtype}{hint}")
    layout(name, t, shape, like, hint)


def tensor(name: str, t: object) -> None:
    """Refuse what is no dense torch.Tensor."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor; got {type(t).__name__}{_hints.of_other_type(t)}")
    if t.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor; got {t.layout}")


def layout(name: str, t: Tensor, shape: tuple[int | None, ...], like: Tensor | None, hint: str = "") -> None:
    """Refuse another shape (None: any size), an empty tensor, a device other than like's or that this build lacks."""
    got = t.shape
    if len(got) != len(shape) or [1 for a, b in zip(shape, got, strict=True) if a is not None and a != b]:
        raise ValueError(f"{name}: expected shape {shape_text(shape)}; got {shape_text(got)}{hint}")
    if 0 in got:
        raise ValueError(f"{name}: expected at least one element; got shape {shape_text(got)}")
    if like is not None and t.device != like.device:
        raise ValueError(f"{name}: expected device {like.device}; got {t.device}")
    if t.is_cuda:
        if not _core.cuda:
            raise ValueError(f"{name}: expected a CPU tensor, as this build has no CUDA kernels; got {t.device}")
    elif not t.is_cpu:
        raise ValueError(f"{name}: expected a CPU or CUDA tensor; got {t.device}")


def bounds(t: Tensor) -> tuple[float, float]:
    """Minimum and maximum in one pass, without temporaries, and one wait for a GPU; NaN if there is one."""
    low, high = torch.aminmax(t)
    return tuple(torch.stack((low, high)).tolist()) if t.is_cuda else (low.item(), high.item())


def largest(t: Tensor) -> float:
    """The largest magnitude."""
    low, high = bounds(t)
    return max(high, -low)


def shape_text(shape: Sequence[int | None]) -> str:
    """The shape as a message has it."""
    return f"({', '.join('any' if size is None else str(size) for size in shape)}{',' * (len(shape) == 1)})"


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
