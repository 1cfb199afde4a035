"""Runs all cases for one architecture; what each kernel did, as a table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from .build import build
from .cases import cases
from .faults import Stopped
from .launches import Device
from .machine import Program


@dataclass(frozen=True)
class Report:
    """Of one architecture."""

    problems: list[str]  # failures, faults, kernels that were not run
    table: list[str]  # a line for each kernel


HEADER = "arch launches  blocks faults conflicts  slots    mma  kernel"
LEGEND = """conflicts: accesses to banks of shared memory, by how many are needed. slots: PTX instructions that a warp
issues in one round of the main loop, which the compiler turns into about as many of its own; mma: by matrix
instructions, where there are any."""


def conflicts(program: Program) -> str:
    """1.00 without any."""
    needed = sum(counts[0] for counts in program.wavefronts.values())
    return f"{sum(counts[1] for counts in program.wavefronts.values()) / needed:.2f}" if needed else ""


def main_loop(program: Program) -> tuple[float, float]:
    """(issue slots, matrix instructions) of one round of the loop whose rounds end at a barrier and issue most; of the
    innermost loop that issues most where none does. (0, 0) without a loop.
    """
    code, issued = program.kernel.code, program.issued
    loops = [(a, b) for a, b in program.kernel.loops() if issued[b]]
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]
    at_barriers = [(a, b) for a, b in loops if any(c.opcode == "bar.sync" for c in code[a : b + 1])]
    products = [i for i, c in enumerate(code) if c.head == "mma"]

    def size(loop: tuple[int, int]) -> int:
        return int(issued[loop[0] : loop[1] + 1].sum())

    # of nested loops with a barrier the innermost one
    stages = [x for x in at_barriers if not any(x[0] <= c and d <= x[1] and x != (c, d) for c, d in at_barriers)]
    chosen = max(stages or inner, key=size, default=None)
    if chosen is None:
        return 0.0, 0.0
    first, last = chosen
    rounds = issued[first]
    return size(chosen) / rounds, sum(issued[i] for i in products if first <= i <= last) / rounds


def row(architecture: str, program: Program, faults: int) -> str:
    """A line of the table."""
    slots, products = main_loop(program)
    per_product = f"{slots / products:6.1f}" if products else " " * 6
    return (
        f"{architecture:>4} {program.launches:8} {program.blocks:7} {faults:6} {conflicts(program):>9} "
        f"{f'{slots:.0f}' if slots else '':>6} {per_product}  {program.kernel.name}"
    )


def run(architecture: str) -> Report:
    """All cases on one architecture."""
    host, kernels = build([architecture])
    device = Device(host, kernels[architecture], architecture)
    problems = []
    for name, case, (tensor_cores, limits) in cases():
        try:
            with device.in_use(tensor_cores, limits):
                case()
        except (AssertionError, Stopped) as error:
            problems.append(f"fails: {name}: {error or type(error).__name__}")
    programs = [program for _, program in sorted(device.programs.items())]
    # What ends in a trap is not for this architecture.
    idle = [p for p in programs if not p.launches and all(c.head != "trap" for c in p.kernel.code)]
    problems += [*device.faults.lines(), *(f"not run: {p.kernel.name}" for p in idle)]
    return Report(problems, [row(architecture, p, device.faults.of(p.kernel.name)) for p in programs])


def run_all(architectures: Sequence[str]) -> dict[str, Report]:
    """The same on several, side by side; on those whose code is that of an earlier one nothing is run."""
    _, kernels = build(architectures)
    first = {a: next(b for b in architectures if kernels[a] == kernels[b]) for a in architectures}
    different = sorted(set(first.values()))
    with ProcessPoolExecutor(min(len(different), os.cpu_count() or 1), get_context("spawn")) as pool:
        reports = dict(zip(different, pool.map(run, different), strict=True))
    same = {a: Report([], [f"{a:>4} the same code as for {b}"]) for a, b in first.items() if a != b}
    return {a: same.get(a) or reports[a] for a in architectures}
