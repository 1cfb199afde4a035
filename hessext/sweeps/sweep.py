"""`hessext.sweep`: ratios at many sizes over many random draws, each written to disk as soon as it is computed."""

from __future__ import annotations

import operator
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import closing

import torch
from tqdm import tqdm

from hessext import _checks, _files
from hessext._checks import count
from hessext._memory import require
from hessext._progress import duration, shown

from .draws import CASES, Point, Task, compute, one_thread
from .executors import Source, compute_all
from .log import Log
from .report import Sweep

_KEPT = 400  # bytes that a draw's task and rows take, at least
_START = 3.0  # seconds that a new worker takes to import torch, and scipy where expectations are needed

Sizes = int | Iterable[int]


def sweep(
    case: int,
    *,
    classes: Sizes,
    samples: Sizes | None = None,
    features: Sizes | None = None,
    hidden: Sizes | None = None,
    gamma: float | Iterable[float] | None = None,
    draws: int = 100,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    workers: int | None = None,
    executor: Executor | Callable[[], Executor] | None = None,
    path: str | os.PathLike | None = None,
    progress: bool = True,
) -> Sweep:
    """Mean squared norms of diagonal and off-diagonal blocks at initialization, and their ratio, against one size.

    x ~ N(0, I), labels are uniform, weights are N(0, 1/fan-in) and the activation is ReLU, as in Figures 8 and 9.
    Squared norms of d x d blocks are multiplied by 1/d, as in hessext.theory. One of classes, samples, features, hidden
    and gamma may be a sequence; this size is swept.

    A draw depends on the seed, the sizes and its number alone, and is computed on one thread. With one instruction set
    and one version of torch, which rows record, neither workers nor interruptions change a bit.

    Args:
        case: 1 linear model with MSE, 2 with cross-entropy; 3 one hidden layer with MSE, 4 with cross-entropy.
        classes: C, at least 2.
        samples: N; None with features and gamma.
        features: d; None with samples and gamma.
        hidden: m; cases 3 and 4 only.
        gamma: d / N, given in place of N or d, which is then rounded to the nearest integer.
        draws: of each point, at least 2.
        seed: of all random numbers.
        dtype: torch.float32 or torch.float64; both have the same random numbers.
        workers: number of processes; 1 computes everything in this one. None: torch.get_num_threads(), or 1 if that is
            expected to be quicker.
        executor: in place of workers, a concurrent.futures.Executor such as those of dask.distributed, mpi4py and loky,
            or a function that makes one and is called again if that breaks. A draw that is lost with its worker is
            submitted again, up to twice. Workers stay on one thread.
        path: a CSV file in an existing folder. It gets a row per draw and layer as soon as the draw is computed. An
            existing file is continued, also with more draws or other sizes. None writes no file.
        progress: show the expected time on stderr, and a bar in terminals.

    Raises:
        ValueError, TypeError: a bad argument, or `path` holds something else. FileNotFoundError: its folder is missing.
        BlockingIOError: another run writes to it. MemoryError: a draw's inputs or its norms do not fit.
        RuntimeError: draws, which it names, were lost with their workers. KeyboardInterrupt: says how to continue.

    Warns:
        UserWarning: the draws are of several instruction sets or versions of torch.
    """
    case = count("case", case, None)
    if case not in CASES:
        raise ValueError(f"case: expected one of {', '.join(map(str, CASES))}; got {case!r}")
    _checks.dtype(dtype)
    swept, points = points_of(CASES[case].network, classes, samples, features, hidden, gamma)
    draws, seed = count("draws", draws, 2), count("seed", seed, None)
    workers = None if workers is None else count("workers", workers, 1)
    _check_executor(executor, workers)
    name = str(dtype).removeprefix("torch.")
    require(_KEPT * draws * len(points), f"a list of {draws} draws of {len(points)} points")
    tasks = [Task(case, seed, name, point, k) for k in range(draws) for point in points]
    with closing(Log(None if path is None else _files.path_of("path", path), tasks[0])) as log:
        try:
            _run(tasks, log, workers, executor, shown(progress))
        except KeyboardInterrupt:
            kept = "nothing was written" if path is None else f"{path} holds them, the same call continues"
            done = sum(task in log for task in tasks)
            raise KeyboardInterrupt(f"stopped after {done} of {len(tasks)} draws; {kept}") from None
        rows = [log.rows[task, layer] for task in tasks for layer in CASES[case].layers]
    return Sweep(case, swept, tuple(points), draws, seed, name, tuple(rows))


# ---------------------------------------------------------------------------------------------------- arguments


