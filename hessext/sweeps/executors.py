"""Draws on the workers of a concurrent.futures.Executor. Workers return rows; the caller alone writes them."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache

import torch
from threadpoolctl import threadpool_limits

from .draws import Row, Task, compute, one_thread

_TRIES = 3  # a draw that was lost so often is an error
_NAMED = 3  # most draws that a message names

Source = Executor | Callable[[], Executor] | int


def compute_all(tasks: Sequence[Task], source: Source) -> Iterator[list[Row]]:
    """Yield the rows of all tasks as they arrive: all rows of a draw together, and several draws if they came at once.

    The source is an executor, or a function that makes one and is called again if that breaks, or a number of
    processes, where 1 stands for this process. Closing the generator cancels the remaining draws.

    Raises what a draw raised, and RuntimeError if a draw was lost too often, or with an executor that was given.
    """
    with one_thread():
        if source == 1:
            yield from map(compute, tasks)
            return
        with closing(_Calls(tasks, source)) as calls:
            while calls.left:
                calls.submit()
                results, lost = calls.results()
                if rows := [row for result in results if isinstance(result, list) for row in result]:
                    yield rows
                for result in results:
                    if isinstance(result, Exception):
                        raise result
                calls.again(lost)


class _Calls:
    """The draws that are still to be submitted, and those that the executor has."""

    def __init__(self, tasks: Sequence[Task], source: Source) -> None:
        self.tasks, self.source, self.made = tasks, source, ExitStack()
        self.todo, self.losses = deque(tasks), Counter()
        self.pending: dict[Future, Task] = {}
        self.done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.executor = source if isinstance(source, Executor) else self._made()

    def _made(self) -> Executor:
        return self.made.enter_context(_local(self.source) if isinstance(self.source, int) else self.source())

    @property
    def left(self) -> bool:
        """Whether a draw is missing."""
        return bool(self.todo or self.pending)

    def submit(self) -> None:
        """Submit the next draw, if any. If the executor takes no more, submit it to a new one."""
        if not self.todo:
            return
        call = work, self.todo[0], self.losses[self.todo[0]]
        try:
            future = self.executor.submit(*call)
        except Exception as error:  # BrokenExecutor, or a library's own error: dask's scheduler is gone
            if self.executor is self.source:
                left = {*self.todo, *self.pending.values()}
                self.pending.clear()  # there is no use in cancelling them
                names = _names([task for task in self.tasks if task in left])
                hint = "a function that makes executors would be called for the next one"
                raise RuntimeError(f"the executor takes no more draws and lost {names}; {hint}: {error}") from error
            self.made.close()
            self.executor = self._made()
            future = self.executor.submit(*call)
        self.pending[future] = self.todo.popleft()
        future.add_done_callback(self.done.put)

    def results(self) -> tuple[list[list[Row] | Exception], dict[Task, BaseException]]:
        """Return what draws returned, and why others were lost. Waits for one if there is nothing to submit."""
        results, lost = [], {}
        for future in _arrived(self.done, wait=not self.todo):
            task = self.pending.pop(future)
            cause = CancelledError("cancelled") if future.cancelled() else future.exception()
            if cause is None:
                results.append(future.result())
            else:
                lost[task] = cause
        return results, lost

    def again(self, lost: dict[Task, BaseException]) -> None:
        """Queue lost draws again, at the front: a draw that breaks every executor must end the run early."""
        self.losses.update(lost.keys())
        if given_up := [task for task in lost if self.losses[task] == _TRIES]:
            last = lost[given_up[-1]]
            what = f"lost with their workers {_TRIES} times: {_names(given_up)}"
            raise RuntimeError(f"{what}; the last time: {last}") from last
        self.todo.extendleft(reversed(lost))

    def close(self) -> None:
        """Cancel the pending draws, and shut the executor down if it was made here."""
        if not isinstance(self.source, int):  # our processes are killed; loky cannot do that after a cancel
            for future in self.pending:
                future.cancel()
        self.made.close()


def _arrived(done: queue.SimpleQueue[Future], wait: bool) -> list[Future]:
    """Return all futures that are done; with `wait`, wait for at least one."""
    arrived = [done.get()] if wait else []
    with suppress(queue.Empty):
        while True:
            arrived.append(done.get_nowait())
    return arrived


def _names(tasks: Sequence[Task]) -> str:
    """The draws, as a message has them."""
    names = "; ".join(f"draw {task.draw} of {task.point.text}" for task in tasks[:_NAMED])
    return names + (f"; and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else "")


# ------------------------------------------------------------------------------------------------------- workers


def work(task: Task, losses: int) -> list[Row] | Exception:
    """Compute a draw on a worker.

    The worker stays on one thread: one_thread would restore more while other draws of the process still run. An
    exception of the draw is returned, so that a raised one is the executor's and means that the draw is lost. losses
    counts these; it makes the arguments differ, as dask would answer the same call with its old failure.
    """
    torch.set_num_threads(1)
    _one_blas_thread()
    try:
        return compute(task)
    except Exception as error:
        return error


@cache
def _one_blas_thread() -> None:
    threadpool_limits(1, "blas")  # once, as it takes half as long as a small draw


@contextmanager
def _local(workers: int) -> Iterator[Executor]:
    """Processes on this machine, which end with the context and with this process.

    They are loky's: those of the standard library import the user's script again, which fails unless it is guarded by
    `if __name__ == "__main__"`.
    """
    from loky import ProcessPoolExecutor

    executor = ProcessPoolExecutor(workers, initializer=_begin, initargs=(os.getpid(),))
    try:
        yield executor
    finally:
        executor.shutdown(kill_workers=True)


def _begin(parent: int) -> None:
    """Start one of these processes, which must end with its parent; loky's do not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
