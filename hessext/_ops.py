"""The core's operations as torch operators (`torch.ops.hessext.*`): schema, fake and real implementation of each.

Arguments are taken as they are: shapes and values are checked where the public functions build them. Every part of
the Hessian is H = sum_n Q_n (x) phi_n psi_n^T; `part` says what Q_n is made of (csrc/core.h), the `Curvature` tensors
what it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from . import _core


class Part(IntEnum):
    """Which part of the Hessian; the values are those of csrc/core.h."""

    HIDDEN = 0
    OUTPUT = 1
    CROSS = 2


class Curvature(NamedTuple):
    """What Q_n is made of; None where a part does not need it. B_n = c_n (diag p_n - p_n p_n^T), or c_n I without p."""

    gauss_newton: bool  # include the Gauss-Newton term
    scale: Tensor  # c_n (N,)
    probs: Tensor | None = None  # p_n (N, C)
    top: Tensor | None = None  # argmax p_n (N,) int64
    rest: Tensor | None = None  # 1 - p_top (N,)
    weight: Tensor | None = None  # V (C, m)
    gram: Tensor | None = None  # V^T V (m, m), without p
    shift: Tensor | None = None  # sum_c p_c (V_c - V_top) (N, m)
    slope: Tensor | None = None  # act'(z) (N, m)
    bend: Tensor | None = None  # act''(z) (V^T r) (N, m), residual term
    residual: Tensor | None = None  # r = d loss / d f (N, C), residual term


_CURVATURE = (
    "bool gauss_newton, Tensor scale, Tensor? probs, Tensor? top, Tensor? rest, Tensor? weight, Tensor? gram, "
    "Tensor? shift, Tensor? slope, Tensor? bend, Tensor? residual"
)
_PART = "int part, Tensor left, bool left_ones, Tensor right, bool right_ones, bool symmetric, int classes"

_library = torch.library.Library("hessext", "DEF")
_library.define(f"dense_(Tensor(a!) out, int ld, int[] axes, bool direct, bool mirror, {_PART}, {_CURVATURE}) -> ()")
_library.define(f"blocks(Tensor pairs, bool transposed, {_PART}, {_CURVATURE}) -> Tensor")
_library.define(f"block_squares(Tensor pairs, {_PART}, {_CURVATURE}) -> Tensor")
_library.define("softmax_(Tensor(a!) logits) -> (Tensor, Tensor)")
_library.define("label_residual(Tensor probs, Tensor scale, Tensor label, Tensor top, Tensor rest) -> Tensor")
_library.define("softmax_shift(Tensor probs, Tensor top, Tensor weight) -> Tensor")
_library.define("softmax_product_(Tensor(a!) v, Tensor probs, Tensor scale, Tensor top) -> ()")
_library.define("logits_(Tensor(a!) out, Tensor weight, Tensor? bias, Tensor features) -> ()")
_library.define("softmax_scan_(Tensor logits, int first, Tensor(a!) largest, Tensor(b!) top, Tensor(c!) others) -> ()")
_library.define(
    "softmax_others_(Tensor(a!) logits, int first, Tensor largest, Tensor top, Tensor others, Tensor lift) -> ()"
)
_library.define(
    "gram_sums_(Tensor left, Tensor right, Tensor weight, bool triangle, Tensor(a!)? products, Tensor[] units, "
    "Tensor(b!) sums) -> ()"
)
_library.define(
    "gram_tops_(Tensor products, Tensor weight, bool triangle, Tensor[] units, Tensor[] left, Tensor[] right, "
    "Tensor(a!) sums) -> ()"
)
_library.define(f"curvature_entries(int part, Tensor pairs, int classes, {_CURVATURE}) -> Tensor")


if hasattr(os, "register_at_fork"):
    # A child has none of OpenMP's threads, and would wait for them for ever in torch and here; loader workers do this.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class _Workspace:
    """Memory of a GPU for one call: torch's allocator gives it to other work on the same stream only after it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, size: int) -> int:
        self._held = torch.empty(size, dtype=torch.uint8, device=self._device)
        return self._held.data_ptr()


def _where(t: Tensor) -> _core.Where:
    """Who computes on t: torch's threads, or its current stream on t's device."""
    if t.is_cuda:
        return _core.Where(t.device.index, torch.cuda.current_stream(t.device).cuda_stream, _Workspace(t.device))
    return _core.Where(torch.get_num_threads())


def _wide(t: Tensor) -> bool:
    """Whether t is float64 and not float32: the core has these two, and takes others for one of them."""
    if t.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected torch.float32 or torch.float64; got {t.dtype}")
    return t.dtype == torch.float64


def _features(t: Tensor, ones: bool) -> _core.Features:
    return _core.Features(t.data_ptr(), t.stride(0), t.shape[1], ones)


