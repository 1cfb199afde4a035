"""Instructions that each lane executes for itself, without memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .parse import Instruction
from .values import TYPES, UNSIGNED, members, reinterpret, source

Execute = Callable[[Any, Any], None]  # (run, mask): mask None for all lanes


def quotient(a: Any, b: Any) -> Any:
    """Integers towards zero; what PTX leaves undefined is 0."""
    if a.dtype.kind == "f":
        return a / b
    by = np.where(b == 0, a.dtype.type(1), b)
    rest = np.fmod(a, by)
    return np.where(b == 0, a.dtype.type(0), (a - rest) // by)


def remainder(a: Any, b: Any) -> Any:
    """With the sign of a."""
    return np.fmod(a, np.where(b == 0, a.dtype.type(1), b))


BINARY = {
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "min": np.fmin, "max": np.fmax, "mul": np.multiply, "div": quotient, "rem": remainder,
}  # fmt: skip


def ex2(a: Any) -> Any:
    """2^a with denormals flushed."""
    return np.exp2(np.where(np.abs(a) < np.finfo(np.float32).tiny, 0, a).astype(np.float64)).astype(np.float32)


UNARY = {
    "neg": np.negative, "not": np.invert, "abs": np.abs, "sqrt": np.sqrt, "rcp": np.reciprocal, "ex2": ex2,
    "popc": lambda a: np.bitwise_count(a).astype(np.uint32),
}  # fmt: skip

COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
           "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater,
           "hs": np.greater_equal}  # fmt: skip


def compare(kind: str, a: Any, b: Any) -> Any:
    """`kind` is false where one is NaN, `kind` + "u" true."""
    if kind in COMPARE:
        result = COMPARE[kind](a, b)
        return result & ~(np.isnan(a) | np.isnan(b)) if kind == "ne" and a.dtype.kind == "f" else result
    return COMPARE[kind[:-1]](a, b) | np.isnan(a) | np.isnan(b)


def fused(a: Any, b: Any, c: Any, down: bool) -> Any:
    """a b + c, rounded once but for ties that a wider type makes; `down` towards minus infinity."""
    if a.dtype.kind in "iu":
        return a * b + c
    wide = np.float64 if a.dtype == np.float32 else np.longdouble
    exact = a.astype(wide) * b.astype(wide) + c.astype(wide)
    result = exact.astype(a.dtype)
    if down:
        result = np.where(result.astype(wide) > exact, np.nextafter(result, a.dtype.type(-np.inf)), result)
    return result


def shift(head: str, a: Any, b: Any) -> Any:
    """By more than there are bits: nothing is left, or the sign."""
    bits = 8 * a.dtype.itemsize
    by = np.minimum(b, bits - 1).astype(a.dtype)
    if head == "shr" and a.dtype.kind == "i":
        return a >> by
    return np.where(b >= bits, a.dtype.type(0), a << by if head == "shl" else a >> by)


def field(a: Any, first: Any, count: Any) -> Any:
    """bfe: `count` bits of an unsigned integer, from bit `first` on."""
    bits = np.where(count >= 8 * a.dtype.itemsize, ~a.dtype.type(0), shift("shl", a.dtype.type(1), count) - 1)
    return shift("shr", a, first) & bits.astype(a.dtype)


def convert(a: Any, to: np.dtype, parts: list[str]) -> Any:
    """cvt: floats to integers towards zero within their range."""
    if "sat" in parts:
        a = np.clip(np.where(np.isnan(a), a.dtype.type(0), a), 0, 1)
    if a.dtype.kind == "f" and to.kind in "iu":
        limits = np.iinfo(to)
        a = np.clip(np.trunc(np.where(np.isnan(a), 0, a)), limits.min, float(limits.max))
        return np.where(a >= float(limits.max), limits.max, a.astype(to)).astype(to)
    return a.astype(to)


def _result(instruction: Instruction, reads: list, compute: Callable) -> Execute:
    target = instruction.operands[0]

    def execute(run: Any, mask: Any) -> None:
        run.set(target, compute(*[read(run) for read in reads]), mask)

    return execute


def decode(instruction: Instruction) -> Execute | None:
    """How it is executed; None if it is not one of these."""
    head, parts, operands = instruction.head, instruction.parts, instruction.operands
    dtype = TYPES.get(parts[-1]) if parts else None
    if dtype is None or head in ("ld", "st", "mma", "shfl", "vote", "bar", "red", "atom"):
        return None
    reads = [source(operand, dtype) for operand in operands[1:] if "{" not in operand]
    if head == "mov":
        return _move(instruction, dtype)
    if head == "cvta":
        return _result(instruction, reads, lambda a: a)
    if head == "cvt":
        to = TYPES[next(part for part in parts if part in TYPES)]
        return _result(instruction, reads, lambda a: convert(a, to, parts))
    if head == "setp" and len(parts) == 2:
        return _result(instruction, reads, lambda a, b: compare(parts[0], a, b))
    if head == "selp":
        reads[2] = source(operands[3], TYPES["pred"])
        return _result(instruction, reads, lambda a, b, which: np.where(which, a, b))
    if head in ("shl", "shr"):
        reads[1] = source(operands[2], TYPES["u32"])
        return _result(instruction, reads, lambda a, b: shift(head, a, b))
    if head == "bfe" and dtype.kind == "u":
        reads[1:] = [source(operand, TYPES["u32"]) for operand in operands[2:]]
        return _result(instruction, reads, field)
    if head in ("mul", "mad") and parts[0] == "wide":
        wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")
        if head == "mul":
            return _result(instruction, reads, lambda a, b: a.astype(wide) * b.astype(wide))
        reads[2] = source(operands[3], wide)
        return _result(instruction, reads, lambda a, b, c: a.astype(wide) * b.astype(wide) + c)
    if parts[0] == "hi" or (set(parts) & {"rz", "rp", "cc", "approx", "ftz"} and head != "ex2"):
        return None
    if head in ("fma", "mad"):
        return _result(instruction, reads, lambda a, b, c: fused(a, b, c, "rm" in parts))
    if head == "not" and dtype.kind == "b":
        return _result(instruction, reads, np.logical_not)
    table = {1: UNARY, 2: BINARY}.get(len(reads), {})
    return _result(instruction, reads, table[head]) if head in table else None


def _move(instruction: Instruction, dtype: np.dtype) -> Execute:
    """mov, of halves to and from a pair, too."""
    target, origin = instruction.operands
    if target.startswith("{"):
        read, halves = source(origin, dtype), members(target)
        half = UNSIGNED[dtype.itemsize // len(halves)]

        def split(run: Any, mask: Any) -> None:
            whole = reinterpret(read(run), UNSIGNED[dtype.itemsize])
            for place, name in enumerate(halves):
                if name != "_":
                    run.set(name, (whole >> whole.dtype.type(8 * half.itemsize * place)).astype(half), mask)

        return split
    if origin.startswith("{"):
        names = members(origin)
        half = UNSIGNED[dtype.itemsize // len(names)]
        reads = [source(name, half) for name in names]

        def join(*parts: Any) -> Any:
            whole = UNSIGNED[dtype.itemsize]
            shifted = (part.astype(whole) << whole.type(8 * half.itemsize * k) for k, part in enumerate(parts))
            return sum(shifted, whole.type(0))

        return _result(instruction, reads, join)
    return _result(instruction, [source(origin, dtype)], lambda a: a)
