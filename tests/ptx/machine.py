"""Runs a launch: lanes of all its blocks together, those at the smallest instruction first.

Threads need no lockstep: a lane waits at an instruction of the whole warp until the others of its warp are there, at a
barrier until those of its block are. Where nobody can go on, the kernel would hang, or worse, on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from . import access, arithmetic, warps
from .faults import Faults
from .memory import Memory
from .parse import Instruction, Kernel
from .shared import Shared, wavefronts
from .values import UNSIGNED, source

LANES = 1 << 14  # that are run at a time, at least one block
MOST_STEPS = 1 << 22  # of a launch
RUNS, AT_WARP, AT_BARRIER, DONE = range(4)
_PARAMETER = 1 << 16  # distance of the addresses of two parameters
PARAMETERS = 1 << 30  # address of the first


@dataclass
class Program:
    """A kernel, decoded, and what has been counted over all its launches."""

    kernel: Kernel
    launches: int = 0
    blocks: int = 0
    issued: np.ndarray = field(init=False)  # by warps, of each instruction
    wavefronts: dict[int, list[int]] = field(default_factory=dict)  # of each access to shared memory: needed, taken

    def __post_init__(self) -> None:
        self.issued = np.zeros(len(self.kernel.code), np.int64)

    @cached_property
    def alone(self) -> list[arithmetic.Execute | None]:
        """How each lane executes an instruction for itself, where it does."""
        return [access.decode(c) or arithmetic.decode(c) for c in self.kernel.code]

    @cached_property
    def together(self) -> list[warps.Execute | None]:
        """How whole warps execute one, where they do."""
        return [warps.decode(c) for c in self.kernel.code]

    @cached_property
    def predicates(self) -> list[Callable | None]:
        """How its predicate is read, where it has one."""
        return [source(c.predicate, np.dtype(bool)) if c.predicate else None for c in self.kernel.code]


def launch(
    program: Program,
    blocks: int,
    threads: int,
    shared: int,
    arguments: Sequence[bytes],
    memory: Memory,
    faults: Faults,
) -> None:
    """One launch. Raises Stopped where it cannot go on."""
    faults.kernel, faults.instruction = program.kernel.name, ""
    if len(arguments) != program.kernel.parameters:
        faults.stop(f"{program.kernel.parameters} parameters, launched with {len(arguments)}")
    memory.launches += 1
    program.launches += 1
    program.blocks += blocks
    at_a_time = max(1, LANES // threads)
    for first in range(0, blocks, at_a_time):
        count = min(at_a_time, blocks - first)
        Run(program, first, count, blocks, threads, shared, arguments, memory, faults).run()


class Run:
    """Blocks first, ..., first + count - 1 of a launch."""

    def __init__(
        self,
        program: Program,
        first: int,
        count: int,
        grid: int,
        threads: int,
        shared: int,
        arguments: Sequence[bytes],
        memory: Memory,
        faults: Faults,
    ) -> None:
        self._program, self._code, self.faults, self._memory = program, program.kernel.code, faults, memory
        self.threads, self.grid, self.lanes = threads, grid, count * threads
        self.tid = np.tile(np.arange(threads, dtype=np.uint32), count)
        self.ctaid = np.repeat(np.arange(first, first + count, dtype=np.uint32), threads)
        self._all = np.arange(self.lanes)
        self._thread = (memory.launches << 32) + first * threads + self._all  # as memory knows it
        self.shared = Shared(count, threads, shared, faults)
        self._arguments = arguments
        self.parameter_addresses = [PARAMETERS + k * _PARAMETER for k in range(len(arguments))]
        self._registers: dict[str, Any] = {}
        self._pc = np.zeros(self.lanes, np.int64)
        self._state = np.full(self.lanes, RUNS, np.int8)
        self.groups = np.zeros(self.lanes, np.int64)  # of cp.async, that each lane has committed
        self.copies: list[tuple[np.ndarray, ...]] = []  # on their way: group, lane, target, value of each
        self._steps = 0
        self._seen: set[int] = set()  # accesses whose bank conflicts have been counted

    # ------------------------------------------------------------------------------------------- values of lanes

    def register(self, name: str) -> Any:
        """What is in it; a scalar where all lanes have the same."""
        value = self._registers.get(name)
        if value is None:
            self.faults.stop(f"reads register {name}, which nobody has written")
        return value

    def set(self, name: str, value: Any, mask: Any) -> None:
        """Writes a register in the lanes of a mask; None: all."""
        width = self._program.kernel.width(name)
        if width and value.dtype.itemsize != width:
            signed = value.dtype.kind == "i"
            value = value.astype(f"i{width}" if signed else UNSIGNED[width])
        if mask is not None:
            old = self._registers.get(name)
            if old is None:
                old = np.full(self.lanes, -1, np.int64).view(np.uint8)[: self.lanes * max(width, 1)]
                old = old.view(value.dtype) if width else np.zeros(self.lanes, bool)
            elif old.dtype != value.dtype:
                old = old.view(value.dtype)
            value = np.where(mask, value, old)
        self._registers[name] = value

    def of_lanes(self, value: Any, lanes: np.ndarray) -> np.ndarray:
        """Its elements of these lanes."""
        return np.full(len(lanes), value) if np.ndim(value) == 0 else value[lanes]

    def set_lanes(self, name: str, values: np.ndarray, lanes: np.ndarray, mask: Any) -> None:
        """Writes a register in these lanes, which are those of the mask."""
        if mask is not None:
            whole = np.zeros(self.lanes, values.dtype)
            whole[lanes] = values
            values = whole
        self.set(name, values, mask)

    def of_warps(self, value: Any, numbers: np.ndarray) -> np.ndarray:
        """Its elements of these warps, a row each."""
        return np.broadcast_to(value, self.lanes).reshape(-1, 32)[numbers]

    def set_warps(self, name: str, values: np.ndarray, numbers: np.ndarray) -> None:
        """Writes a register in all lanes of these warps."""
        whole = np.zeros((self.lanes // 32, 32), values.dtype)
        whole[numbers] = values
        mask = np.zeros(self.lanes // 32, bool)
        mask[numbers] = True
        self.set(name, whole.reshape(-1), None if mask.all() else np.repeat(mask, 32))

    def present(self, mask: Any) -> np.ndarray:
        """The mask, also where it is None: all lanes."""
        return np.ones(self.lanes, bool) if mask is None else mask

    # ------------------------------------------------------------------------------------------------- memory

    def parameter(self, addresses: Any, dtype: np.dtype, mask: Any) -> Any:
        """Values of the kernel's parameters; 0 in lanes that are not asked for."""
        if np.ndim(addresses):
            values = np.zeros(self.lanes, dtype)
            for address in np.unique(addresses[self.present(mask)]):
                values[addresses == address] = self.parameter(address, dtype, None)
            return values
        number, offset = divmod(int(addresses) - PARAMETERS, _PARAMETER)
        if not 0 <= number < len(self._arguments) or offset + dtype.itemsize > len(self._arguments[number]):
            self.faults.add("out of the bounds of a parameter")
            return dtype.type(0)
        return np.frombuffer(self._arguments[number], dtype, 1, offset)[0]

    def accessed(self, addresses: Any, mask: Any, space: str, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(lanes, their addresses) of an access, aligned to its whole size."""
        lanes = self._all if mask is None else np.flatnonzero(mask)
        addresses = self.of_lanes(addresses, lanes)
        if (addresses % size).any():
            self.faults.add("misaligned", np.count_nonzero(addresses % size))
        if space == "shared" and self._at not in self._seen:
            self._seen.add(self._at)
            few = lanes < 32 * 32
            if few.any():
                taken, needed = wavefronts(lanes[few], addresses[few], size)
                counts = self._program.wavefronts.setdefault(self._at, [0, 0])
                counts[0] += needed
                counts[1] += taken
        return lanes, addresses

    def read(self, space: str, lanes: np.ndarray, addresses: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Elements of shared or global memory."""
        if space == "shared":
            return self.shared.read(lanes, addresses, dtype)
        return self._memory.read(self._thread[lanes], addresses, dtype)

    def write(self, space: str, lanes: np.ndarray, addresses: np.ndarray, values: np.ndarray) -> None:
        """The same way round."""
        if space == "shared":
            self.shared.write(lanes, addresses, values)
        else:
            self._memory.write(self._thread[lanes], addresses, values)

    # ----------------------------------------------------------------------------------------------- execution

    def run(self) -> None:
        """To the end of all threads. Raises Stopped where they do not get there."""
        with np.errstate(all="ignore"):
            while True:
                runs = self._state == RUNS
                if runs.any():
                    here = int(self._pc[runs].min())
                    group = runs & (self._pc == here)
                    behind = self._pc[runs & ~group]
                    self._advance(here, group, int(behind.min()) if len(behind) else len(self._code))
                elif (self._state == DONE).all():
                    return
                else:
                    self._release()

    def _advance(self, pc: int, group: np.ndarray, stop: int) -> None:
        """Runs the lanes of a group, all at `pc`, until they part, wait, end, or reach instruction `stop`."""
        program, mask = self._program, None if group.all() else group
        warps_in_hand = np.count_nonzero(group.reshape(-1, 32).any(1))
        while pc != stop:
            instruction = self._code[pc]
            self._at, self.faults.instruction, self._steps = pc, instruction.text, self._steps + 1
            if self._steps > MOST_STEPS:
                self.faults.stop("does not end")
            program.issued[pc] += warps_in_hand
            active = self._active(pc, mask)
            if instruction.head == "bra":
                target = program.kernel.labels[instruction.operands[0]]
                taken = group if active is None else active
                if not taken.any():
                    pc += 1
                elif (taken == group).all():
                    pc = target
                    if pc > stop:  # others run first
                        break
                else:
                    self._pc[group] = pc + 1
                    self._pc[taken] = target
                    return
            elif execute := program.alone[pc]:
                if active is None or active.any():
                    execute(self, active)
                pc += 1
            else:
                self._meet(pc, instruction, group, group if active is None else active)
                if not ((self._state == RUNS) & group == group).all() or not (self._pc[group] == pc + 1).all():
                    return
                pc += 1
        self._pc[group] = pc

    def _active(self, pc: int, mask: Any) -> Any:
        """The lanes that execute an instruction: those of the mask whose predicate holds."""
        if (predicate := self._program.predicates[pc]) is None:
            return mask
        holds = predicate(self) ^ self._code[pc].negated
        if np.ndim(holds) == 0:
            return mask if holds else np.zeros(self.lanes, bool)
        if mask is None:
            return None if holds.all() else holds
        return holds & mask

    def _meet(self, pc: int, instruction: Instruction, group: np.ndarray, active: np.ndarray) -> None:
        """What ends a thread, or waits for others. Lanes whose predicate does not hold go on."""
        self._pc[group] = pc + 1
        if instruction.head in ("ret", "exit"):
            self._state[active] = DONE
        elif instruction.opcode in ("bar.sync", "barrier.sync") and instruction.operands == ("0",):
            self._pc[active], self._state[active] = pc, AT_BARRIER
        elif execute := self._program.together[pc]:
            there = active | ((self._state == AT_WARP) & (self._pc == pc))
            whole = there.reshape(-1, 32).all(1)
            self._pc[active], self._state[active] = pc, AT_WARP
            if whole.any():
                execute(self, np.flatnonzero(whole))
                going = np.repeat(whole, 32)
                self._pc[going], self._state[going] = pc + 1, RUNS
        elif active.any():
            self.faults.stop("an instruction that tests/ptx does not know")

    def _release(self) -> None:
        """Lets the blocks go on whose threads are all at the same barrier. Raises Stopped where none is."""
        pc, state = self._pc.reshape(-1, self.threads), self._state.reshape(-1, self.threads)
        together = (state == AT_BARRIER).all(1) & (pc == pc[:, :1]).all(1)
        if not together.any():
            where = {self._code[p].text for p in self._pc[(self._state == AT_WARP) | (self._state == AT_BARRIER)]}
            gone = ", and some have ended" if (self._state == DONE).any() else ""
            self.faults.instruction = "; ".join(sorted(where))
            self.faults.stop(f"threads wait at different places{gone}")
        pc[together] += 1
        state[together] = RUNS
        self.shared.barriers[together] += 1