def points_of(network: bool, classes, samples, features, hidden, gamma) -> tuple[str, list[Point]]:
    """Return the name of the swept size and the points in its order. One size may be a sequence. Raises ValueError."""
    sizes = {"classes": classes, "samples": samples, "features": features, "hidden": hidden, "gamma": gamma}
    many = {name: list(size) for name, size in sizes.items() if _several(size)}
    if len(many) > 1:
        first, second = list(many)[:2]
        raise ValueError(f"{second}: expected one size, as {first} is swept; got {many[second]}")
    if network and hidden is None:
        raise ValueError("hidden: expected m, the number of hidden units; got None")
    if not network and hidden is not None:
        raise ValueError(f"hidden: expected None for a linear model; got {hidden!r}")
    if sum(size is None for size in (samples, features, gamma)) != 1:
        given = ", ".join(f"{name}={sizes[name]}" for name in ("samples", "features", "gamma"))
        raise ValueError(f"samples, features, gamma: expected two of them; got {given}")
    swept, values = next(iter(many.items()), ("classes", [classes]))
    if not values:
        raise ValueError(f"{swept}: expected at least one size; got none")
    points = {_point(**(sizes | {swept: value})) for value in values}
    return swept, sorted(points, key=operator.attrgetter(swept))


def _several(size: object) -> bool:
    """Whether it is a sequence of sizes. An array without axes is a number."""
    return isinstance(size, Iterable) and not isinstance(size, str | bytes) and getattr(size, "ndim", 1) > 0


def _point(classes, samples, features, hidden, gamma) -> Point:
    if gamma is not None:
        gamma = _checks.positive("gamma", gamma)
        try:
            if samples is None:
                samples = max(1, round(count("features", features, 1) / gamma))
            else:
                features = max(1, round(count("samples", samples, 1) * gamma))
        except OverflowError:
            raise ValueError(f"gamma: expected d / N of sizes that a float can hold; got {gamma}") from None
    return Point(
        count("classes", classes, 2),
        count("samples", samples, 1),
        count("features", features, 1),
        0 if hidden is None else count("hidden", hidden, 1),
    )


def _check_executor(executor: object, workers: int | None) -> None:
    if executor is not None and not isinstance(executor, Executor) and not callable(executor):
        hint = " (its get_executor() makes one)" if hasattr(executor, "get_executor") else ""
        what = "a concurrent.futures.Executor, or a function that makes one"
        raise TypeError(f"executor: expected {what}; got {type(executor).__name__}{hint}")
    if executor is not None and workers is not None:
        raise ValueError(f"workers: expected None, as the executor has its own; got {workers}")


# ---------------------------------------------------------------------------------------------------- running


def _run(tasks: list[Task], log: Log, workers: int | None, source: Source | None, progress: bool) -> None:
    """Compute and log the draws that are missing."""
    rest = [task for task in tasks if task not in log]
    options = {"disable": None if progress else True, "leave": False}
    seconds, ahead = dict.fromkeys((task.point for task in rest), 1.0), "the others go to the executor"
    if rest and source is None:
        seconds = _timed(rest, log, options)
        rest = [task for task in rest if task not in log]
    if not rest:
        return
    total, done = sum(seconds[task.point] for task in rest), len(tasks) - len(rest)
    if source is None:
        source, ahead = _processes(total, workers, len(rest))
    if progress:
        print(f"{done} of {len(tasks)} draws done, {ahead}", file=sys.stderr)
    form = "{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
    with (
        closing(compute_all(rest, source)) as batches,
        tqdm(total=total, smoothing=0, bar_format=form, **options) as bar,
    ):
        for rows in batches:
            log.add(rows)
            new = {row.task for row in rows}
            done += len(new)
            bar.set_postfix_str(f"{done} of {len(tasks)} draws", refresh=False)
            bar.update(sum(seconds[task.point] for task in new))


def _timed(tasks: list[Task], log: Log, options: dict) -> dict[Point, float]:
    """Compute the first draw of every point here, and return its seconds, which weigh the point's draws in the bar."""
    seconds = {}
    with one_thread():
        compute(tasks[0]._replace(point=Point(2, 4, 4, min(2, tasks[0].point.hidden))))  # loads the libraries
        for task in tqdm(list({t.point: t for t in reversed(tasks)}.values())[::-1], "timing the draws", **options):
            start = time.perf_counter()
            log.add(compute(task))
            seconds[task.point] = time.perf_counter() - start
    return seconds


def _processes(total: float, workers: int | None, most: int) -> tuple[int, str]:
    """Return how many processes compute `total` seconds of draws, and the expected time as text."""

    def expected(workers: int) -> float:
        return total if workers == 1 else total / workers + _START

    workers = min(workers or min(1, torch.get_num_threads(), key=expected), most)
    where = f"{workers} workers" if workers > 1 else "one thread"
    return workers, f"about {duration(expected(workers))} to go on {where}"
