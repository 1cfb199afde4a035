"""What hessext.autograd.check returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PartError:
    """Errors of one layer pair against float64 autograd; max_rel is ||difference||_F / ||truth||_F."""

    layers: tuple[str, str]
    blocks: int
    max_abs: float
    max_rel: float


@dataclass(frozen=True)
class CheckReport:
    """What `check` found; true exactly if every layer pair is within the tolerance."""

    parts: tuple[PartError, ...]
    dtype: torch.dtype
    tolerance: float
    complete: bool
    largest_logit: float = 1.0  # by which the tolerance was multiplied, as rounding grows with it

    @property
    def passed(self) -> bool:
        """Whether every part's max_rel is at most the tolerance (NaN is not)."""
        return all(part.max_rel <= self.tolerance for part in self.parts)

    @property
    def max_abs(self) -> float:
        """Largest absolute error of any entry compared; NaN if any is."""
        return _largest(part.max_abs for part in self.parts)

    @property
    def max_rel(self) -> float:
        """Largest relative Frobenius error of a layer pair; NaN if any is."""
        return _largest(part.max_rel for part in self.parts)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        width = max(len(" x ".join(p.layers)) for p in self.parts)
        lines = [f"{'layers':<{width}}  {'blocks':>8}  {'max abs':>8}  {'relative':>8}"]
        for p in self.parts:
            lines.append(f"{' x '.join(p.layers):<{width}}  {p.blocks:>8}  {p.max_abs:8.1e}  {p.max_rel:8.1e}")
        kind = "all blocks" if self.complete else "a sample of rows"
        verdict = "passed" if self.passed else "FAILED"
        dtype = str(self.dtype).removeprefix("torch.")
        grown = f" ({self.tolerance / self.largest_logit:.0e} times the largest |logit|, {self.largest_logit:.3g})"
        why = grown if self.largest_logit > 1 else ""
        return "\n".join([*lines, f"{verdict}: {dtype}, {kind}, tolerance {self.tolerance:.0e}{why}"])


def _largest(values: Iterable[float]) -> float:
    return (
        torch.tensor(list(values), dtype=torch.float64, device="cpu").max().item()
    )  # unlike the builtin, max keeps NaN
