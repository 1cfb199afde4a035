"""What every method gives: a call, and how to read its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Method:
    """A prepared method: `call()` returns the result, or only its `rows` where those are given."""

    call: Callable[[], Tensor]
    note: str = ""
    rows: Tensor | None = None
    scale: float = 1.0  # measured seconds times this are the seconds of the whole result
    in_order: Callable[[Tensor], Tensor] = lambda result: result  # to torch's parameter order, outside the clock
