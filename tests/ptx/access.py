"""Instructions that access memory: ld, st, and cp.async with its groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .parse import Instruction
from .values import TYPES, UNSIGNED, address, members, source

Execute = Callable[[Any, Any], None]  # (run, mask): mask None for all lanes


def _vector(parts: list[str]) -> int:
    return next((int(part[1]) for part in parts if part in ("v2", "v4")), 1)


def _load(instruction: Instruction) -> Execute | None:
    parts = instruction.parts
    space = next((part for part in parts if part in ("param", "shared", "global")), None)
    dtype, where, names = TYPES[parts[-1]], address(instruction.operands[1]), members(instruction.operands[0])
    if space is None or len(names) != _vector(parts) or set(parts) & {"volatile", "acquire", "relaxed"}:
        return None
    if space == "param":

        def parameter(run: Any, mask: Any) -> None:
            start = where(run)
            for k, name in enumerate(names):
                run.set(name, run.parameter(start + k * dtype.itemsize, dtype, mask), mask)

        return parameter

    def execute(run: Any, mask: Any) -> None:
        lanes, addresses = run.accessed(where(run), mask, space, dtype.itemsize * len(names))
        for k, name in enumerate(names):
            read = run.read(space, lanes, addresses + k * dtype.itemsize, dtype)
            run.set_lanes(name, read, lanes, mask)

    return execute


def _store(instruction: Instruction) -> Execute | None:
    parts = instruction.parts
    space = next((part for part in parts if part in ("shared", "global")), None)
    dtype, where, names = TYPES[parts[-1]], address(instruction.operands[0]), members(instruction.operands[1])
    if space is None or len(names) != _vector(parts) or set(parts) & {"volatile", "release", "relaxed"}:
        return None
    reads = [source(name, dtype) for name in names]

    def execute(run: Any, mask: Any) -> None:
        lanes, addresses = run.accessed(where(run), mask, space, dtype.itemsize * len(names))
        for k, read in enumerate(reads):
            run.write(space, lanes, addresses + k * dtype.itemsize, run.of_lanes(read(run), lanes))

    return execute


def _copy(instruction: Instruction) -> Execute | None:
    """cp.async [shared], [global], size{, bytes to read}: the rest is zero. It arrives when the lane waits for it."""
    to, origin, size, *rest = instruction.operands
    if instruction.parts[1] not in ("ca", "cg") or instruction.parts[-2:] != ["shared", "global"]:
        return None
    unit, where, from_where = UNSIGNED[4], address(to), address(origin)
    count = source(rest[0], TYPES["u32"]) if rest else lambda run: np.uint32(int(size))

    def execute(run: Any, mask: Any) -> None:
        lanes, targets = run.accessed(where(run), mask, "shared", int(size))
        _, origins = run.accessed(from_where(run), mask, "global", int(size))
        bytes_read = run.of_lanes(count(run), lanes)
        for at in range(0, int(size), 4):
            reads = bytes_read > at
            values = np.zeros(len(lanes), unit)
            if reads.any():
                values[reads] = run.read("global", lanes[reads], origins[reads] + at, unit)
            run.shared.write(lanes, targets + at, np.full(len(lanes), 0xFFFFFFFF, unit), arrived=False)
            run.copies.append((run.groups[lanes], lanes, targets + at, values))

    return execute


def _commit(run: Any, mask: Any) -> None:
    run.groups[slice(None) if mask is None else mask] += 1


def _wait(allowed: int) -> Execute:
    """All but the last `allowed` groups of a lane have arrived; -1: the one not committed has, too."""

    def execute(run: Any, mask: Any) -> None:
        waiting, left = run.present(mask), []
        for groups, lanes, targets, values in run.copies:
            come = waiting[lanes] & (groups < run.groups[lanes] - allowed)
            if come.any():
                run.shared.write(lanes[come], targets[come], values[come])
            if not come.all():
                left.append(tuple(array[~come] for array in (groups, lanes, targets, values)))
        run.copies = left

    return execute


def decode(instruction: Instruction) -> Execute | None:
    """How it is executed; None if it is not one of these, or in a form that is not supported."""
    if instruction.head == "ld":
        return _load(instruction)
    if instruction.head == "st":
        return _store(instruction)
    if instruction.opcode == "cp.async.commit_group":
        return _commit
    if instruction.opcode in ("cp.async.wait_group", "cp.async.wait_all"):
        return _wait(int(instruction.operands[0]) if instruction.operands else -1)
    return _copy(instruction) if instruction.opcode.startswith("cp.async.c") else None