def _part(part: int, left: Tensor, left_ones: bool, right: Tensor, right_ones: bool, symmetric: bool, classes: int, *c):
    """The core's first arguments, for both of its assembly functions."""
    c = _OldCurvature(*c)
    units = 0 if c.slope is None else c.slope.shape[1]
    tensors = [0 if t is None else t.data_ptr() for t in c[1:]]
    curvature = _core.Curvature(len(c.scale), units, classes, c.gauss_newton, *tensors)
    features = _features(left, left_ones), _features(right, right_ones)
    return _wide(left), part, *features, symmetric, curvature


def _dense(out, ld, axes, direct, mirror, *part):
    _core.dense(*_part(*part), out.data_ptr(), ld, axes, direct, mirror, _where(out))


def _blocks(pairs, transposed, *part):
    out = _fake_blocks(pairs, transposed, *part)
    if len(pairs):
        addresses = pairs.data_ptr(), len(pairs), out.data_ptr(), transposed, 0
        _core.pairs(*_part(*part), *addresses, _where(out))
    return out


def _block_squares(pairs, *part):
    out = _fake_block_squares(pairs, *part)
    if len(pairs):
        addresses = pairs.data_ptr(), len(pairs), 0, False, out.data_ptr()
        _core.pairs(*_part(*part), *addresses, _where(out))
    return out


def _softmax(logits):
    top, rest = _fake_softmax(logits)
    wide, where = _wide(logits), _where(logits)
    _core.softmax(wide, logits.data_ptr(), *logits.shape, top.data_ptr(), rest.data_ptr(), where)
    return top, rest


def _label_residual(probs, scale, label, top, rest):
    out = torch.empty_like(probs)
    pointers = [t.data_ptr() for t in (probs, scale, label, top, rest)]
    wide, where = _wide(probs), _where(probs)
    _core.label_residual(wide, *pointers, *probs.shape, out.data_ptr(), where)
    return out


def _softmax_shift(probs, top, weight):
    out = _fake_softmax_shift(probs, top, weight)
    pointers = [t.data_ptr() for t in (probs, top, weight)]
    wide, where = _wide(probs), _where(probs)
    _core.softmax_shift(wide, *pointers, *probs.shape, weight.shape[1], out.data_ptr(), where)
    return out


def _softmax_product(v, probs, scale, top):
    pointers = [t.data_ptr() for t in (probs, scale, top, v)]
    _core.softmax_product(_wide(v), *pointers, *v.shape, v.data_ptr(), _where(v))


def _curvature_entries(part, pairs, classes, *curvature):
    out = _fake_curvature_entries(part, pairs, classes, *curvature)
    none = curvature[1].new_empty(len(out), 0)
    wide, _, _, _, _, packed = _part(part, none, False, none, False, False, classes, *curvature)
    _core.curvature_entries(wide, part, packed, pairs.data_ptr(), len(pairs), out.data_ptr(), _where(out))
    return out


def _logits(out, weight, bias, features):
    """Class-major, (C, N); torch forms them where it is as fast, and few of them, whose tiles would be half empty."""
    where = _where(out)
    if _wide(out) or min(out.shape) < 64 or not _core.tensor_cores(where):
        torch.mm(weight, features.T, out=out)
        if bias is not None:
            out.add_(bias[:, None])
        return
    sides = _features(weight, False), 0 if bias is None else bias.data_ptr(), _features(features, False)
    _core.logits(*sides, *out.shape, out.data_ptr(), where)


def _softmax_scan(logits, first, largest, top, others):
    pointers = [t.data_ptr() for t in (largest, top, others)]
    wide, where = _wide(logits), _where(logits)
    _core.softmax_scan(wide, logits.data_ptr(), *logits.shape, first, *pointers, where)


def _softmax_others(logits, first, largest, top, others, lift):
    pointers = [t.data_ptr() for t in (largest, top, others, lift)]
    wide, where = _wide(logits), _where(logits)
    _core.softmax_others(wide, logits.data_ptr(), *logits.shape, first, *pointers, where)


def _gram_sums(left, right, weight, triangle, products, units, sums):
    sides = [n for t in (left, right) for n in (t.data_ptr(), t.stride(0))]
    results = 0 if products is None else products.data_ptr(), *_units(units), sums.data_ptr()
    pointers = weight.data_ptr(), triangle, *results
    _core.gram_sums(_wide(left), len(left), *weight.shape, *sides, *pointers, _where(sums))


def _units(units):
    """Addresses of those of both sides, which may be missing."""
    return [t.data_ptr() for t in units] or (0, 0)


def _gram_tops(products, weight, triangle, units, left, right, sums):
    sides = [[t.data_ptr() for t in side] for side in (left, right)]
    pointers = weight.data_ptr(), triangle, products.data_ptr(), *_units(units), *sides, sums.data_ptr()
    _core.gram_tops(_wide(weight), *weight.shape, *pointers, _where(sums))


def _fake_softmax(logits):
    return logits.new_empty(logits.shape[0], dtype=torch.int64), logits.new_empty(logits.shape[0])


