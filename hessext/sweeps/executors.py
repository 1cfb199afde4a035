"""Draws on the workers of a concurrent.futures.Executor. Only the caller sees rows, and writes them."""

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

_TRIES = 3  # times that a draw is handed out before its loss is an error
_NAMED = 3  # draws in a message

Source = Executor | Callable[[], Executor] | int


def compute_all(tasks: Sequence[Task], source: Source) -> Iterator[list[Row]]:
    """Rows of all tasks as they come, those of a draw together; several draws where they came at once.

    A source is an executor; a function that makes one, and the next one where that broke; or a number of processes, of
    which 1 is this one. Close the generator to cancel what is left.

    Raises what a draw raised, and RuntimeError where draws were lost too often or with an executor that was given.
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
    """Draws that are to be handed out, and those that an executor has."""

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
        """Whether a draw is to come."""
        return bool(self.todo or self.pending)

    def submit(self) -> None:
        """Hand out one draw if there is one, to the next executor where this one takes no more."""
        if not self.todo:
            return
        call = work, self.todo[0], self.losses[self.todo[0]]
        try:
            future = self.executor.submit(*call)
        except Exception as error:  # BrokenExecutor, or that of a library: dask's scheduler is gone
            if self.executor is self.source:
                left = {*self.todo, *self.pending.values()}
                self.pending.clear()  # nobody would hear of it
                names = _names([task for task in self.tasks if task in left])
                hint = "a function that makes executors would be called for the next one"
                raise RuntimeError(f"the executor takes no more draws and lost {names}; {hint}: {error}") from error
            self.made.close()
            self.executor = self._made()
            future = self.executor.submit(*call)
        self.pending[future] = self.todo.popleft()
        future.add_done_callback(self.done.put)

    def results(self) -> tuple[list[list[Row] | Exception], dict[Task, BaseException]]:
        """What draws gave, and why others are lost. Waits where nothing is to be handed out."""
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
        """Hand lost draws out again: first, so that what breaks every executor ends the run soon."""
        self.losses.update(lost.keys())
        if given_up := [task for task in lost if self.losses[task] == _TRIES]:
            last = lost[given_up[-1]]
            what = f"lost with their workers {_TRIES} times: {_names(given_up)}"
            raise RuntimeError(f"{what}; the last time: {last}") from last
        self.todo.extendleft(reversed(lost))

    def close(self) -> None:
        """Cancel what an executor has, and leave it if it was made here."""
        if not isinstance(self.source, int):  # processes are killed, which loky cannot once futures are cancelled
            for future in self.pending:
                future.cancel()
        self.made.close()


def _arrived(done: queue.SimpleQueue[Future], wait: bool) -> list[Future]:
    """All that are done; at least one if it is waited for."""
    arrived = [done.get()] if wait else []
    with suppress(queue.Empty):
        while True:
            arrived.append(done.get_nowait())
    return arrived


def _names(tasks: Sequence[Task]) -> str:
    """Draws for a message."""
    names = "; ".join(f"draw {task.draw} of {task.point.text}" for task in tasks[:_NAMED])
    return names + (f"; and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else "")


# ------------------------------------------------------------------------------------------------------- workers


def work(task: Task, losses: int) -> list[Row] | Exception:
    """What a worker does: on one thread from now on, as one_thread would give back what others of a process still need.

    An exception of the draw is a result: what comes as an exception is the executor's, and the draw is lost.
    losses: how often that was so before. For equal arguments dask would answer with the old failure.
    """
    torch.set_num_threads(1)
    _one_blas_thread()
    try:
        return compute(task)
    except Exception as error:
        return error


@cache
def _one_blas_thread() -> None:
    threadpool_limits(1, "blas")  # takes half as long as a small draw


@contextmanager
def _local(workers: int) -> Iterator[Executor]:
    """Processes on this machine that are gone when the context is left, and when this process is.

    They are loky's because those of the standard library import the user's script again, which fails unless that is
    guarded by `if __name__ == "__main__"`.
    """
    from loky import ProcessPoolExecutor

    executor = ProcessPoolExecutor(workers, initializer=_begin, initargs=(os.getpid(),))
    try:
        yield executor
    finally:
        executor.shutdown(kill_workers=True)


def _begin(parent: int) -> None:
    """Start one of these processes: loky's would go on without their parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
