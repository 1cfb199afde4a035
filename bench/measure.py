"""Clocks, memory, the machine, and the peak that rates are compared with.

As a program (`python -m bench.measure CASE METHOD DTYPE THREADS QUICK`) it runs one method once in this fresh
process and prints its peak memory as JSON.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

SHORTEST = 0.005  # seconds; quicker calls are repeated inside one timing, so the clock does not matter
INPUT_FACTOR, INPUT_SLACK = 1.2, 64 << 20  # allowed peak beyond the result: 1.2 times the inputs plus 64 MiB


@dataclass
class Timings:
    """Seconds per whole result, one entry per round."""

    seconds: list[float] = field(default_factory=list)
    inner: int = 1  # calls in one timing

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile; the extremes where there are fewer than three rounds."""
        if len(self.seconds) < 3:
            return min(self.seconds), max(self.seconds)
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third


def clock(call: Callable[[], Tensor], inner: int = 1) -> float:
    """Seconds per call. Each result is freed outside the clock, so every call writes to fresh memory."""
    if inner == 1:
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
        del result
        return seconds
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return (time.perf_counter() - start) / inner


def inner_calls(seconds: float) -> int:
    """How many calls of that length one timing should hold."""
    return max(1, min(1000, math.ceil(SHORTEST / seconds)))


def interleave(
    calls: dict[str, Callable[[], Tensor]], repeats: int, budget: float, tick: Callable[[str], None]
) -> dict[str, Timings]:
    """Time A, B, C, A, B, C ... `repeats` times. A method that has used `budget` seconds sits out the rest.

    Every call must have run before: nothing here is a warm-up.
    """
    timings = {name: Timings() for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    for round_ in range(repeats):
        for name, call in calls.items():
            if spent[name] < budget:
                tick(name)
                if round_ == 0:
                    timings[name].inner = inner_calls(clock(call))
                seconds = clock(call, timings[name].inner)
                timings[name].seconds.append(seconds)
                spent[name] += seconds * timings[name].inner
    return timings


def ratio(slow: Timings, fast: Timings) -> float:
    """Median over the common rounds of slow / fast: the two ran seconds apart, so drifts cancel."""
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=False))


# --------------------------------------------------------------------------------------------- memory


def status_bytes(key: str) -> int:
    """One line of /proc/self/status (VmHWM, VmRSS) in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def peak_memory(call: Callable[[], Tensor]) -> dict[str, int]:
    """Peak resident bytes while `call` runs, beyond what was there before it and beyond its result.

    Linux only: the kernel's high-water mark is reset first through /proc/self/clear_refs.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    result = call()
    after = status_bytes("VmHWM")
    size = result.numel() * result.element_size()
    return {"peak": after - before, "result": size, "beyond": max(0, after - before - size)}


def peak_memory_apart(case: str, method: str, dtype: str, threads: int, quick: bool) -> dict[str, int] | None:
    """`peak_memory` in a fresh process; None where that cannot be measured."""
    arguments = [case, method, dtype, str(threads), str(int(quick))]
    done = subprocess.run(
        [sys.executable, "-m", "bench.measure", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"memory of {method} on {case}: not measured\n{done.stderr.strip()[-500:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


# -------------------------------------------------------------------------------------------- machine


def machine(threads: int) -> dict[str, object]:
    """Describe what the figures are taken on."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        flags = next(line.split()[2:] for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = []
    try:
        from hessext import __version__ as version
    except ImportError:
        version = None
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "simd": [f for f in ("avx2", "fma", "avx512f", "asimd", "sve") if f in flags],
        "torch": torch.__version__,
        "torch_simd": torch.backends.cpu.get_cpu_capability(),
        "hessext": version,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": os.getloadavg()[0],
    }


def matmul_peak(dtype: torch.dtype, quick: bool = False, tries: int = 4) -> float:
    """Best flop/s of torch.matmul on square and on tall operands, at this process's thread count."""
    n = 1024 if quick else 2048
    best = 0.0
    for rows, inner, columns in ((n, n, n), (2 * n, n // 2, 2 * n), (n // 4, 2 * n, 2 * n)):
        left, right = torch.rand(rows, inner, dtype=dtype), torch.rand(inner, columns, dtype=dtype)
        out = torch.empty(rows, columns, dtype=dtype)
        for _ in range(tries):
            seconds = clock(lambda left=left, right=right, out=out: torch.mm(left, right, out=out))
            best = max(best, 2 * rows * inner * columns / seconds)
    return best


def _main() -> None:
    from . import cases, methods

    case_name, method_name, dtype, threads, quick = sys.argv[1:]
    torch.set_num_threads(int(threads))
    case = cases.CASES[case_name]
    prepare = methods.known()[method_name]
    prepare(cases.make(case.quick(), getattr(torch, dtype))).call()  # libraries, thread pools and caches
    problem = cases.make(case.quick() if int(quick) else case, getattr(torch, dtype))
    method = prepare(problem)
    if method_name.endswith("out="):  # its result is there before the call
        raise SystemExit("the result is reused: measure the fresh one")
    answer = peak_memory(method.call)
    answer["inputs"] = sum(t.numel() * t.element_size() for t in problem.tensors)
    answer["allowed"] = int(INPUT_FACTOR * answer["inputs"] + INPUT_SLACK)
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
