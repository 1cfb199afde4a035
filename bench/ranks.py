"""`ratio()` of a head over two ranks of one thread, against one process of two threads: time and memory, interleaved.

    python -m bench.ranks [--classes 32000 --samples 4096 --features 1024 --repeats 5]

The samples are split, and then the classes. All processes run from the start and take turns. The table has medians of
wall times and of processor times per thread, which other work on the machine affects less, the medians of their ratios
within a turn, and the peak memory beyond that of the inputs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import get_context

import hessext

RANKS = 2


def inputs(sizes: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Return a head and its inputs, the same in all processes."""
    g = torch.Generator().manual_seed(0)
    head = torch.randn(sizes.classes, sizes.features, generator=g).div_(sizes.features**0.5)
    return head, torch.randn(sizes.samples, sizes.features, generator=g)


def memory(field: str) -> int:
    """Bytes of this process: VmRSS at present, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) << 10


def serve(kind: str, rank: int, store: str, sizes: argparse.Namespace, turns: Connection) -> None:
    """Compute the ratio at each turn: in one process, or as one of the ranks."""
    torch.set_num_threads(RANKS if kind == "one process" else 1)
    head, x = inputs(sizes)
    options = {}
    if kind != "one process":
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    if kind == "samples split":
        half = len(x) // RANKS
        x, options = x[rank * half : (rank + 1) * half].clone(), {"group": dist.group.WORLD}
    if kind == "classes split":
        half = len(head) // RANKS
        head = (head[rank * half : (rank + 1) * half].clone(), rank * half, dist.group.WORLD)
    while turns.recv():
        # the earlier peak does not count, as the inputs of all ranks were made here
        Path("/proc/self/clear_refs").write_text("5")
        before, start, worked = memory("VmRSS"), time.perf_counter(), time.process_time()
        ratio = hessext.linear(head, x, **options)["output"].ratio()
        worked = (time.process_time() - worked) / torch.get_num_threads()
        turns.send((time.perf_counter() - start, worked, memory("VmHWM") - before, ratio.ratio))


def main() -> None:
    """Print one line for each way to split."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classes", type=int, default=32_000)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    sizes = parser.parse_args()
    print(f"C = {sizes.classes}, N = {sizes.samples}, d = {sizes.features}, float32, {os.cpu_count()} cores")
    heads = ("seconds", "of one", "on a core", "of one", "MiB, peak", "of one", "ratio()")
    print(" " * 15 + "".join(f"{head:>11}" for head in heads), flush=True)
    context, folder = get_context("spawn"), tempfile.mkdtemp()
    teams = {"one process": [0], "samples split": range(RANKS), "classes split": range(RANKS)}
    ends: dict[str, list[Connection]] = {}
    for kind, ranks in teams.items():
        ends[kind] = []
        for rank in ranks:
            mine, other = context.Pipe()
            arguments = kind, rank, f"{folder}/{kind.split()[0]}", sizes, other
            context.Process(target=serve, args=arguments, daemon=True).start()
            ends[kind].append(mine)
    found: dict[str, list[tuple[float, float, int, float]]] = {kind: [] for kind in teams}
    for turn in range(sizes.repeats + 1):
        for kind, team in ends.items():
            for end in team:
                end.send(True)
            results = [end.recv() for end in team]
            if turn:  # the first one is a warm-up
                found[kind].append(tuple(max(values) for values in zip(*results, strict=True)))
    one = found["one process"]
    for kind, turns in found.items():
        numbers = []
        for k in (0, 1):
            numbers.append(statistics.median(t[k] for t in turns))
            numbers.append(statistics.median(t[k] / o[k] for t, o in zip(turns, one, strict=True)))
        peak, most = (max(t[2] for t in some) for some in (turns, one))
        numbers = [f"{number:11.2f}" for number in (*numbers, peak / 2**20, peak / most)]
        print(f"{kind:15}{''.join(numbers)}{turns[0][3]:11.3e}")
    for team in ends.values():
        for end in team:
            end.send(False)


if __name__ == "__main__":
    main()
