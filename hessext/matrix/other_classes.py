"""Probabilities of all classes but each sample's most probable one: what sums over classes are formed of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from hessext import _ops
from hessext._memory import in_huge_pages, spare
from hessext._progress import steps
from hessext.model.network import Layer

from .feature_products import power_of_two
from .part import Part

_TILE, _TILE_ON_GPU = 32 << 20, 128 << 20  # bytes of a tile of classes; a GPU takes few large products
_SAMPLES = 512  # whose logits are one product: a product of others may round otherwise


def memory_of_classes(part: Part) -> int:
    """Bytes of the probabilities that are worked on; more are kept only where memory is free."""
    return 2 * _tile_bytes(part)


def _tile_bytes(part: Part) -> int:
    return (_TILE_ON_GPU if part.device.type == "cuda" else _TILE) // part.ranks.classes.size


class OtherClasses:
    """Probabilities of an output layer, class-major and without each sample's most probable class.

    Top-class deflation: where one class dominates, sums of squares over all classes cancel; over the others they do
    not. Probabilities are kept where memory is free, else a tile of classes is formed again when it is asked for; both
    have the same bits. Those of sample n are divided by `power[n]`, about 1 together. Where they meet those of other
    data or of other ranks, both have the tiles of `most` samples.
    """

    def __init__(self, part: Part, most: int = 0) -> None:
        samples, self._ranks, self._first = part.samples, part.ranks, part.first_class
        layer = samples.network.layers[-1]
        self._features, self._weight, self._bias = samples.features(samples.network.last), layer.weight, layer.bias
        N, C = len(self._features), len(self._weight)
        x = samples.x
        self._tile = max(1, min(C, _tile_bytes(part) // (max(most, N) * x.element_size())))
        kept = spare(C * N * x.element_size(), x.device, part.ranks.size)
        self._kept = in_huge_pages(x.new_empty(C, N)) if kept else None
        self._largest = x.new_full((N,), -torch.inf)
        self.top = torch.zeros(N, dtype=torch.int64, device=x.device)
        self._others = torch.zeros(N, dtype=torch.float64, device=x.device)  # sum of e^(l - largest)
        room = self._room(0, N) if self._kept is None else self._kept
        for c in steps(range(0, C, self._tile)):
            out = room[: self._tile] if self._kept is None else room[c : c + self._tile]
            _ops.softmax_scan_(self._logits(c, 0, out), c, self._largest, self.top, self._others)
        self._of_all_classes()
        self._unit = 1.0
        self._derive()
        if self._kept is not None:
            _ops.softmax_others_(self._kept, self._first, self._largest, self.top, self._others, self._power)

    def _of_all_classes(self) -> None:
        """Put together what the ranks of the classes have scanned; of equal logits the first class is the top."""
        self.top += self._first
        if self.whole:
            return
        largest = self._ranks.class_largest(self._largest.clone())
        last = torch.iinfo(torch.int64).max
        top = -self._ranks.class_largest(-torch.where(self._largest == largest, self.top, last))
        own = (self._others + (self.top != top)) * (self._largest - largest).double().exp()
        self._largest, self.top, self._others = largest, top, self._ranks.class_sum(own)

    def _derive(self) -> None:
        self.p = 1 / (1 + self._others)  # of the top class
        self.rest = self._others * self.p  # 1 - p
        self.power = self._power = power_of_two(self.rest[:, None], 1)[:, 0]
        if self._unit != 1:
            self.power = torch.where(self.rest > 0, self._power / self._unit, 1.0)
            self.rest = self.rest / self._unit

    def state(self) -> tuple[Tensor, ...]:
        """What another rank, which has the weights, needs to form the same."""
        return self._features, self._largest, self.top, self._others

    def visiting(self, state: Sequence[Tensor]) -> OtherClasses:
        """Those of another rank's samples, of which none are kept."""
        result = copy(self)
        result._features, result._largest, result.top, result._others = state
        result._kept = None
        result._derive()
        return result

    @property
    def example(self) -> Tensor:
        """A tensor of the probabilities' dtype and device."""
        return self._largest

    def _room(self, start: int, stop: int) -> Tensor:
        """Memory for a tile of classes of some samples."""
        return self._largest.new_empty(self._tile, stop - start)

    def _logits(self, c: int, start: int, out: Tensor) -> Tensor:
        """Fill out (classes, samples) with those of a tile, of samples from `start` on, a multiple of _SAMPLES."""
        weight, bias = (None if t is None else t[c : c + self._tile] for t in (self._weight, self._bias))
        features, out = self._features[start : start + out.shape[1]], out[: len(weight)]
        whole = weight.dtype == out.dtype
        for rows, lifted in [(slice(None), weight)] if whole else Layer.lifted(weight, out.dtype):
            own = None if bias is None else bias[rows]
            for some, of_some in zip(features.split(_SAMPLES), out[rows].split(_SAMPLES, 1), strict=True):
                _ops.logits_(of_some, lifted, own, some)
        return out

    def tiles(self, samples: slice) -> Iterator[tuple[int, Tensor]]:
        """The first class and the probabilities (classes, samples) of a tile, of some samples, until the next one."""
        first, last, _ = samples.indices(len(self._features))
        start, stop = first // _SAMPLES * _SAMPLES, min(-(-last // _SAMPLES) * _SAMPLES, len(self._features))
        room = self._room(start, stop) if self._kept is None else None
        state = [t[start:stop] for t in (self._largest, self.top, self._others, self._power)]
        for c in range(0, len(self._weight), self._tile):
            if room is None:
                yield self._first + c, self._kept[c : c + self._tile, samples]
                continue
            tile = self._logits(c, start, room)
            _ops.softmax_others_(tile, self._first + c, *state)
            yield self._first + c, tile[:, first - start : last - start]

    @property
    def whole(self) -> bool:
        """Whether all classes are here."""
        return self._ranks.classes.size == 1

    def here(self, classes: Tensor) -> Tensor:
        """Those of some classes that this rank has."""
        return classes[(classes >= self._first) & (classes < self._first + len(self._weight))]

    def over_classes(self, *tensors: Tensor) -> None:
        """Add up what is a sum over classes."""
        self._ranks.class_sum(*tensors)

    def enlarge(self) -> float:
        """Divide `rest` and `power` of all samples, if tiny, by a power of two, which is returned.

        Where 1 - p_top < 2^-120 everywhere, curvature is proportional to it in float64. The largest becomes 2^-100.
        """
        largest = self._ranks.largest(self.rest.max()).item()
        if 0 < largest < 2.0**-120:
            self._unit = 2.0 ** (math.ceil(math.log2(largest)) + 100)
            self._derive()
        return self._unit

    def probabilities(self, classes: Tensor) -> Tensor:
        """Those of some classes that are here (classes, N), top classes too, in float64."""
        classes = classes - self._first
        bias = None if self._bias is None else self._bias[classes]
        logits = F.linear(self._features, self._weight[classes].to(self._features.dtype), bias).T.double()
        return (logits - self._largest).exp_().mul_(self.p)

    def samples_by_tile(self, samples: slice) -> tuple[Tensor, ...]:
        """Which of some samples have their top class in each of the `tiles`; a GPU is waited for once, if at all."""
        top, C = self.top[samples], len(self._weight)
        if self._tile == C and self.whole:
            return (torch.arange(len(top), device=top.device),)
        top, order = top.sort()
        ends = [*range(self._first, self._first + C, self._tile), self._first + C]
        ends = torch.searchsorted(top, torch.tensor(ends, device=top.device)).tolist()
        return order.tensor_split(ends)[1:-1]  # without those of other ranks' classes

    def take_tops(self, samples: slice, rows: Tensor, first: int, tile: Tensor, out: Tensor) -> None:
        """Rows out[n] = tile[top_n - first] of some samples, in pieces: no second N x N tensor."""
        top = self.top[samples] - first
        for some in rows.split(max(1, _TILE // (out.shape[1] * out.element_size()))):
            out[some] = tile[top[some]]
