"""Steps of cost where the way of computing switches with size: python -m bench.steps [NAME ...].

Each pair of neighbouring sizes in `walks` is timed in turn. A pair is reported as a step if the larger size costs more
than 1.3 times, or less than 1 / 1.3 times, as much as the smaller one. The cost is the processor time of all threads,
which other work on the machine affects little.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from functools import partial

import torch

from .cases import Problem, make
from .measure import SHORTEST, Call
from .methods import asked
from .walks import Walk, walks

STEP = 1.3
ROUNDS, MORE = 5, 25  # rounds of timing a pair of sizes, and of repeating it if it seems to be a step


def clock(call: Call, inner: int = 1) -> float:
    """Processor seconds per call, of some calls in a row."""
    start = time.process_time()
    for _ in range(inner):
        call()
    return (time.process_time() - start) / inner


def ratio_of_costs(walk: Walk, below: int, above: int, rounds: int) -> float:
    """Least time at the larger size over that at the smaller one, timed in turn, each call with a new object."""
    calls = [partial(_call, walk, make(walk.case(size))) for size in (below, above)]
    inner = max(1, int(SHORTEST / max(clock(call) for call in calls)))
    best = [math.inf] * 2
    for _ in range(rounds):
        best = [min(least, clock(call, inner)) for least, call in zip(best, calls, strict=True)]
    return best[1] / best[0]


def _call(walk: Walk, problem: Problem) -> object:
    return walk.ask(asked(problem))


def report(names: list[str]) -> list[str]:
    """Print each pair of sizes of the walks, and return the lines of those that are steps."""
    found, table = [], walks()
    for name in names or table:
        walk = table[name]
        for below, above in walk.pairs():
            ratio = ratio_of_costs(walk, below, above, ROUNDS)
            if not 1 / STEP <= ratio <= STEP:
                ratio = ratio_of_costs(walk, below, above, MORE)
            line = f"{name}: {walk.varied} {below} -> {above} at {walk.sizes}: {ratio:.2f}  ({walk.about})"
            step = not 1 / STEP <= ratio <= STEP
            print(("STEP " if step else "     ") + line, flush=True)
            found += [line] * step
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the walks. Returns the exit status, 1 if there is a step."""
    parser = argparse.ArgumentParser(prog="python -m bench.steps", description=__doc__)
    parser.add_argument("names", nargs="*", help="some of the walks (all): " + ", ".join(walks()))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    return int(bool(report(options.names)))


if __name__ == "__main__":
    sys.exit(main())
