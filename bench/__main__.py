"""`python -m bench`: methods x cases, timed only after they agree; a table, and JSON on request."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from . import cases, measure, methods

# A method farther than this from float64 is wrong and is not timed; the tests hold hessext to tighter bounds.
AGREES = {"float32": 1e-5, "float64": 1e-11}
BASELINES = ("plain", "careful")
Tick = Callable[[str], None]  # says what comes next, for the progress bar


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = list(cases.CASES)
    some = {"nargs": "+", "metavar": "NAME"}
    parser.add_argument("--case", **some, choices=names, default=names, help=f"any of {', '.join(names)} (all)")
    parser.add_argument("--method", **some, help="hessext, 'hessext out=', careful, plain, autograd (all)")
    parser.add_argument(
        "--isa", choices=["best", "all"], default="best", help="all: also each instruction set alone (best)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of torch and hessext (2)")
    parser.add_argument("--dtype", choices=list(AGREES), default="float32")
    parser.add_argument("--repeats", type=int, default=None, help="interleaved rounds (5; 3 with --quick)")
    parser.add_argument("--budget", type=float, default=60, help="seconds of timing per method and case (60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, after every case")
    parser.add_argument("--quick", action="store_true", help="small variants of the cases")
    parser.add_argument("--no-memory", action="store_true", help="skip peak memory (a process per method)")
    options = parser.parse_args(argv)
    options.repeats = options.repeats or (3 if options.quick else 5)
    if options.threads < 1 or options.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    return options


def choose(options: argparse.Namespace) -> list[str]:
    """Names of the methods to run, or exit with the list of those there are."""
    known = methods.known()
    singles = {f"hessext {isa}" for isa in methods.available_isas()}
    if options.method:
        if unknown := [name for name in options.method if name not in known]:
            raise SystemExit(f"unknown method {unknown[0]!r}; there are: {', '.join(known)}")
        return list(options.method)
    if "hessext" not in known:
        print("hessext cannot be imported: only what it is compared with will run", file=sys.stderr)
    return [name for name in known if options.isa == "all" or name not in singles]


def run_case(case: cases.Case, names: list[str], options: argparse.Namespace, tick: Tick) -> list[dict]:
    """Check, then time, then weigh every method on one case. One dictionary per method."""
    problem = cases.make(case.quick() if options.quick else case, getattr(torch, options.dtype))
    tick("reference in float64")
    truth = methods.reference(problem)
    known = methods.known()
    ready, rows = {}, []
    for name in names:
        if not methods.applies(name, case.part):
            continue
        tick(f"check {name}")
        method = known[name](problem)
        error = methods.relative_error(method.call(), truth, method.rows)
        row = {"case": case.name, "method": name, "note": method.note, "error": error}
        row["agrees"] = error <= AGREES[options.dtype]
        rows.append(row)
        if row["agrees"]:
            ready[name] = method
    del truth

    timings = measure.interleave(
        {name: method.call for name, method in ready.items()}, options.repeats, options.budget, tick
    )
    flops = cases.necessary_flops(problem)
    for row in rows:
        if not row["agrees"]:
            continue
        name, method = row["method"], ready[row["method"]]
        timing = timings[name]
        timing.seconds = [s * method.scale for s in timing.seconds]
        row["seconds"] = timing.median
        row["quartiles"] = timing.quartiles
        row["rounds"] = timing.seconds
        row["calls_per_round"] = timing.inner
        row["flops"] = flops
        row["flops_per_second"] = flops / timing.median
    ready.clear()
    for row in rows:
        if row["agrees"]:
            for base in BASELINES:
                if base in timings:
                    row[f"times_{base}"] = measure.ratio(timings[base], timings[row["method"]])
            if not options.no_memory and row["method"] != "autograd" and not row["method"].endswith("out="):
                tick(f"memory {row['method']}")
                row["memory"] = measure.peak_memory_apart(
                    case.name, row["method"], options.dtype, options.threads, options.quick
                )
    return rows


def seconds_text(seconds: float) -> str:
    """Three digits and a unit."""
    scale, unit = (1.0, "s") if seconds >= 1 else (1e-3, "ms") if seconds >= 1e-3 else (1e-6, "us")
    return f"{seconds / scale:#.3g}".rstrip(".") + f" {unit}"


def show(case: cases.Case, rows: list[dict], peak: float) -> str:
    """Return the table of one case."""
    flops = next((row["flops"] for row in rows if "flops" in row), 0)
    shape = f"N={case.samples} d={case.features} C={case.classes}" + (f" m={case.units}" if case.units else "")
    size = "two numbers" if case.part == "ratio" else f"{case.size} x {case.size}"
    work = f"{size}, {flops / 1e9:.3g} GFLOP"
    cells = [["method", "median", "quartiles", "GFLOP/s", "of peak", "x plain", "x careful", "error", "MiB beyond"]]
    cells[0].append("note")
    for row in rows:
        if not row["agrees"]:
            cells.append([row["method"], "DISAGREES", *[""] * 5, f"{row['error']:.1e}", "", "not timed"])
            continue
        memory, note = row.get("memory"), row["note"]
        if len(row["rounds"]) < 3:
            note = ", ".join(filter(None, (note, f"{len(row['rounds'])} rounds")))
        cells.append([
            row["method"],
            seconds_text(row["seconds"]),
            " - ".join(seconds_text(s) for s in row["quartiles"]),
            f"{row['flops_per_second'] / 1e9:.3g}",
            f"{row['flops_per_second'] / peak:.1%}",
            *(f"{row[key]:.3g}" if (key := f"times_{base}") in row else "" for base in BASELINES),
            f"{row['error']:.1e}",
            f"{memory['beyond'] / 2**20:.0f} of {memory['allowed'] / 2**20:.0f}" if memory else "",
            note,
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"{case.name}: {case.title}, {case.loss}, {shape}, {work}"]
    for line in cells:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        padded[0], padded[-1] = line[0].ljust(widths[0]), line[-1]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks; 1 if any method disagreed with float64."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    machine = measure.machine(options.threads)
    load = machine["load_before"]
    if load > 0.25 * (os.cpu_count() or 1):
        print(f"others use this machine (load {load:.1f}): trust no absolute time", file=sys.stderr)
    names = choose(options)
    peak = measure.matmul_peak(getattr(torch, options.dtype), options.quick)
    report = {"machine": machine, "dtype": options.dtype, "quick": options.quick}
    report["rows"] = []
    results = []
    steps = 1 + len(names) * (1 + options.repeats + (not options.no_memory))
    with tqdm(total=steps * len(options.case), file=sys.stderr, unit="step", disable=None) as bar:
        for index, name in enumerate(options.case):

            def tick(what: str, name: str = name) -> None:
                bar.set_description(f"{name}: {what}")
                bar.update()

            rows = run_case(cases.CASES[name], names, options, tick)
            results.append(rows)
            peak = max(peak, measure.matmul_peak(getattr(torch, options.dtype), options.quick))
            report["rows"] += rows
            bar.update(steps * (index + 1) - bar.n)  # the steps that no method needed
            if options.json:
                write(options.json, report)
    # The best rate seen anywhere in this run, by a method's whole call or by torch's product, is the peak.
    best = max([peak, *(row["flops_per_second"] for row in report["rows"] if "flops_per_second" in row)])
    report |= {"peak_flops_per_second": best, "matmul_flops_per_second": peak}
    if options.json:
        write(options.json, report)
    print(
        f"{machine['cpu']}, {machine['cores']} cores, {options.threads} threads, torch {machine['torch']} "
        f"({machine['torch_simd']}), {options.dtype}\n"
        f"peak: {best / 1e9:.0f} GFLOP/s, the best rate of this run (torch.matmul {peak / 1e9:.0f})\n"
        "GFLOP: both symmetries, active samples only. x: median ratio of interleaved rounds.\n"
        "error: relative Frobenius, against float64. MiB beyond: peak memory beyond the result, of the\n"
        "allowed 1.2 times the inputs + 64 MiB.\n"
    )
    for name, rows in zip(options.case, results, strict=True):
        case = cases.CASES[name]
        print(show(case.quick() if options.quick else case, rows, best))
    return 0 if all(row["agrees"] for row in report["rows"]) else 1


def write(path: Path, report: dict) -> None:
    """Replace `path` at once: a run that is cut off leaves the last whole report."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(report, indent=1) + "\n")
    draft.replace(path)


if __name__ == "__main__":
    sys.exit(main())
