"""Runs all cases for one architecture; what each kernel did, as a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from .build import build
from .cases import cases
from .faults import Stopped
from .launches import Device
from .machine import Program
from .parse import Kernel


@dataclass(frozen=True)
class Report:
    """Of one architecture."""

    problems: list[str]  # failures, faults, kernels that were not run
    table: list[str]  # a line for each kernel


HEADER = "arch launches  blocks faults  slots    mma   loop   else  kernel"
LEGEND = """slots: PTX instructions that a warp issues in one round of the main loop; the compiler makes about as many
of its own; mma: by matrix instructions, where there are any. loop, else: accesses to banks of shared memory for each
that is needed, in the main loop and elsewhere; 1 without conflicts."""


def main_loop(program: Program) -> tuple[int, int] | None:
    """(first, last) instruction of the loop that issues most: of those with a barrier, else of the innermost ones."""
    code = program.kernel.code
    loops = [(a, b) for a, b in program.kernel.loops() if program.issued[b]]
    stages = [(a, b) for a, b in loops if any(c.opcode == "bar.sync" for c in code[a : b + 1])]

    def innermost(some: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [(a, b) for a, b in some if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in some)]

    def issued(loop: tuple[int, int]) -> int:
        return int(program.issued[loop[0] : loop[1] + 1].sum())

    return max(innermost(stages) or innermost(loops), key=issued, default=None)


def _conflicts(program: Program, where: Callable[[int], bool]) -> str:
    counts = [count for at, count in program.wavefronts.items() if where(at)]
    return f"{sum(taken for _, taken in counts) / sum(needed for needed, _ in counts):.2f}" if counts else ""


def row(architecture: str, program: Program, faults: int) -> str:
    """A line of the table."""
    first, last = main_loop(program) or (0, -1)
    issued, rounds = program.issued[first : last + 1], program.issued[first] if last >= 0 else 1
    products = sum(n for n, c in zip(issued, program.kernel.code[first:], strict=False) if c.head == "mma")
    slots = f"{issued.sum() / rounds:.0f}" if last >= 0 else ""
    by_product = f"{issued.sum() / products:.1f}" if products else ""
    inside, outside = (_conflicts(program, lambda at, i=i: (first <= at <= last) == i) for i in (True, False))
    return (
        f"{architecture:>4} {program.launches:8} {program.blocks:7} {faults:6} {slots:>6} {by_product:>6} "
        f"{inside:>6} {outside:>6}  {program.kernel.name}"
    )


def _for_tensor_cores(kernel: Kernel) -> bool:
    """Whether it ends in a trap, or prepares for one that does, where there are none."""
    return kernel.name == "find_small_stages" or any(c.head == "trap" for c in kernel.code)


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
    no_tensor_cores = int(architecture) < 80
    idle = [p for p in programs if not p.launches and not (no_tensor_cores and _for_tensor_cores(p.kernel))]
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
