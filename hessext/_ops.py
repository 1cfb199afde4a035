"""The core's operations as torch operators (`torch.ops.hessext.*`): schema, fake and implementation of each.

Arguments are taken as they are: shapes and values are checked where the public functions build them. Every part of
the Hessian is H = sum_n Q_n (x) phi_n psi_n^T; a `Curvature` says what Q_n is, the `sides` are phi and psi.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from . import _core
from ._memory import in_huge_pages
from ._products import multiply


class Kind(IntEnum):
    """What Q_n is; the values are those of csrc/core.h."""

    OUTPUT = 0
    HIDDEN = 1
    CROSS = 2
    GIVEN = 3


class Curvature(NamedTuple):
    """Q_n, and what it is made of. B_n = c_n (diag p_n - p_n p_n^T), or c_n I without p; fields as in csrc/core.h."""

    kind: int
    rows: int  # of Q_n; m hidden units for HIDDEN and CROSS
    cols: int
    symmetric: bool  # pairs i <= j stand for both
    classes: int = 0  # C
    gauss_newton: bool = True  # include the Gauss-Newton term
    scale: Tensor | None = None  # c_n (N,)
    probs: Tensor | None = None  # p_n (N, C)
    top: Tensor | None = None  # argmax p_n (N,) int64
    rest: Tensor | None = None  # 1 - p_top (N,)
    weight: Tensor | None = None  # V (C, m)
    gram: Tensor | None = None  # V^T V (m, m), without p
    shift: Tensor | None = None  # sum_c p_c (V_c - V_top) (N, m)
    slope: Tensor | None = None  # act'(z) (N, m), of the first layer
    bend: Tensor | None = None  # act''(z) (V^T r) (N, m), residual term
    residual: Tensor | None = None  # d loss / d z of the second of two neighbouring layers (N, cols), residual term
    entries: Tensor | None = None  # GIVEN: Q_n[i, j] (P, N) of the listed pairs, or of all, row by row


_TYPES = {int: "int", bool: "bool", Tensor | None: "Tensor?"}
_CURVATURE = ", ".join(f"{_TYPES[hint]} {name}" for name, hint in get_type_hints(Curvature).items())
_SIDES = "Tensor left, bool left_ones, Tensor right, bool right_ones, bool same_features"

_library = torch.library.Library("hessext", "DEF")

if hasattr(os, "register_at_fork"):
    # A child has none of OpenMP's threads, and would wait for them for ever in torch and here; loader workers do this.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


# ------------------------------------------------------------------------------------------------ who computes


class _Workspace:
    """Memory of a GPU for one call: torch's allocator gives it to other work on the same stream only after it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, size: int) -> int:
        self._held = torch.empty(size, dtype=torch.uint8, device=self._device)
        return self._held.data_ptr()


def _who(t: Tensor) -> tuple[ModuleType, _core.Threads | _core.Stream]:
    """The core that computes on t, and by what: torch's threads, or its current stream on t's device."""
    if t.is_cuda:
        stream = torch.cuda.current_stream(t.device).cuda_stream
        return _core, _core.Stream(t.device.index, stream, _Workspace(t.device))
    return _core, _threads(torch.get_num_threads())


_threads = functools.cache(_core.Threads)


def _wide(t: Tensor) -> bool:
    """Whether t is float64 and not float32: the core has these two, and takes others for one of them."""
    wide = {torch.float32: False, torch.float64: True}.get(t.dtype)
    if wide is None:
        raise TypeError(f"expected torch.float32 or torch.float64; got {t.dtype}")
    return wide


def _run(operation: str, like: Tensor, *arguments: Any) -> None:
    """Call one operation of csrc/operations.h for the dtype and the device of `like`.

    Structs are dicts by field name; fields that are left out are zero.
    """
    core, by = _who(like)
    getattr(core, operation)(_wide(like), *arguments, by)


# --------------------------------------------------------------------------------------------------- operators


def _first(arguments: tuple) -> Tensor:
    """The first tensor; every operator has one among its first two arguments."""
    return arguments[0] if isinstance(arguments[0], Tensor) else arguments[1]


