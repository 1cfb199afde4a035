"""`python -m bench`: hessext and its alternatives on this machine, timed only after their results agree."""

from __future__ import annotations

import argparse
import io
import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from tqdm import tqdm

from hessext import _files

from . import cases, growth, machine, methods, report
from .run import AGREES, BUDGET, QUICK_BUDGET, QUICK_REPEATS, REPEATS, Report, Settings, run

DOCS = Path(__file__).parent.parent / "docs"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    some = {"nargs": "+", "metavar": "NAME"}
    parser.add_argument("--case", **some, help="some of the cases, e.g. dense-ce 'growth*' (all); --list names them")
    parser.add_argument("--method", **some, help="some of the methods, e.g. hessext plain '*hessian' (all)")
    parser.add_argument("--list", action="store_true", help="name cases and methods, and what is missing")
    parser.add_argument("--quick", action="store_true", help="small variants of the cases, less than two minutes")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is a GPU (cpu)")
    parser.add_argument("--dtype", choices=list(AGREES), default="float32")
    threads = "threads of all methods (2); further counts are for hessext alone"
    parser.add_argument("--threads", type=int, nargs="+", default=[2], metavar="COUNT", help=threads)
    parser.add_argument("--isa", choices=["best", "all"], default="best", help="all: each instruction set too (best)")
    parser.add_argument("--repeats", type=int, help=f"interleaved rounds ({REPEATS}; {QUICK_REPEATS} with --quick)")
    budget = f"seconds of timing per method and case ({BUDGET:g}; {QUICK_BUDGET:g} with --quick)"
    parser.add_argument("--budget", type=float, help=budget)
    parser.add_argument("--no-memory", action="store_true", help="skip peak memory")
    out = "write STEM.json after every case, at the end STEM.txt, STEM.md and STEM.png"
    parser.add_argument("--out", type=Path, metavar="STEM", help=out)
    parser.add_argument("--load", type=Path, metavar="JSON", help="take this report instead of running")
    parser.add_argument(
        "--compare", type=Path, metavar="JSON", help="flag what became slower; the exit status is then 1"
    )
    docs = "write docs/performance.md's tables from this report (default: the one from --out or --load)"
    parser.add_argument("--docs", type=Path, nargs="?", const=Path(), metavar="JSON", help=docs)
    options = parser.parse_args(argv)
    if options.docs not in (None, Path()):
        options.load = options.docs
    if options.docs and not (options.load or options.out):
        parser.error("--docs: expected a report, or --out or --load with one; got none")
    options.repeats = options.repeats if options.repeats is not None else QUICK_REPEATS if options.quick else REPEATS
    options.budget = options.budget if options.budget is not None else QUICK_BUDGET if options.quick else BUDGET
    if min(*options.threads, options.repeats) < 1:
        parser.error("--threads and --repeats: expected at least 1")
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device: {options.device} asked for, but torch sees no GPU")
    return options


def chosen(what: str, names: list[str], patterns: list[str] | None) -> tuple[str, ...]:
    """Names that match one of the patterns, in the order of names. Raises ValueError if a pattern matches none."""
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"--{what}: expected one of {', '.join(names)}; got {pattern!r}")
    return tuple(name for name in names if not patterns or any(fnmatchcase(name, p) for p in patterns))


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings of a run, from the command line."""
    isas = options.isa == "all"
    cpu = torch.device(options.device).type == "cpu"
    there = [name for name, case in cases.CASES.items() if (case.small or not options.quick) and not (case.gpu and cpu)]
    known = methods.known(options.device, tuple(options.threads[1:]), isas)
    return Settings(
        cases=chosen("case", there, options.case),
        methods=chosen("method", list(known), options.method),
        dtype=options.dtype,
        device=options.device,
        threads=tuple(options.threads),
        isas=isas,
        repeats=options.repeats,
        budget=options.budget,
        quick=options.quick,
        memory=not options.no_memory,
    )


def measured(options: argparse.Namespace) -> Report:
    """Run with a progress bar, and save the report after every case."""
    settings = settings_of(options)
    if machine.busy():
        print("others use this machine: trust no absolute time", file=sys.stderr)
    for name, why in methods.missing().items():
        print(f"skipped: {name}: {why}", file=sys.stderr)
    with tqdm(total=len(settings.cases), file=sys.stderr, unit="case", disable=None) as bar:

        def save(done: Report) -> None:
            bar.update(len({row["group"] for row in done["benchmarks"]}) - bar.n)
            if options.out:
                _files.replace(_beside(options.out, ".json"), (json.dumps(done, indent=1) + "\n").encode())

        return run(settings, bar.set_description, save)


def write(stem: Path, found: Report) -> None:
    """Write text, Markdown and, if matplotlib is installed, the picture next to STEM.json."""
    picture = io.BytesIO()
    try:
        drawn = growth.draw(found, picture)
    except ImportError as error:
        print(f"no picture: {error}", file=sys.stderr)
        drawn = False
    if drawn:
        _files.replace(_beside(stem, ".png"), picture.getvalue())
    name = f"{stem.name}.png" if drawn else None
    for suffix, content in ((".txt", report.text(found)), (".md", report.markdown(found, name))):
        _files.replace(_beside(stem, suffix), content.encode())


def _read(path: Path) -> Report:
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or not {"benchmarks", "peaks", "machine_info"} <= found.keys():
        raise ValueError(f"{path}: expected a report of python -m bench; got something else")
    return found


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks. Returns 1 if hessext disagreed with float64, failed, or became slower than in --compare."""
    options = parse(argv)
    if options.list:
        for case in cases.CASES.values():
            print(f"{case.name:<15} {case.title}, {case.loss}, {case.sizes}")
        print(f"methods: {', '.join(methods.known(options.device, isas=True))}")
        print("".join(f"skipped: {name}: {why}\n" for name, why in methods.missing().items()), end="")
        return 0
    try:
        if options.out:
            _files.folder("--out", options.out.parent)
        old = _read(options.compare) if options.compare else None  # read first: measuring takes minutes
        found = _read(options.load) if options.load else measured(options)
    except (OSError, ValueError) as error:
        print(f"python -m bench: {error}", file=sys.stderr)
        return 2
    print(report.text(found))
    if options.out:
        write(options.out, found)
    if options.docs is not None:
        name = options.load.stem if options.load else options.out.name
        page, picture = (
            DOCS / "performance.md",
            _beside(options.load.with_suffix("") if options.load else options.out, ".png"),
        )
        _files.replace(page, report.write_docs(page, found, name).encode())
        if picture.exists():
            _files.replace(DOCS / "growth.png", picture.read_bytes())
    wrong = any(row["name"].startswith(report.OURS) for row in found["failed"])
    if old:
        lines, regressed = report.compare(old, found)
        print("\n".join(lines))
        wrong |= regressed
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
