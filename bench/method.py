"""The common form of all methods: a call, and how to read its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Method:
    """A prepared method. `call()` returns the result, or only its `rows` if these are given."""

    call: Callable[[], Tensor]
    note: str = ""
    rows: Tensor | None = None
    scale: float = 1.0  # factor from the measured seconds to those of the whole result
    in_order: Callable[[Tensor], Tensor] = lambda result: result  # brings it to torch's parameter order, not timed
