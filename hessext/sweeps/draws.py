"""One random draw of a sweep, and the processes that compute many."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from hessext._api import linear, one_hidden
from hessext._memory import require
from hessext.matrix.hessian import Hessian

# Of each point set behind a draw's expectation (theory.given_weights). Its error has mean 0 and is part of the paired
# differences, so that it widens error bars but moves nothing.
EXPECTATION_POINTS = 256


class Case(NamedTuple):
    """A model at initialization and its loss."""

    title: str
    layers: tuple[str, ...]
    loss: str
    paired: bool  # each draw stands beside its expectation at the same weights: their tails are too heavy without

    @property
    def network(self) -> bool:
        """Whether there is a hidden layer."""
        return "hidden" in self.layers


CASES = {
    1: Case("linear model, MSE", ("output",), "mse", False),
    2: Case("linear model, cross-entropy", ("output",), "cross_entropy", False),
    3: Case("one hidden ReLU layer, MSE", ("hidden", "output"), "mse", False),
    4: Case("one hidden ReLU layer, cross-entropy", ("hidden", "output"), "cross_entropy", True),
}


class Point(NamedTuple):
    """Sizes C, N, d, m of a model and its data; m = 0 without a hidden layer."""

    classes: int
    samples: int
    features: int
    hidden: int

    @property
    def gamma(self) -> float:
        """d / N."""
        return self.features / self.samples


class Task(NamedTuple):
    """What a draw depends on, and nothing else."""

    case: int
    seed: int
    dtype: str
    point: Point
    draw: int


class Row(NamedTuple):
    """One layer in one draw: block means as BlockMatrix.ratio() has them, times 1/d where blocks are d x d.

    expected_*: their expectation over x at the draw's weights (paired cases, else None).
    """

    case: int
    seed: int
    dtype: str
    classes: int
    samples: int
    features: int
    hidden: int
    draw: int
    layer: str
    diagonal: float
    off_diagonal: float
    ratio: float
    expected_diagonal: float | None
    expected_off_diagonal: float | None

    @property
    def task(self) -> Task:
        """The draw that the row belongs to."""
        return Task(self.case, self.seed, self.dtype, Point(*self[3:7]), self.draw)


def draw(task: Task, activation: str = "relu") -> tuple[Hessian, tuple[Tensor, ...]]:
    """A Hessian and its weights at x ~ N(0, I), labels uniform, weights N(0, 1/fan-in): linear, hidden (m, d), output.

    Numbers are drawn in float32 for either dtype, and do not depend on the case: 1 and 2, and 3 and 4, share them.
    Raises MemoryError where they do not fit.
    """
    case, (C, N, d, m), dtype = CASES[task.case], task.point, getattr(torch, task.dtype)
    sizes = ", ".join(f"{name} {size}" for name, size in task.point._asdict().items() if size)
    require((N * d + (m or C) * d + C * m) * dtype.itemsize, f"a draw ({sizes})")
    g = torch.Generator().manual_seed(_stream(task))

    def normal(rows: int, cols: int, variance: float = 1.0) -> Tensor:
        return torch.randn(rows, cols, generator=g, device="cpu").mul_(variance**0.5).to(dtype)

    if not case.network:
        W = normal(C, d, 1 / d)
        return linear(W, normal(N, d), loss=case.loss), (W,)  # no label enters this Hessian
    W, V, x = normal(m, d, 1 / d), normal(C, m, 1 / m), normal(N, d)
    y = torch.randint(C, (N,), generator=g, device="cpu")
    return one_hidden(W, V, x, y, activation=activation, loss=case.loss), (W, V)


def compute(task: Task) -> list[Row]:
    """One row per layer of a draw."""
    case, (_, N, d, _) = CASES[task.case], task.point
    H, weights = draw(task)
    if case.paired:
        from hessext.theory import given_weights  # scipy takes a second to load

        expected = given_weights(*weights, N, loss=case.loss, points=EXPECTATION_POINTS, seed=_stream(task))._asdict()
    rows = []
    for layer in case.layers:
        scale = 1 / d if layer == "hidden" or not case.network else 1.0
        diagonal, off_diagonal, ratio = H[layer].ratio()
        means = expected[layer][:2] if case.paired else (None, None)
        sizes = (task.case, task.seed, task.dtype, *task.point, task.draw, layer)
        rows.append(Row(*sizes, diagonal * scale, off_diagonal * scale, ratio, *means))
    return rows


def _stream(task: Task) -> int:
    """Seed of a draw, distinct among those of a point: torch's generator takes 32 bits, too few for hashes alone."""
    first = hashlib.blake2b(repr((task.seed, *task.point)).encode(), digest_size=4).digest()
    return (int.from_bytes(first, "little") + task.draw) % 2**32


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, hessext and numpy's BLAS: a draw's bits must not depend on how many run beside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------------------- processes

# A pipe each, nothing shared, gone when their parent is. Not multiprocessing: that imports the user's script again in
# every worker, and the workers of its pools outlive a killed parent.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from hessext.sweeps.draws import serve; serve()"


def serve() -> None:
    """Body of a worker: tasks come in on stdin, their rows or the exception go out on stdout, until stdin closes."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not get between the results
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()

    def read() -> None:
        with suppress(EOFError):
            while True:
                tasks.put(pickle.load(sys.stdin.buffer))
        os._exit(0)  # the parent is gone: nobody wants the draw in hand

    threading.Thread(target=read, daemon=True).start()
    with one_thread():
        while True:
            try:
                result = compute(tasks.get())
            except Exception as error:
                result = error
            _send(results, result)


class _Worker:
    """A process that computes one task at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the parent's
        )

    def compute(self, task: Task) -> list[Row]:
        try:
            _send(self.process.stdin, task)
            result = pickle.load(self.process.stdout)
        except (EOFError, OSError):
            status = self.process.wait()
            raise RuntimeError(f"a worker ended with status {status} (-9: killed, perhaps for its memory)") from None
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what was not sent
                pipe.close()


def _send(pipe, message: object) -> None:
    pickle.dump(message, pipe)
    pipe.flush()


def compute_all(tasks: Iterable[Task], workers: int) -> Iterator[list[Row]]:
    """Rows of all tasks as they come, those of a draw together; several draws where they came at once.

    One worker is this process. Close the generator to end the others.
    """
    if workers == 1:
        with one_thread():
            yield from map(compute, tasks)
        return
    todo = deque(tasks)
    results: queue.SimpleQueue[list[Row] | BaseException] = queue.SimpleQueue()
    left = len(todo)

    def feed(worker: _Worker) -> None:
        with suppress(IndexError):  # no task is left
            while True:
                task = todo.popleft()
                try:
                    results.put(worker.compute(task))
                except BaseException as error:
                    results.put(error)
                    return

    pool: list[_Worker] = []
    threads: list[threading.Thread] = []
    try:
        for _ in range(min(workers, left)):
            pool.append(_Worker())
            threads.append(threading.Thread(target=feed, args=(pool[-1],), daemon=True))
            threads[-1].start()
        while left:
            came = [results.get()]
            with suppress(queue.Empty):
                while True:
                    came.append(results.get_nowait())
            left -= len(came)
            good = [rows for rows in came if not isinstance(rows, BaseException)]
            if good:
                yield [row for rows in good for row in rows]
            for error in came:
                if isinstance(error, BaseException):
                    raise error
    finally:
        todo.clear()
        for worker in pool:
            worker.process.kill()
        for thread in threads:
            thread.join()  # each ends with its process
        for worker in pool:
            worker.close()