def _operator(schema: str, results: Callable | None = None) -> Callable[[Callable], Callable]:
    """Register the decorated implementation under its name.

    `results` makes the operator's results from its arguments, empty: it is the fake, and the implementation fills what
    it is given in front of the arguments. The function to call spares eager calls the dispatcher's 5 us.
    """

    def register(implementation: Callable) -> Callable:
        def fill(*arguments):
            out = results(*arguments)
            implementation(out, *arguments)
            return out

        run = fill if results else implementation

        def run_on_gpu(*arguments):
            # The tensors' GPU is the current one meanwhile; torch's guard wakes no other one up when it leaves.
            with torch.cuda.device_of(_first(arguments)):
                return run(*arguments)

        name = implementation.__name__
        _library.define(name + schema)
        _library.impl(name, run, "CPU")
        _library.impl(name, run_on_gpu, "CUDA")
        torch.library.register_fake(f"hessext::{name}", results or (lambda *_: None), lib=_library)
        operator = getattr(torch.ops.hessext, name).default

        def call(*arguments):
            if torch.compiler.is_compiling():
                return operator(*arguments)
            return (run_on_gpu if _first(arguments).is_cuda else run)(*arguments)

        return call

    return register


# ------------------------------------------------------------------------------------------------ one assembly


def _features(t: Tensor, ones: bool) -> dict[str, Any]:
    return {"data": t, "ld": t.stride(0), "cols": t.shape[1], "ones": ones}


def _axis(start: int, step: int, start_bias: int, step_bias: int, cols: int) -> dict[str, int]:
    return {"start": start, "step": step, "start_bias": start_bias, "step_bias": step_bias, "cols": cols}


def _curvature(fields: tuple, pairs: Tensor | None) -> Curvature:
    """The curvature of an operator's arguments. Raises ValueError where given entries are those of other pairs."""
    c = Curvature._make(fields)
    if c.entries is not None:
        every = c.rows * (c.rows + 1) // 2 if c.symmetric else c.rows * c.cols
        expected = every if pairs is None else len(pairs)
        if len(c.entries) != expected:
            raise ValueError(f"entries: expected rows for {expected} pairs; got {len(c.entries)}")
    return c


def _assemble(pairs: Tensor | None, sides: tuple, request: dict[str, Any]) -> None:
    """request: what becomes of the blocks; sides: an operator's last arguments, of both sides and of the curvature."""
    left, left_ones, right, right_ones, request["same_features"] = sides[:5]
    request["samples"] = len(left)
    request["left"], request["right"] = _features(left, left_ones), _features(right, right_ones)
    request["curvature"] = _curvature(sides[5:], pairs)
    if pairs is not None:
        request["pairs"], request["pair_count"] = pairs, len(pairs)
    _run("assemble", left, request)


@_operator(
    f"(Tensor(a!) out, int ld, int[] axes, bool direct, bool mirror, Tensor? pairs, {_SIDES}, {_CURVATURE}) -> ()"
)
def dense_(out, ld, axes, direct, mirror, pairs, *sides):
    """axes: those of `_axis` of the rows and of the columns."""
    if pairs is not None and not len(pairs):
        return
    rows, cols = _axis(*axes[:5]), _axis(*axes[5:])
    dense = {"out": out, "ld": ld, "rows": rows, "cols": cols, "direct": direct, "mirror": mirror}
    _assemble(pairs, sides, {"dense": dense})


def _blocks(pairs, transposed, left, left_ones, right, right_ones, *_):
    shape = left.shape[1] + left_ones, right.shape[1] + right_ones
    return left.new_empty(pairs.shape[0], *(reversed(shape) if transposed else shape))


@_operator(f"(Tensor(a!) out, Tensor pairs, bool transposed, {_SIDES}, {_CURVATURE}) -> ()")
def blocks_(out, pairs, transposed, *sides):
    if len(pairs):
        _assemble(pairs, sides, {"blocks": out, "transposed": transposed})


@_operator(f"(Tensor pairs, bool transposed, {_SIDES}, {_CURVATURE}) -> Tensor", _blocks)
def blocks(out, *arguments):
    blocks_(in_huge_pages(out), *arguments)


@_operator(
    f"(Tensor pairs, {_SIDES}, {_CURVATURE}) -> Tensor",
    lambda pairs, left, *_: left.new_empty(pairs.shape[0], dtype=torch.float64),
)
def block_squares(out, pairs, *sides):
    if len(pairs):
        _assemble(pairs, sides, {"norms": out})


def _entries(pairs, *curvature):
    c = Curvature._make(curvature)
    like, samples = (c.scale, c.scale.shape[0]) if c.entries is None else (c.entries, c.entries.shape[1])
    return like.new_empty(pairs.shape[0], samples)


