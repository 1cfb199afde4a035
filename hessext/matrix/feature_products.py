"""Scalar products of features over pairs of samples, and their squared lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from hessext.data.ranks import Ranks

_TILE = 32 << 20  # bytes of a copy of some columns, or of some rows
_EXPONENTS = {torch.float32: 120, torch.float64: 1000}  # largest exponent of a power of two


def power_of_two(t: Tensor, dim: int | None = None) -> Tensor:
    """The power of two at or above the largest |t|, of all or along a dimension."""
    least, most = torch.aminmax(t, **({} if dim is None else {"dim": dim, "keepdim": True}))
    exponent = torch.maximum(most, -least).double().log2().ceil()
    return torch.where(exponent > -torch.inf, torch.exp2(exponent.clamp(max=_EXPONENTS[t.dtype])), 1.0)


def squared_lengths(features: Tensor, ones: bool, power: Tensor | float = 1.0) -> Tensor:
    """|phi_n|^2 (N,) over power^2, float64; with `ones` there is one more feature that is always 1."""
    rows = max(1, _TILE // (8 * max(1, features.shape[1])))
    scaled = features.dtype == torch.float64 and isinstance(power, Tensor)  # squares of float32 do fit float64
    lengths = torch.cat(
        [torch.linalg.vector_norm(t / power if scaled else t, dim=1, dtype=torch.float64) for t in features.split(rows)]
    )
    squares = lengths.square_() if scaled else lengths.div_(power).square_()
    return squares + power**-2 if ones else squares


class FeatureProducts:
    """phi_n . phi_n' over `power`^2; with `ones` there is one more feature that is always 1."""

    def __init__(self, features: Tensor, ones: bool, dtype: torch.dtype, ranks: Ranks) -> None:
        self.features, self._ones, self._dtype = features, ones, dtype
        self.power = power_of_two(features if features.shape[1] else features.new_ones(1))
        if ones:
            self.power = self.power.clamp(min=1)
        self.power = ranks.largest(self.power)

    def __call__(self, a: slice, b: slice, visitor: Tensor | None = None) -> Tensor:
        """Products of two blocks of samples, (a, b), the second one of a visitor's features if there is one."""
        other = self.features if visitor is None else visitor
        shape = [len(self.features[a]), len(other[b])]
        result = torch.zeros(shape, dtype=self._dtype, device=self.power.device)
        step = max(1, _TILE // (max(shape) * result.element_size()))
        for some, of_other in zip(self.features.split(step, dim=1), other.split(step, dim=1), strict=True):
            left = some[a].to(self._dtype) / self.power
            own = visitor is None and a == b
            result.addmm_(left, left.T if own else (of_other[b].to(self._dtype) / self.power).T)
        return result.add_(self.power**-2) if self._ones else result

    def lengths(self) -> Tensor:
        """|phi_n| (N,) over `power`."""
        return squared_lengths(self.features, self._ones, self.power).sqrt_()
