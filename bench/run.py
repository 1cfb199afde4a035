"""One run: check every method on every case, then time, then weigh.

A report is a dictionary, as in its JSON file. `datetime`, `machine_info`, `commit_info` and `settings` are its origin.
`benchmarks` has one entry per case (`group`) and method (`name`), with `params`, `stats` and `extra_info`. `peaks` are
by thread count. `missing` has the methods that are not installed, and `failed` those that stopped or disagreed with
float64.
"""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from . import cases, machine, measure, methods

# A method farther than this from float64 is wrong, and is not timed. The tests hold hessext to tighter bounds.
AGREES = {"float32": 1e-5, "float64": 1e-11}
REPEATS, QUICK_REPEATS, BUDGET, QUICK_BUDGET = 5, 3, 10.0, 0.5
Report = dict
Tick = Callable[[str], None]  # is told what comes next


@dataclass(frozen=True)
class Settings:
    """What to run. Thread counts after the first are for hessext alone."""

    cases: tuple[str, ...]
    methods: tuple[str, ...]
    dtype: str = "float32"
    device: str = "cpu"
    threads: tuple[int, ...] = (2,)
    isas: bool = False
    repeats: int = REPEATS
    budget: float = BUDGET  # seconds of timing per method and case
    quick: bool = False
    memory: bool = True

    def entries(self) -> dict[str, methods.Entry]:
        """The methods to run, by name."""
        known = methods.known(self.device, self.threads[1:], self.isas)
        return {name: entry for name, entry in known.items() if name in self.methods}


def run(
    settings: Settings, tick: Tick = lambda what: None, save: Callable[[Report], None] = lambda report: None
) -> Report:
    """Run all cases, and return the report; `save` is called with it after every case."""
    torch.set_num_threads(settings.threads[0])
    if torch.device(settings.device).index is not None:
        torch.cuda.set_device(settings.device)  # events and memory are the current device's
    report: Report = {
        "datetime": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine_info": machine.describe(settings.device, settings.threads[0]),
        "commit_info": _commit(),
        "settings": asdict(settings),
        "missing": methods.missing(),
        "failed": [],
        "peaks": {},
        "benchmarks": [],
    }
    _probe(report, settings, tick)
    for name in settings.cases:
        case = cases.CASES[name]
        run_case(case.quick() if settings.quick else case, settings, report, tick)
        gc.collect()
        save(report)
    _probe(report, settings, tick)  # the better of both probes, so that no method exceeds the roofline
    save(report)
    return report


def _probe(report: Report, settings: Settings, tick: Tick) -> None:
    for count in settings.threads:
        tick(f"peaks, {count} threads")
        with methods.threads_set(count):
            found = asdict(machine.peaks(getattr(torch, settings.dtype), settings.device, settings.quick))
        before = report["peaks"].get(str(count), found)
        report["peaks"][str(count)] = {key: max(rate, before[key]) for key, rate in found.items()}


def _commit() -> dict[str, object]:
    """The commit of the clone, and whether sources differ from it; None without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    try:
        return {"id": git("rev-parse", "HEAD") or None, "dirty": bool(git("status", "--porcelain", "csrc", "hessext"))}
    except OSError:
        return {"id": None, "dirty": None}


def run_case(case: cases.Case, settings: Settings, report: Report, tick: Tick) -> None:
    """Check, time and weigh the methods on one case, and add them to the report."""
    problem = cases.make(case, getattr(torch, settings.dtype), settings.device)
    entries = {
        name: entry
        for name, entry in settings.entries().items()
        if entry.applies(case) and (not case.methods or name in case.methods)
    }
    ready, errors = {}, {}
    tick(f"{case.name}: float64")
    truth = methods.reference(problem)
    for name, entry in entries.items():
        tick(f"{case.name}: check {name}")
        try:
            method = entry.make(problem)
            errors[name] = methods.relative_error(method.in_order(method.call()), truth, method.rows)
        except Exception as error:  # of a peer, or for lack of memory; the other methods are run
            _failed(report, case, name, f"{type(error).__name__}: {error}".splitlines()[0])
            continue
        if errors[name] <= AGREES[settings.dtype]:
            ready[name] = method
        else:
            _failed(report, case, name, f"disagrees with float64: relative error {errors[name]:.1e}")
    del truth

    clock = measure.clock_of(settings.device)
    calls = {name: method.call for name, method in ready.items()}
    timings = measure.interleave(
        calls, clock, settings.repeats, settings.budget, lambda name: tick(f"{case.name}: time {name}")
    )
    inputs = sum(t.numel() * t.element_size() for t in problem.tensors)
    work = {"flops": cases.necessary_flops(problem), "bytes": cases.necessary_bytes(problem)}
    for name, method in ready.items():
        extra = {
            "title": case.title,
            "about": case.group,
            "varied": case.varied,
            "error": errors[name],
            "note": method.note,
            "sampled": method.rows is not None,
            "threads": entries[name].threads or settings.threads[0],
            **work,
        }
        if settings.memory and entries[name].weighed and case.group != "growth":
            tick(f"{case.name}: memory of {name}")
            extra["memory"] = _memory(case.name, name, method, settings)
            extra["memory_allowed"] = measure.allowed_memory(case, inputs, problem.x.element_size())
        sizes = case.sizes._asdict() | {"m": list(case.sizes.hidden) if case.deep else case.sizes.m}
        sizes |= {"part": case.part, "quantity": case.quantity, "loss": case.loss}
        report["benchmarks"].append(
            {
                "group": case.name,
                "name": name,
                "fullname": f"{case.name}[{name}]",
                "params": sizes,
                "stats": stats([s * method.scale for s in timings[name].seconds]),
                "extra_info": extra,
            }
        )


def _memory(case: str, name: str, method: methods.Method, settings: Settings) -> int | None:
    """Peak bytes beyond the result; on a CPU in a process of its own, whose allocator is still empty."""
    if torch.device(settings.device).type == "cuda":
        return measure.peak_memory(method.call, settings.device)
    order = (case, name, settings.dtype, settings.device, settings.threads[0], settings.quick)
    return measure.weigh_apart(measure.Weighing(*order))


def _failed(report: Report, case: cases.Case, name: str, reason: str) -> None:
    report["failed"].append({"name": name, "fullname": f"{case.name}[{name}]", "reason": reason})


def stats(seconds: list[float]) -> dict[str, object]:
    """Median and quartiles of the rounds, their number, and the data."""
    first, median, third = measure.quartiles(seconds)
    return {"median": median, "q1": first, "q3": third, "rounds": len(seconds), "data": seconds}