def _fake_blocks(pairs, transposed, part, left, left_ones, right, right_ones, *_):
    shape = left.shape[1] + left_ones, right.shape[1] + right_ones
    return left.new_empty(pairs.shape[0], *(reversed(shape) if transposed else shape))


def _fake_block_squares(pairs, part, left, *_):
    return left.new_empty(pairs.shape[0], dtype=torch.float64)


def _fake_softmax_shift(probs, top, weight):
    return probs.new_empty(probs.shape[0], weight.shape[1])


def _fake_curvature_entries(part, pairs, classes, *curvature):
    return curvature[1].new_empty(pairs.shape[0], curvature[1].shape[0])


def _first(arguments: tuple) -> Tensor:
    """The first tensor; every operator has one among its first two arguments."""
    return arguments[0] if isinstance(arguments[0], Tensor) else arguments[1]


def _operator(name: str, real: Callable, fake: Callable) -> Callable:
    """Register an operator; return the function to call it by, which spares eager calls the dispatcher's 5 us."""

    def on_gpu(*arguments):
        # The tensors' GPU is the current one meanwhile; torch's guard wakes no other one up when it leaves.
        with torch.cuda.device_of(_first(arguments)):
            return real(*arguments)

    _library.impl(name, real, "CPU")
    _library.impl(name, on_gpu, "CUDA")
    torch.library.register_fake(f"hessext::{name}", fake, lib=_library)
    operator = getattr(torch.ops.hessext, name).default

    def call(*arguments):
        if torch.compiler.is_compiling():
            return operator(*arguments)
        return (on_gpu if _first(arguments).is_cuda else real)(*arguments)

    return call


dense_ = _operator("dense_", _dense, lambda *_: None)
blocks = _operator("blocks", _blocks, _fake_blocks)
block_squares = _operator("block_squares", _block_squares, _fake_block_squares)
softmax_ = _operator("softmax_", _softmax, _fake_softmax)
label_residual = _operator("label_residual", _label_residual, lambda probs, *_: torch.empty_like(probs))
softmax_shift = _operator("softmax_shift", _softmax_shift, _fake_softmax_shift)
softmax_product_ = _operator("softmax_product_", _softmax_product, lambda *_: None)
logits_ = _operator("logits_", _logits, lambda *_: None)
softmax_scan_ = _operator("softmax_scan_", _softmax_scan, lambda *_: None)
softmax_others_ = _operator("softmax_others_", _softmax_others, lambda *_: None)
gram_sums_ = _operator("gram_sums_", _gram_sums, lambda *_: None)
gram_tops_ = _operator("gram_tops_", _gram_tops, lambda *_: None)
curvature_entries = _operator("curvature_entries", _curvature_entries, _fake_curvature_entries)


# ---- temporary
class Kind(IntEnum):
    OUTPUT, HIDDEN, CROSS, GIVEN = 0, 1, 2, 3


_OldCurvature = Curvature


class NewCurvature(NamedTuple):
    kind: int
    rows: int
    cols: int
    symmetric: bool
    classes: int = 0
    gauss_newton: bool = True
    scale: Tensor | None = None
    probs: Tensor | None = None
    top: Tensor | None = None
    rest: Tensor | None = None
    weight: Tensor | None = None
    gram: Tensor | None = None
    shift: Tensor | None = None
    slope: Tensor | None = None
    bend: Tensor | None = None
    residual: Tensor | None = None
    entries: Tensor | None = None


Curvature = NewCurvature
_o_dense, _o_blocks, _o_squares, _o_entries, _o_others = (
    dense_,
    blocks,
    block_squares,
    curvature_entries,
    softmax_others_,
)


def _conv(args):
    left, lo, right, ro, same, *c = args
    c = NewCurvature(*c)
    if c.kind == Kind.GIVEN:
        return (1, left, lo, right, ro, same, 1, True, c.entries[0], *[None] * 9)
    part = {Kind.OUTPUT: 1, Kind.HIDDEN: 0, Kind.CROSS: 2}[c.kind]
    return (part, left, lo, right, ro, same, c.classes, c.gauss_newton, *c[6:16])


def dense_(out, ld, axes, direct, mirror, pairs, *a):
    _o_dense(out, ld, axes, direct, mirror, *_conv(a))


def blocks(pairs, transposed, *a):
    return _o_blocks(pairs, transposed, *_conv(a))


def block_squares(pairs, *a):
    return _o_squares(pairs, *_conv(a))


def curvature_entries(pairs, *c):
    c = NewCurvature(*c)
    part = {Kind.OUTPUT: 1, Kind.HIDDEN: 0, Kind.CROSS: 2}[c.kind]
    return _o_entries(part, pairs, c.classes, c.gauss_newton, *c[6:16])


def softmax_others_(logits, first, largest, top, others, power):
    _o_others(logits, first, largest, top, others, 1 / power)
