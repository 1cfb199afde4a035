#!/usr/bin/env python3
"""Registers per thread and spilled bytes of each CUDA kernel, as nvcc reports them, by architecture.

    python scripts/registers.py 80 90 120 > bench/results/cuda-registers.txt

Needs nvcc and c++filt. With cuobjdump it also counts the issue slots of main loops on tensor cores (slots.py). Shared
memory is not reported: it is requested at the launch (csrc/cuda), and the compiler does not know it.
"""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import slots

SOURCES = sorted((Path(__file__).resolve().parent.parent / "csrc" / "cuda").glob("*.cu"))
REPORT = re.compile(
    r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", re.S
)


def report(source: Path, architecture: str) -> dict[str, tuple[str, str]]:
    """By kernel: registers with spilled bytes; issue slots of the main loop, also per matrix instruction."""
    nvcc = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xptxas=-v", "-cubin"]
    with TemporaryDirectory() as folder:
        done = subprocess.run([*nvcc, "-o", f"{folder}/cubin", str(source)], text=True, capture_output=True)
        if done.returncode:
            sys.exit(done.stderr)
        program = slots.cuobjdump()
        code = slots.functions(program, f"{folder}/cubin") if program else {}
    found = REPORT.findall(done.stderr)
    mangled = "\n".join(kernel for kernel, *_ in found)
    names = subprocess.run(["c++filt"], input=mangled, text=True, capture_output=True, check=True)
    reports = {}
    for name, (kernel, stores, loads, registers) in zip(names.stdout.splitlines(), found, strict=True):
        spilled = f" ({stores}+{loads})" if stores != "0" or loads != "0" else ""
        count = slots.slots(code.get(kernel, []))
        reports[short(name)] = registers + spilled, f"{count[0]} ({count[0] / count[1]:.1f})" if count else ""
    return reports


def short(name: str) -> str:
    """multiply_tiles<float, side 64, WeightedFeatures, tensor cores>"""
    name = re.sub(r"hessext::(cuda::)?|\(anonymous namespace\)::|^void |\(.*", "", name)
    name = re.sub(r"(WeightedFeatures|CurvatureColumn)<\w+, Shape<[^>]*> >", r"\1", name)
    name = re.sub(r"(?:Row)?Shape<\w+, (\d+), \d+, \d+ ?>", r"side \1", name)
    return name.replace("true", "tensor cores").replace(", false", "").replace(" >", ">")


def main(architectures: list[str]) -> None:
    """Print a table with a row for each kernel and a column for each architecture."""
    jobs = [(source, a) for a in architectures for source in SOURCES]
    with ThreadPoolExecutor() as pool:
        reports = list(pool.map(lambda job: report(*job), jobs))
    by_architecture: dict[str, dict[str, tuple[str, str]]] = {a: {} for a in architectures}
    for (_, a), found in zip(jobs, reports, strict=True):
        by_architecture[a].update(found)
    version = subprocess.run(["nvcc", "--version"], text=True, capture_output=True, check=True).stdout
    version = re.search(r"V([\d.]+)", version)[1]
    titles = (
        "Registers of a thread (bytes spilled: stored + loaded)",
        "Issue slots of 16 samples (for a matrix instruction)",
    )
    for column, title in enumerate(titles):
        names = sorted(name for name, columns in by_architecture[architectures[0]].items() if columns[column])
        if not names:
            continue
        print(f"{title}, nvcc {version}\n")
        width = max(map(len, names))
        print("kernel".ljust(width), *(f"sm_{a}".rjust(14) for a in architectures))
        for name in names:
            print(name.ljust(width), *(by_architecture[a][name][column].rjust(14) for a in architectures))
        print()


if __name__ == "__main__":
    main(sys.argv[1:] or ["90"])
