"""What is done to tensors that an object holds: watched for changes, moved, pickled, kept out of autocast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from . import _checks


def version(t: Tensor) -> int:
    """torch's count of changes in place; inference tensors have none."""
    return 0 if t.is_inference() else t._version


def lifted(dtype: torch.dtype) -> torch.dtype:
    """The dtype that numbers are computed in: float32 for half precision."""
    return torch.float32 if dtype in _checks.HALVES else dtype


def lifted_like(t: Tensor) -> Tensor:
    """A tensor of t's shape and device in that dtype; where it is not t, without memory of its own."""
    dtype = lifted(t.dtype)
    return t if dtype == t.dtype else t.new_empty((), dtype=dtype).expand(t.shape)


class Watch:
    """Tensors that are not copied must not change: their versions when this was made. Called before every result."""

    def __init__(self, **tensors: Tensor | None) -> None:
        watched = {name: t for name, t in tensors.items() if t is not None and not t.is_inference()}
        self._watched = [(name, t, t._version) for name, t in watched.items()]

    def check(self) -> None:
        """Raise RuntimeError if one was changed in place since."""
        for name, t, before in self._watched:
            if t._version != before:
                raise RuntimeError(
                    f"{name} was changed in place after the Hessian was made; pass a copy, {name}.clone()"
                )


class Cache:
    """What is made from tensors once and kept, on a GPU once for each stream that asks.

    So no stream reads what another one is still writing. While a CUDA graph is captured nothing new is kept, as its
    values are there only once the graph has run; what was made before is used.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._found: dict[int, dict[tuple, Any]] = {}  # by stream, then by name and arguments

    def get(self, key: tuple, make: Callable, *args: Any) -> Any:
        """The value of a key, make(*args) if it is not there."""
        found = self._found.setdefault(_stream(self._like), {})
        if key in found:
            return found[key]
        if _checks.captured(self._like):
            others = [some[key] for some in self._found.values() if key in some]
            return others[0] if others else make(*args)
        found[key] = value = make(*args)
        return value


def _stream(t: Tensor) -> int:
    return torch.cuda.current_stream(t.device).cuda_stream if t.is_cuda else 0


def once(method: Callable) -> Callable:
    """Let a method of something with a `cache` keep what it gives, for each of its arguments."""
    name = method.__name__

    @wraps(method)
    def run(self: Any, *args: Any) -> Any:
        return self.cache.get((name, *args), method, self, *args)

    return run


def own_precision(method: Callable) -> Callable:
    """Let a method of something on a `device` run outside of autocast, which computes in half precision."""

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        kind = self.device.type
        if not torch.is_autocast_enabled(kind):
            return method(self, *args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return method(self, *args, **kwargs)

    return run


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Change a tensor, or the tensors in tuples and dataclasses; return anything else as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(change, v) for v in value)
    if is_dataclass(value):
        return replace(value, **{f.name: map_tensors(change, getattr(value, f.name)) for f in fields(value)})
    return value


def compact(t: Tensor) -> Tensor:
    """Return a tensor that does not keep a larger one alive: a pickle has all of its memory."""
    return t.clone() if t.untyped_storage().nbytes() > t.numel() * t.element_size() else t


def moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the value with its tensors on a device, floats in dtype.

    Raises ValueError where a number is beyond the range of dtype.
    """

    def move(t: Tensor) -> Tensor:
        result = t.to(device, dtype if t.is_floating_point() else t.dtype)
        if t.is_floating_point():
            _checks.finite(f"dtype: {dtype} does not hold all values", result)
        return result

    return map_tensors(move, value)