@_operator(f"(Tensor pairs, {_CURVATURE}) -> Tensor", _entries)
def curvature_entries(out, pairs, *curvature):
    _run("curvature_entries", out, _curvature(curvature, pairs), pairs, *out.shape, out)


# ----------------------------------------------------------------------------------------------------- softmax


@_operator(
    "(Tensor(a!) logits) -> (Tensor, Tensor)",
    lambda logits: (logits.new_empty(logits.shape[0], dtype=torch.int64), logits.new_empty(logits.shape[0])),
)
def softmax_(results, logits):
    _run("softmax", logits, logits, *logits.shape, *results)


@_operator(
    "(Tensor probs, Tensor scale, Tensor label, Tensor top, Tensor rest) -> Tensor",
    lambda probs, *_: torch.empty_like(probs),
)
def label_residual(out, probs, scale, label, top, rest):
    _run("label_residual", probs, probs, scale, label, top, rest, *probs.shape, out)


@_operator(
    "(Tensor probs, Tensor top, Tensor weight) -> Tensor",
    lambda probs, top, weight: probs.new_empty(probs.shape[0], weight.shape[1]),
)
def softmax_shift(out, probs, top, weight):
    _run("softmax_shift", probs, probs, top, weight, *probs.shape, weight.shape[1], out)


@_operator("(Tensor(a!) v, Tensor probs, Tensor scale, Tensor top) -> ()")
def softmax_product_(v, probs, scale, top):
    _run("softmax_product", v, probs, scale, top, v, *v.shape, v)


@_operator("(Tensor(a!) out, Tensor weight, Tensor? bias, Tensor features) -> ()")
def logits_(out, weight, bias, features):
    """Class-major, (C, N); an ordinary product, but for float32 on tensor cores, whose tiles few would leave empty."""
    core, by = _who(out)
    if _wide(out) or min(out.shape) < 64 or not core.tensor_cores(by):
        multiply(weight, features.T, out=out)
        if bias is not None:
            out.add_(bias[:, None])
        return
    core.logits(_features(weight, False), bias, _features(features, False), *out.shape, out, out.stride(0), by)


@_operator("(Tensor logits, int first, Tensor(a!) largest, Tensor(b!) top, Tensor(c!) others) -> ()")
def softmax_scan_(logits, first, largest, top, others):
    _run("softmax_scan", logits, logits, *logits.shape, first, largest, top, others)


@_operator("(Tensor(a!) logits, int first, Tensor largest, Tensor top, Tensor others, Tensor power) -> ()")
def softmax_others_(logits, first, largest, top, others, power):
    _run("softmax_others", logits, logits, *logits.shape, first, largest, top, others, power)


# ------------------------------------------------------------------------------------------------------- gram


def _gram(
    shape: tuple[int, int],
    weight: Tensor | None,
    triangle: bool,
    products: Tensor | None,
    matrices: list[Tensor],
    powers: list[Tensor],
    **sides: Any,
) -> dict:
    """matrices: `on`, or `on` and `off`; powers: of both sides; or none at all."""
    named = dict(zip(("left_power", "right_power"), powers, strict=True)) if powers else {}
    named |= dict(zip(("on", "off"), matrices, strict=False))
    rows, cols = shape
    return {"rows": rows, "cols": cols, "weight": weight, "triangle": triangle, "products": products, **named, **sides}


@_operator(
    "(Tensor left, Tensor right, Tensor? weight, bool triangle, Tensor(a!)? products, Tensor(b!)[] matrices, "
    "Tensor[] powers, Tensor(c!) sums, Tensor(d!)? rounded=None) -> ()"
)
def gram_sums_(left, right, weight, triangle, products, matrices, powers, sums, rounded=None):
    sides = {"depth": len(left), "left": left, "left_ld": left.stride(0), "right": right, "right_ld": right.stride(0)}
    sides["rounded"] = rounded
    shape = left.shape[1], right.shape[1]
    _run("gram_sums", left, _gram(shape, weight, triangle, products, matrices, powers, **sides), sums)


@_operator(
    "(Tensor products, Tensor? weight, bool triangle, Tensor(a!)[] matrices, Tensor[] powers, Tensor[] left, "
    "Tensor[] right, Tensor(b!) sums) -> ()"
)
def gram_tops_(products, weight, triangle, matrices, powers, left, right, sums):
    tops = [dict(zip(("top", "p", "rest", "at_other"), side, strict=True)) for side in (left, right)]
    request = _gram(products.shape, weight, triangle, products, matrices, powers)
    _run("gram_tops", left[3], request, *tops, sums)
