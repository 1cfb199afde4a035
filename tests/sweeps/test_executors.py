"""Sweeps on executors: the same rows wherever draws are computed, and whoever is killed meanwhile."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from loky import get_reusable_executor

import hessext
from hessext import _core
from hessext.sweeps import executors
from hessext.sweeps.draws import Point, Task, compute
from hessext.sweeps.log import Log

TINY = {"case": 4, "classes": [2, 3], "samples": 6, "features": 4, "hidden": 2, "draws": 3, "progress": False}
LONG = {"case": 3, "classes": [2, 40], "samples": 1500, "features": 150, "hidden": 4, "draws": 60, "progress": False}


class KilledWorker(Exception):
    """As dask.distributed has it: no BrokenExecutor."""


class Losing(Executor):
    """Computes in this thread, but loses every draw the first `times` times, with the exception that `make` gives."""

    def __init__(self, make, times):
        self.make, self.times, self.seen, self.closed = make, times, Counter(), False

    def submit(self, fn, task, losses):
        assert not self.closed
        assert losses == self.seen[task]  # no call has the arguments of a lost one
        self.seen[task] += 1
        future = Future()
        if self.seen[task] > self.times:
            future.set_result(fn(task, losses))
        elif self.make is None:
            future.cancel()
        else:
            future.set_exception(self.make("gone"))
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.closed = True


class Broken(Losing):
    """Takes so many draws, loses all but the first one of them, and takes no more."""

    def __init__(self, takes):
        super().__init__(BrokenExecutor, 0)
        self.takes, self.pending = takes, []

    def submit(self, fn, task, losses):
        if not self.takes:
            for future in self.pending:
                future.set_exception(BrokenExecutor("a worker died"))
            self.pending = []
            raise BrokenExecutor("a worker died")
        self.takes -= 1
        self.pending.append(Future())
        return self.pending[-1]


@pytest.fixture(scope="module")
def expected():
    return hessext.sweep(**TINY, workers=1)


# ----------------------------------------------------------------------------------------------------- any executor


def test_threads(expected, set_threads, monkeypatch):
    set_threads(2)
    threads = set()

    def computed(task):
        threads.add(torch.get_num_threads())
        return compute(task)

    monkeypatch.setattr(executors, "compute", computed)
    with ThreadPoolExecutor(3) as executor:
        assert hessext.sweep(**TINY, executor=executor) == expected
        assert executor.submit(int).result() == 0  # who gave it shuts it down
    assert threads == {1}
    assert torch.get_num_threads() == 2


def test_workers_stay_on_one_thread(set_threads):
    """They are no part of this process, which sets its own."""
    set_threads(2)
    executors.work(Task(2, 0, "float32", Point(2, 3, 4, 0), 0), 0)
    assert torch.get_num_threads() == 1


def test_executor_counts_draws(expected, capsys):
    assert hessext.sweep(**(TINY | {"progress": True}), executor=ThreadPoolExecutor(1)) == expected
    assert "0 of 6 draws done, the others go to the executor" in capsys.readouterr().err


@pytest.mark.parametrize("make", [KilledWorker, BrokenExecutor, None])
def test_lost_draws_are_handed_out_again(make, expected):
    executor = Losing(make, 2)
    assert hessext.sweep(**TINY, executor=executor) == expected
    assert set(executor.seen.values()) == {3}


@pytest.mark.parametrize("make", [KilledWorker, BrokenExecutor, None])
def test_draws_that_are_always_lost_are_named(make, tmp_path):
    executor, path = Losing(make, 3), tmp_path / "draws.csv"
    lost = r"draw 0 of classes 2, samples 6, features 4, hidden 2"
    with pytest.raises(RuntimeError, match=rf"^lost with their workers 3 times: {lost}; the last time: "):
        hessext.sweep(**TINY, executor=executor, path=path)
    assert max(executor.seen.values()) == 3


def test_a_function_makes_the_next_executor(expected):
    made = [Broken(1), Broken(2), ThreadPoolExecutor(1)]
    ready = iter(made)
    assert hessext.sweep(**TINY, executor=lambda: next(ready)) == expected
    assert made[0].closed and made[1].closed
    with pytest.raises(RuntimeError, match="after shutdown"):
        made[2].submit(int)


def test_a_broken_executor_names_its_draws():
    with pytest.raises(
        RuntimeError, match=r"^the executor takes no more draws and lost draw 0 .*; and 3 more; a function"
    ):
        hessext.sweep(**TINY, executor=Broken(2))


def test_a_new_executor_that_takes_nothing_ends_the_run():
    with pytest.raises(BrokenExecutor):
        hessext.sweep(**TINY, executor=lambda: Broken(0))


def test_what_a_draw_raises_is_raised():
    task = Task(2, 0, "float32", Point(2, 0, 3, 0), 0)  # no samples
    executor = Losing(KilledWorker, 0)
    with pytest.raises(ValueError, match=r"^x: "):
        list(executors.compute_all([task], executor))
    assert executor.seen[task] == 1


def test_what_is_left_is_cancelled():
    with ThreadPoolExecutor(1) as executor:
        tasks = [Task(3, 0, "float32", Point(40, 1500, 150, 4), k) for k in range(500)]
        with contextlib.closing(executors.compute_all(tasks, executor)) as batches:
            next(batches)
        start = time.perf_counter()
        executor.submit(int).result()
        assert time.perf_counter() - start < 1  # all of them take 2 s


def test_duplicates_are_dropped(tmp_path):
    task = Task(2, 0, "float32", Point(2, 3, 4, 0), 0)
    path = tmp_path / "draws.csv"
    with contextlib.closing(Log(path, task)) as log:
        log.add(compute(task))
        before = path.read_bytes()
        log.add(compute(task) + compute(task))
        assert path.read_bytes() == before


def test_a_client_is_no_executor():
    class Client:
        def get_executor(self):
            """As dask's has it."""

    with pytest.raises(TypeError, match=r"^executor: .* got Client \(its get_executor\(\) makes one\)$"):
        hessext.sweep(**TINY, executor=Client())


