"""Clocks and memory, on the CPU and on a GPU."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from . import cases, methods

SHORTEST = 0.005  # seconds of one timing; shorter calls are repeated in it, so that the clock's resolution is enough
# Memory of a call of hessext beyond its result: docs/conventions.md.
INPUT_FACTOR, SLACK, GRAM_SLACK, KEPT = 1.2, 64 << 20, 512 << 20, 512 << 20

Call = Callable[[], Tensor]
Clock = Callable[[Call, int], float]  # seconds per call, of some calls in a row


@dataclass
class Timings:
    """Seconds per call, one entry per round."""

    seconds: list[float] = field(default_factory=list)
    inner: int = 1  # calls in one timing


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile; with fewer than three rounds, the extremes and the median."""
    if len(seconds) < 3:
        return min(seconds), statistics.median(seconds), max(seconds)
    return tuple(statistics.quantiles(seconds, n=4, method="inclusive"))


def cpu_clock(call: Call, inner: int = 1) -> float:
    """Wall time per call. A single call's result is freed after the clock stops: each one writes to fresh memory."""
    start = time.perf_counter()
    for _ in range(inner):
        result = call()
    seconds = (time.perf_counter() - start) / inner
    del result
    return seconds


def cuda_clock(call: Call, inner: int = 1) -> float:
    """Time per call between two events on the current stream, which is idle before: late launches count as well."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(inner):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / inner


def clock_of(device: str) -> Clock:
    """The clock for calls on that device."""
    return cuda_clock if torch.device(device).type == "cuda" else cpu_clock


def interleave(
    calls: dict[str, Call], clock: Clock, repeats: int, budget: float, tick: Callable[[str], None]
) -> dict[str, Timings]:
    """Time the methods in turn, A, B, C, A, B, C, ..., in `repeats` rounds.

    A method that has used `budget` seconds is left out of further rounds. Every call must have run once before, as
    there is no warm-up.
    """
    timings = {name: Timings() for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    for round_ in range(repeats):
        for name, call in calls.items():
            if spent[name] >= budget:
                continue
            tick(name)
            seconds = clock(call, timings[name].inner)
            if round_ == 0 and seconds < SHORTEST:
                timings[name].inner = min(1000, math.ceil(SHORTEST / seconds))
                seconds = clock(call, timings[name].inner)
            timings[name].seconds.append(seconds)
            spent[name] += seconds * timings[name].inner
    return timings


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median of slow / fast over the common rounds. Within a round both ran seconds apart, so that drifts cancel."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=False))


# ------------------------------------------------------------------------------------------------------------- memory


def status_bytes(key: str) -> int:
    """One entry of /proc/self/status (VmHWM, VmRSS), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def peak_memory(call: Call, device: str) -> int:
    """Peak bytes while `call` runs, beyond the memory in use before it and beyond its result.

    On a GPU these are bytes of torch's allocator. On a CPU they are resident bytes, on Linux only, where
    /proc/self/clear_refs resets the kernel's high-water mark.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        after = torch.cuda.max_memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = status_bytes("VmRSS")
        result = call()
        after = status_bytes("VmHWM")
    size = result.numel() * result.element_size() if result.device.type == torch.device(device).type else 0
    return max(0, after - before - size)


@dataclass(frozen=True)
class Weighing:
    """The measurement that a process is to make, by names, as these can be pickled."""

    case: str
    method: str
    dtype: str
    device: str
    threads: int
    quick: bool


def weigh(order: Weighing) -> int:
    """Peak memory of a method on a case in this process, after a small run that loads libraries and thread pools."""
    torch.set_num_threads(order.threads)
    case, dtype = cases.CASES[order.case], getattr(torch, order.dtype)
    make = methods.known(order.device)[order.method].make
    if case.small:
        make(cases.make(case.quick(), dtype, order.device)).call()
    problem = cases.make(case.quick() if order.quick else case, dtype, order.device)
    return peak_memory(make(problem).call, order.device)


def _answer(pipe, order: Weighing) -> None:
    pipe.send(weigh(order))


def weigh_apart(order: Weighing) -> int | None:
    """`weigh` in a fresh process, or None if it fails. Torch is loaded once, by the fork server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.methods", "hessext"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, order))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:  # it failed, and has printed why
        return None
    finally:
        process.join()


def allowed_memory(case: cases.Case, inputs: int, itemsize: int) -> int:
    """Bytes that a call of hessext may take beyond its result, for so many bytes of inputs, where memory is free."""
    if case.quantity not in ("norms", "ratio", "approximations"):
        return int(INPUT_FACTOR * inputs + SLACK)
    kept = KEPT if case.deep else case.sizes.N * case.sizes.C * itemsize
    return int(INPUT_FACTOR * inputs + GRAM_SLACK + kept)
