"""Sweeps: the same bits however a run is cut, continued or shared out, what is on disk, and bad arguments."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import hessext
from hessext._progress import duration
from hessext.sweeps import draws, sweep
from hessext.sweeps.draws import Point, Task

TINY = {"classes": [2, 3], "samples": 6, "features": 4, "draws": 3, "progress": False, "workers": 1}


def by_number(path):
    """Lines of a CSV, header first, the others in one order."""
    header, *rows = Path(path).read_bytes().splitlines(keepends=True)
    return [header, *sorted(rows)]


# --------------------------------------------------------------------------------------------------- streams


def test_draws_depend_on_nothing_else():
    """Neither on order, other points, nor on how many draws are asked for."""
    many = hessext.sweep(2, **(TINY | {"draws": 5}))
    one = hessext.sweep(2, **(TINY | {"classes": 3}))
    assert set(one.rows) == {row for row in many.rows if row.classes == 3 and row.draw < 3}
    assert len({row.diagonal for row in many.rows}) == 10
    assert {row.diagonal for row in hessext.sweep(2, **(TINY | {"seed": 1})).rows}.isdisjoint(
        r.diagonal for r in many.rows
    )


def test_random_numbers_are_shared_by_dtypes():
    single, double = (hessext.sweep(2, **(TINY | {"dtype": dtype})).rows for dtype in (torch.float32, torch.float64))
    for a, b in zip(single, double, strict=True):
        assert a.diagonal != b.diagonal
        assert a.diagonal == pytest.approx(b.diagonal, rel=1e-5)


def test_streams_of_a_point_differ():
    tasks = [Task(2, 0, "float32", Point(2, 3, 4, 0), k) for k in range(5000)]
    assert len({draws._stream(task) for task in tasks}) == 5000


def test_threads_are_given_back(set_threads):
    set_threads(2)
    hessext.sweep(1, **TINY)
    assert torch.get_num_threads() == 2


# --------------------------------------------------------------------------------------------------- on disk

LONG = {"classes": [2, 40], "samples": 1500, "features": 150, "hidden": 4, "draws": 30}


def command(out, workers):
    sizes = [f"--{name}={str(size).strip('[]').replace(' ', '')}" for name, size in LONG.items()]
    words = [sys.executable, "-m", "hessext", "ratios", "--case=3", *sizes, f"--workers={workers}", f"--out={out}"]
    root = Path(hessext.__file__).parents[1]
    quiet = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    return subprocess.Popen(words, cwd=root, start_new_session=True, **quiet)


def wait_for_lines(path, count, process):
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)


def children(process):
    task = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in task.read_text().split()] if task.exists() else []


def running(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


def test_killed_run_continues_with_the_same_bits(tmp_path):
    whole, cut = tmp_path / "whole.csv", tmp_path / "ratios.csv"
    hessext.sweep(3, **LONG, workers=1, path=whole, progress=False)
    with command(tmp_path, 2) as process:
        wait_for_lines(cut, 15, process)
        workers = children(process)
        process.kill()
    assert 15 <= len(by_number(cut)) < len(by_number(whole))
    deadline = time.monotonic() + 10
    while any(map(running, workers)):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.01)
    hessext.sweep(3, **LONG, workers=1, path=cut, progress=False)
    assert by_number(cut) == by_number(whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupt_says_how_to_continue(workers, tmp_path):
    """As a terminal sends it, to workers as well."""
    with command(tmp_path, workers) as process:
        wait_for_lines(tmp_path / "ratios.csv", 10, process)
        os.killpg(process.pid, signal.SIGINT)
        message = process.stderr.read()
    assert process.returncode == 130
    assert "hessext ratios: stopped after" in message
    assert "of 60 draws" in message and "continues" in message
    assert "Traceback" not in message
    assert (tmp_path / "ratios.csv").read_bytes().endswith(b"\n")


@pytest.mark.parametrize("torn", [b"4", b"4,0,float32,2,6,4,2,0,hidden,0.01234", b"\0\0\0\0", b"4\r4"])
def test_torn_line_is_dropped(torn, tmp_path):
    path = tmp_path / "draws.csv"
    whole = hessext.sweep(4, hidden=2, path=path, **TINY)
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    for kept in (1, 2, 4):  # 2, 4: a draw of two rows is cut in the middle
        path.write_bytes(b"".join(lines[:kept]) + torn)
        assert hessext.sweep(4, hidden=2, path=path, **TINY) == whole
        assert path.read_bytes().startswith(b"".join(lines[:kept]))
        assert sorted(path.read_bytes().splitlines()) == sorted(good.splitlines())


@pytest.mark.parametrize("text", [b"", b"case", b"case,se"])
def test_torn_header_is_replaced(text, tmp_path):
    path = tmp_path / "draws.csv"
    path.write_bytes(text)
    hessext.sweep(2, path=path, **TINY)
    assert len(path.read_bytes().splitlines()) == 7


def test_file_opens_as_a_table(tmp_path):
    path = tmp_path / "draws.csv"
    result = hessext.sweep(4, hidden=2, path=path, **TINY)
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(result.rows) == 12
    assert [float(line["ratio"]) for line in table] == [row.ratio for row in sorted(result.rows, key=lambda r: r.draw)]


def test_more_draws_and_points_extend_a_file(tmp_path):
    path = tmp_path / "draws.csv"
    hessext.sweep(2, path=path, **TINY)
    before = path.read_bytes()
    more = TINY | {"draws": 5, "classes": [2, 4]}
    assert hessext.sweep(2, path=path, **more) == hessext.sweep(2, **more)
    assert path.read_bytes().startswith(before)
    after = path.read_bytes()
    hessext.sweep(2, path=path, **TINY)
    assert path.read_bytes() == after  # fewer are a part of what is there


@pytest.mark.parametrize("other", [{"seed": 1}, {"dtype": torch.float64}, {"case": 1}])
def test_other_settings_are_refused(other, tmp_path):
    path = tmp_path / "draws.csv"
    settings = {"case": 2, **TINY}
    hessext.sweep(**settings, path=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"^path: .* holds case 2, seed 0, float32; got case . seed"[:-6]):
        hessext.sweep(**(settings | other), path=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", [b"a,b\n1,2\n", b"c", b"cas", b"case\n", b"cases", b"\n"])
def test_other_files_are_refused(text, tmp_path):
    path = tmp_path / "draws.csv"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"^path: expected a file of hessext\.sweep"):
        hessext.sweep(2, path=path, **TINY)
    assert path.read_bytes() == text


@pytest.mark.parametrize("after", [2, 7])
@pytest.mark.parametrize("line", [b"2,0,float32\n", b"\n", b"2,0,float32,2,6,4,0,9,output,1,1,1,,,\n"])
def test_damaged_lines_are_refused(line, after, tmp_path):
    """The last one too: only a line without its newline is one that was being written."""
    path = tmp_path / "draws.csv"
    hessext.sweep(2, path=path, **TINY)
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:after], line, *lines[after:]])
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"line {after + 1} of"):
        hessext.sweep(2, path=path, **TINY)
    assert path.read_bytes() == damaged


def test_a_missing_folder_is_not_created(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^path: expected a file in a folder that exists"):
        hessext.sweep(2, path=tmp_path / "new" / "draws.csv", **TINY)
    assert not list(tmp_path.iterdir())


def test_two_runs_at_once_are_refused(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "draws.csv"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another run"):
            hessext.sweep(2, path=path, **TINY)
    hessext.sweep(2, path=path, **TINY)


# --------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"case": 5}, ValueError, "case: expected one of 1, 2, 3, 4; got 5"),
        ({"case": "2"}, TypeError, "case: expected an integer; got '2'"),
        ({"case": True}, TypeError, "case: expected an integer; got True"),
        ({"samples": True}, TypeError, "samples: expected an integer; got True"),
        ({"classes": 1}, ValueError, "classes: expected at least 2; got 1"),
        ({"classes": []}, ValueError, "classes: expected at least one size; got none"),
        ({"classes": "10"}, TypeError, "classes: expected an integer; got '10'"),
        ({"classes": [2, 2.5]}, TypeError, "classes: expected an integer; got 2.5"),
        ({"samples": 0}, ValueError, "samples: expected at least 1; got 0"),
        ({"samples": None}, ValueError, "samples, features, gamma: expected two of them; got samples=None"),
        ({"gamma": 1.0}, ValueError, "samples, features, gamma: expected two of them; got samples=6"),
        ({"features": None, "gamma": -1.0}, ValueError, "gamma: expected a finite number > 0; got -1.0"),
        ({"features": None, "gamma": 1e308}, ValueError, "gamma: expected d / N of sizes that a float can hold"),
        ({"path": 3}, TypeError, "path: expected a path; got 3"),
        ({"path": "a\0b"}, ValueError, "path: expected a path without null characters; got"),
        ({"path": "."}, IsADirectoryError, "path: expected a file; got the folder ."),
        ({"draws": 2**40}, MemoryError, "a list of 1099511627776 draws of 2 points needs"),
        ({"samples": [2, 3]}, ValueError, r"samples: expected one size, as classes is swept; got \[2, 3\]"),
        ({"hidden": 3}, ValueError, "hidden: expected None for a linear model; got 3"),
        ({"case": 4}, ValueError, "hidden: expected m, the number of hidden units; got None"),
        ({"draws": 1}, ValueError, "draws: expected at least 2; got 1"),
        ({"workers": 0}, ValueError, "workers: expected at least 1; got 0"),
        ({"executor": 2}, TypeError, "executor: expected a concurrent.futures.Executor, or a function"),
        ({"executor": ThreadPoolExecutor}, ValueError, "workers: expected None, as the executor has its own; got 1"),
        ({"seed": 0.5}, TypeError, "seed: expected an integer; got 0.5"),
        ({"dtype": torch.float16}, ValueError, "dtype: expected torch.float32 or torch.float64; got torch.float16"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        hessext.sweep(**({"case": 2} | TINY | options))


@pytest.mark.parametrize("case", [1, 3])
@pytest.mark.parametrize("size", ["classes", "samples", "features", "hidden"])
def test_draws_that_do_not_fit(case, size):
    if case == 1 and size == "hidden":
        return
    sizes = {"classes": 2, "samples": 3, "features": 4, "hidden": 2 if case == 3 else None} | {size: 10**15}
    with pytest.raises(MemoryError, match=rf"^a draw \(.*{size} 10{{15}}.*\) needs"):
        hessext.sweep(case, **sizes, draws=2, progress=False)


def test_duration():
    assert [duration(t) for t in (0.01, 59, 150, 7200)] == ["1 s", "59 s", "2 min", "2.0 h"]


def test_expected_time(capsys, monkeypatch):
    """Draws are counted from all of them; a run that is finished by the timing says nothing."""
    options = TINY | {"progress": True}
    hessext.sweep(2, **(options | {"draws": 2, "classes": [2, 3]}))
    assert "2 of 4 draws done, about 1 s to go on one thread" in capsys.readouterr().err
    monkeypatch.setattr(sweep, "compute_all", lambda tasks, source: (draws.compute(task) for task in tasks))
    hessext.sweep(2, **(options | {"workers": 2}))
    assert f"2 of 6 draws done, about {sweep._START:.0f} s to go on 2 workers" in capsys.readouterr().err


def test_nothing_is_said_where_nothing_is_left(tmp_path, capsys):
    path = tmp_path / "draws.csv"
    hessext.sweep(2, **TINY, path=path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    hessext.sweep(2, **(TINY | {"progress": True}), path=path)
    assert "to go" not in capsys.readouterr().err
