"""Signals in the midst of long calls, several threads, forks, and files that are cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.cases import Case, make_inputs

import hessext
from hessext import _files
from hessext.matrix import norms


class Stop(Exception):
    """What a handler of signals raises, as Python's own raises KeyboardInterrupt."""


def linear(N, d, C):
    g = torch.Generator().manual_seed(0)
    x, W = torch.randn(N, d, generator=g), torch.randn(C, d, generator=g) / d**0.5
    return hessext.linear(W, x)["output"]


def network(N, d, m, C, activation="gelu"):
    g = torch.Generator().manual_seed(0)
    x, W, V = torch.randn(N, d, generator=g), torch.randn(m, d, generator=g) / d**0.5, torch.randn(C, m, generator=g)
    return hessext.one_hidden(W, V / m**0.5, x, torch.arange(N) % C, activation=activation)


def pairs(count):
    return torch.stack([torch.arange(count) // 100, torch.arange(count) % 100], 1)


LONG = {  # on one thread each takes 10 s or more
    "outer pairs of blocks": (lambda: linear(20_000, 1000, 100), lambda B: B.blocks([(0, 0)] * 200)),
    "outer pairs of features": (lambda: linear(30_000, 30, 300), lambda B: B.dense()),
    "products": (lambda: linear(30_000, 20, 500), lambda B: B.dense()),
    "outer pairs of both": (lambda: network(6000, 200, 60, 200)["hidden", "output"], lambda B: B.dense()),
    "weights": (lambda: network(10_000, 2, 400, 500)["hidden"], lambda B: B.dense()),
    "squares": (lambda: linear(300, 3000, 1000), lambda B: norms.block_squares(B._part)(pairs(10_000))),
    "sums over samples": (lambda: linear(4000, 20, 60_000), lambda B: B.ratio()),
}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX")
@pytest.mark.parametrize("name", LONG)
def test_a_signal_ends_a_long_call(name, set_threads):
    """Its handler runs, and what it raises comes out of the call; the next call is as if nothing had been."""
    set_threads(1)
    make, call = LONG[name]
    small = make_inputs(Case(20, 5, 4, 6, bias="ho"), torch.float32)
    before = small.hessian().dense()
    B = make()

    def stop(*_):
        raise Stop

    handler = signal.signal(signal.SIGALRM, stop)
    start = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Stop):
            call(B)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert time.monotonic() - start < 3
    assert torch.equal(small.hessian().dense(), before)


def test_threads_compute_what_one_does(set_threads):
    """Calls of two Python threads at once, each with a team of its own, give the same bits as one after the other."""
    set_threads(2)
    cases = [Case(300, 20, 30, 40, bias="ho"), Case(500, 30, 20), Case(200, 10, 5, 60, activation="gelu", loss="mse")]
    work = [make_inputs(case, torch.float32) for case in cases] * 2

    def results(inputs):
        H = inputs.hessian()
        return H.dense(), H.norms(), H @ torch.ones(len(H.dense())), torch.tensor(H["output"].ratio())

    expected = list(map(results, work))
    with ThreadPoolExecutor(2) as pool:
        for got, wanted in zip(pool.map(results, work), expected, strict=True):
            assert all(map(torch.equal, got, wanted))


FORK = """
import os, signal, sys, warnings
import torch, hessext
torch.set_num_threads(2)
torch.manual_seed(0)
x, W = torch.randn(2000, 30), torch.randn(20, 30)

def square():
    return hessext.linear(W, x)["output"].dense().norm().item()

class Data(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, k): return square()

def main():
    expected = square()  # both teams of threads have worked
    (x @ W.T).exp().sum()
    warnings.simplefilter("ignore")  # Python's, of forks beside threads
    for value in torch.utils.data.DataLoader(Data(), num_workers=2, batch_size=None, multiprocessing_context="fork"):
        assert abs(value / expected - 1) < 1e-6
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(abs(square() / expected - 1) > 1e-6)
    assert os.waitpid(child, 0)[1] == 0
    assert square() == expected and torch.get_num_threads() == 2
    print("fine")

main()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_fork_after_use():
    """OpenMP's threads are not there in a child: it computes on one, in a loader's workers and after os.fork."""
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert run.stdout == "fine\n", run.stderr


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    _files.replace(path, b"old")

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        _files.replace(path, b"new, and longer")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("batches", [False, True])
def test_autocast_changes_nothing(loss, batches):
    """It would hand bfloat16 to kernels that take float32."""
    g = torch.Generator().manual_seed(0)
    W, V = torch.randn(5, 8, generator=g), torch.randn(3, 5, generator=g)
    x, y = torch.randn(700, 8, generator=g), torch.randint(3, (700,), generator=g)
    data = ([(x[:300], y[:300]), (x[300:], y[300:])], None) if batches else (x, y)

    def results():
        for activation in ("relu", "gelu"):
            H = hessext.one_hidden(W, V, *data, activation=activation, loss=loss)
            v = torch.ones(H.shape[0])
            yield from (H.dense(), H @ v, H.norms())
            for name in H.layers:
                B = H[name]
                yield from (B.block(0, 0), B.diagonal(), B.trace(), B.norms([(0, 0)]), torch.tensor(B.ratio()))
                yield from (*B.row_norms(), B @ v[: B.shape[0]], B.solve_block_diagonal(v[: B.shape[0]], 1.0))
                yield B.eigh_blocks().eigenvalues
        H = hessext.linear(V, x[:, :5], y, loss=loss)["output"]
        yield from (H.dense(), H.norms(), torch.tensor(H.ratio()), H.diagonal_blocks())

    expected = list(results())
    with torch.autocast("cpu", torch.bfloat16):
        for out, wanted in zip(results(), expected, strict=True):
            assert out.dtype == wanted.dtype
            assert torch.equal(out, wanted)


def test_operators_refuse_half_precision():
    with pytest.raises(TypeError, match=r"expected torch.float32 or torch.float64; got torch.bfloat16"):
        torch.ops.hessext.softmax_(torch.ones(2, 3, dtype=torch.bfloat16))
