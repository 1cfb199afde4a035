"""Instructions that all lanes of a warp execute together: matrix products, shuffles, votes, __syncwarp.

`warps` are the numbers of those that execute one, all 32 lanes of each.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .parse import Instruction
from .values import TYPES, members, source

Execute = Callable[[Any, np.ndarray], None]  # (run, warps)

_LANE, _ALL = np.arange(32), 0xFFFFFFFF
_GROUP, _IN_GROUP = _LANE >> 2, _LANE & 3


def layout(rows: int, depth: int, matrix: str, element: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) that each lane holds as element number `element` of a fragment of A, B, or C and D: "Matrix
    fragments for mma.m8n8k4, m16n8k4, m16n8k8" in the PTX ISA, .f64 and .tf32, which agree.
    """
    if matrix == "A":
        return _GROUP + (8 * (element % 2) if rows == 16 else 0), _IN_GROUP + 4 * (element // (rows // 8))
    if matrix == "B":
        return _IN_GROUP + 4 * element, _GROUP
    return _GROUP + 8 * (element // 2), 2 * _IN_GROUP + element % 2


def towards_zero(exact: np.ndarray) -> np.ndarray:
    """float64 to float32."""
    near = exact.astype(np.float32)
    over = np.abs(near.astype(np.float64)) > np.abs(exact)
    return np.where(over, np.nextafter(near, np.float32(0)), near)


def _mma(instruction: Instruction) -> Execute | None:
    """D = A B + C. TF32: the 13 lowest bits of an input are ignored, sums are rounded towards zero."""
    shape = re.search(r"m(\d+)n8k(\d+)\.row\.col\.(f32\.tf32\.tf32\.f32|f64\.f64\.f64\.f64)$", instruction.opcode)
    if not shape or "sync.aligned" not in instruction.opcode:
        return None
    rows, depth, tf32 = int(shape[1]), int(shape[2]), "tf32" in shape[3]
    if (rows, depth) not in ((8, 4), (16, 4), (16, 8)):
        return None
    dtype = TYPES["f32" if tf32 else "f64"]
    names = dict(zip("DABC", map(members, instruction.operands), strict=True))
    sizes = {"A": rows * depth // 32, "B": depth // 4, "C": rows // 4, "D": rows // 4}
    if any(len(names[matrix]) != size for matrix, size in sizes.items()):
        return None
    reads = {m: [source(n, TYPES["b32"] if tf32 and m != "C" else dtype) for n in names[m]] for m in "ABC"}

    def matrix(run: Any, warps: np.ndarray, which: str, shape: tuple[int, int]) -> np.ndarray:
        result = np.full((len(warps), *shape), np.nan)
        for element, read in enumerate(reads[which]):
            value = run.of_warps(read(run), warps)
            if value.dtype == np.uint32:
                value = (value & np.uint32(0xFFFFE000)).view(np.float32)
            row, col = layout(rows, depth, which, element)
            result[:, row, col] = value
        return result

    def execute(run: Any, warps: np.ndarray) -> None:
        total = matrix(run, warps, "A", (rows, depth)) @ matrix(run, warps, "B", (depth, 8))
        total += matrix(run, warps, "C", (rows, 8))
        result = towards_zero(total) if tf32 else total
        for element, name in enumerate(names["D"]):
            row, col = layout(rows, depth, "D", element)
            run.set_warps(name, result[:, row, col], warps)

    return execute


def _shuffle(instruction: Instruction) -> Execute | None:
    """shfl.sync.bfly with all lanes: each lane gets the value of lane ^ mask."""
    if instruction.opcode != "shfl.sync.bfly.b32":
        return None
    name, _, valid = instruction.operands[0].partition("|")
    reads = [source(operand, TYPES["b32"]) for operand in instruction.operands[1:]]

    def execute(run: Any, warps: np.ndarray) -> None:
        values, masks, clamps, lanes = (run.of_warps(read(run), warps) for read in reads)
        if (clamps != 31).any() or (lanes != _ALL).any():
            run.faults.stop("not with all lanes")
        run.set_warps(name, np.take_along_axis(values, (_LANE ^ masks).astype(np.int64), 1), warps)
        if valid:
            run.set_warps(valid, np.ones(values.shape, bool), warps)

    return execute


def _vote(instruction: Instruction) -> Execute | None:
    """vote.sync.ballot with all lanes: a bit of each."""
    name, predicate, lanes_named = instruction.operands
    if instruction.opcode != "vote.sync.ballot.b32":
        return None
    read, read_lanes = source(predicate, TYPES["pred"]), source(lanes_named, TYPES["u32"])

    def execute(run: Any, warps: np.ndarray) -> None:
        if (run.of_warps(read_lanes(run), warps) != _ALL).any():
            run.faults.stop("not with all lanes")
        bits = (run.of_warps(read(run), warps).astype(np.uint32) << _LANE.astype(np.uint32)).sum(1, dtype=np.uint32)
        run.set_warps(name, np.repeat(bits[:, None], 32, 1), warps)

    return execute


def _sync(instruction: Instruction) -> Execute | None:
    """bar.warp.sync: memory accesses before it come before those after it."""
    read = source(instruction.operands[0], TYPES["u32"])

    def execute(run: Any, warps: np.ndarray) -> None:
        if (run.of_warps(read(run), warps) != _ALL).any():
            run.faults.stop("not with all lanes")
        run.shared.warp_barriers[warps] += 1

    return execute


def decode(instruction: Instruction) -> Execute | None:
    """How it is executed; None if it is not one of these, or in a form that is not supported."""
    if instruction.opcode == "bar.warp.sync":
        return _sync(instruction)
    kinds = {"mma": _mma, "shfl": _shuffle, "vote": _vote}
    return kinds[instruction.head](instruction) if instruction.head in kinds else None