# --------------------------------------------------------------------------------------------------------- machines


def test_machines_are_recorded_and_differences_said(tmp_path):
    path, (*_, other) = tmp_path / "draws.csv", _core.isas()
    before = _core.isa()
    if other == before:
        pytest.skip("one instruction set only")
    first = hessext.sweep(**TINY, workers=1, path=path)
    capability = torch.backends.cpu.get_cpu_capability()
    assert {row.machine for row in first.rows} == {(f"{before}/{capability}", torch.__version__)}
    _core.set_isa(other)
    try:
        with pytest.warns(UserWarning, match=rf"^draws in .*draws\.csv are of .*{other}/.* and of .*{before}/"):
            more = hessext.sweep(**(TINY | {"draws": 4}), workers=1, path=path)
    finally:
        _core.set_isa(before)
    assert more.rows[: len(first.rows)] == first.rows
    assert {row.instruction_set for row in more.rows if row.draw == 3} == {f"{other}/{capability}"}
    hessext.sweep(**(TINY | {"draws": 5}), workers=1, path=path)  # said once


# ------------------------------------------------------------------------------------------------------------ peers


def rows_on_disk(path):
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


@contextlib.contextmanager
def killing(victim, path, rows):
    """Kill the process that victim() gives as soon as so many rows are on disk."""

    def wait_and_kill():
        while rows_on_disk(path) < rows:
            time.sleep(0.001)
        os.kill(victim(), signal.SIGKILL)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    yield
    thread.join(10)
    assert not thread.is_alive()


class Watched(Executor):
    """Another executor, with the losses that it is told of."""

    def __init__(self, executor):
        self.executor, self.losses = executor, 0

    def submit(self, fn, task, losses):
        self.losses = max(self.losses, losses)
        return self.executor.submit(fn, task, losses)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Lines of the file, in one order."""
    path = tmp_path_factory.mktemp("sweep") / "draws.csv"
    hessext.sweep(**LONG, workers=1, path=path)
    return sorted(path.read_bytes().splitlines())


def child(name):
    """A process of this one whose command line holds the name."""
    pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return next(int(pid) for pid in pids if name in Path(f"/proc/{pid}/cmdline").read_text())


@pytest.mark.parametrize(("point", "error"), [(Point(2, 0, 3, 0), ValueError), (Point(10**12, 3, 4, 0), MemoryError)])
def test_exceptions_come_from_processes(point, error):
    tasks = [Task(2, 0, "float32", point, k) for k in range(3)]
    with (
        pytest.raises(error, match=r"^(x: |a draw )"),
        contextlib.closing(executors.compute_all(tasks, 2)) as batches,
    ):
        next(batches)


def test_a_killed_process_is_replaced(tmp_path, long, monkeypatch):
    made = []

    @contextlib.contextmanager
    def local(workers, local=executors._local):
        with local(workers) as executor:
            made.append(executor)
            yield executor

    monkeypatch.setattr(executors, "_local", local)
    path = tmp_path / "draws.csv"
    with killing(lambda: child("loky.backend.popen"), path, 10):
        hessext.sweep(**LONG, workers=2, path=path)
    assert len(made) == 2
    assert sorted(path.read_bytes().splitlines()) == long


def test_loky(tmp_path, long):
    """A given executor ends the run, which goes on with a new one; a function makes that by itself."""
    path, make = tmp_path / "draws.csv", partial(get_reusable_executor, max_workers=2)
    with (
        killing(lambda: child("loky.backend.popen"), path, 10),
        pytest.raises(RuntimeError, match=r"^the executor takes no more draws and lost draw .* of classes"),
    ):
        hessext.sweep(**LONG, executor=make(), path=path)
    with killing(lambda: child("loky.backend.popen"), path, rows_on_disk(path) + 10):
        hessext.sweep(**LONG, executor=make, path=path)
    assert sorted(path.read_bytes().splitlines()) == long


def test_dask(tmp_path, long):
    """It reruns what a killed worker had, or raises KilledWorker where it has done so too often."""
    distributed = pytest.importorskip("distributed")
    path = tmp_path / "draws.csv"
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = Watched(client.get_executor())
        for draws, reruns, losses in ((LONG["draws"] // 2, 3, 0), (LONG["draws"], 0, 1)):
            cluster.scheduler.allowed_failures = reruns
            worker = client.submit(os.getpid, pure=False).result()
            with killing(lambda pid=worker: pid, path, rows_on_disk(path) + 10):
                hessext.sweep(**(LONG | {"draws": draws}), executor=executor, path=path)
            assert worker not in client.run(os.getpid).values()
            assert executor.losses == losses
    assert sorted(path.read_bytes().splitlines()) == long
