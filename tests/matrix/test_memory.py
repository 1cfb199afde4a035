"""Peak memory beyond the result stays under 1.2 times the inputs and 64 MiB, in a fresh process per call."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

import hessext

MEASURE = """
import re, sys, torch, hessext
from pathlib import Path
torch.set_num_threads(2)

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

hessext.linear(torch.ones(2, 2), torch.ones(3, 2))["output"].norms()  # thread pools and code are loaded
{setup}
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = status("VmRSS")
result = {call}
beyond = status("VmHWM") - before - (result.numel() * result.element_size() if torch.is_tensor(result) else 0)
inputs = sum(t.numel() * t.element_size() for t in given)
print(beyond, int(1.2 * inputs) + (64 << 20))
"""

LINEAR = "N, d, C = {}; given = x, W = torch.randn(N, d), torch.randn(C, d); y = torch.randint(C, (N,))"
NETWORK = "N, d, m, C = {}; given = x, W, V = torch.randn(N, d), torch.randn(m, d), torch.randn(C, m)"

DEEP = """
widths = {}
layers = [f(*w) for w in zip(widths, widths[1:]) for f in (torch.nn.Linear, lambda *_: torch.nn.Tanh())]
model, x, y = torch.nn.Sequential(*layers[:-1]), torch.randn(200, widths[0]), torch.zeros(200).long()
given = x, *model.parameters()
"""

CASES = {
    "paper": (NETWORK.format("5000, 500, 8, 500"), "one_hidden(W, V, x, torch.zeros(N).long()).dense()"),
    "many pairs": (LINEAR.format("32, 10, 1000"), "linear(W, x)['output'].norms(torch.zeros(100000, 2).long())"),
    "wide": (LINEAR.format("64, 2000, 64"), "linear(W, x)['output'].norms()"),
    "very wide": (LINEAR.format("4, 12000, 2"), "linear(W, x)['output'].norms([(0, 1)] * 8)"),
    "many samples": (LINEAR.format("1000000, 8, 3"), "linear(W, x)['output'].dense()"),
    "trace": (LINEAR.format("20000, 2000, 3"), "linear(W, x)['output'].trace()"),
    "many units": (NETWORK.format("4, 10, 800, 3"), "one_hidden(W, V, x, torch.zeros(N).long())['hidden'].dense()"),
    "transposed": (
        NETWORK.format("16, 100, 100, 30"),
        "one_hidden(W, V, x, torch.zeros(N).long())['output', 'hidden'].blocks([(c, c) for c in range(30)] * 30)",
    ),
    "deep": (DEEP.format("400, 200, 100, 10"), "hessian(model, x, y)['0'].diagonal_blocks()"),
    "deep, in no order": (
        DEEP.format("400, 200, 100, 10"),
        "hessian(model, x, y)['0'].blocks([(c, c) for c in reversed(range(200))])",
    ),
    "deep, far": (
        DEEP.format("400, 200, 100, 10"),
        "hessian(model, x, y)['0', '4'].blocks([(c % 200, c % 10) for c in range(400, 0, -1)])",
    ),
    "deep, dense": (DEEP.format("400, 200, 100, 10"), "hessian(model, x, y)['0', '4'].dense()"),
    "deep, one unit": (DEEP.format("600, 1, 200, 600"), "hessian(model, x, y)['0', '4'].dense()"),
    "deep, wide between": (DEEP.format("400, 200, 2000, 10, 10"), "hessian(model, x, y)['0', '6'].dense()"),
}


AGAIN = "hessext.matrix.other_classes.spare = lambda *_: False"
GRAM = {  # N x N in place of blocks: 512 MiB beyond the inputs, whatever C is
    "probabilities kept": (LINEAR.format("500, 16, 80000"), "linear(W, x)['output'].ratio()"),
    "formed again": (f"{LINEAR}; {AGAIN}".format("900, 16, 160000"), "linear(W, x)['output'].ratio()"),
    "blocks of samples": (LINEAR.format("6000, 40, 200"), "linear(W, x)['output'].ratio()"),
    "all pairs of classes": (LINEAR.format("16, 4, 4000"), "linear(W, x)['output'].norms()"),
    "many pairs": (LINEAR.format("32, 500, 1000"), "linear(W, x)['output'].norms(torch.zeros(100000, 2).long())"),
    "pairs": (LINEAR.format("3000, 500, 300"), "linear(W, x)['output'].norms([(0, 1)] * 1000)"),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", CASES)
def test_peak_memory(name):
    beyond, allowed = measured(*CASES[name])
    assert beyond <= allowed, f"{beyond >> 20} MiB beyond the result, {allowed >> 20} MiB allowed"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", GRAM)
def test_peak_memory_of_the_gram_form(name):
    beyond, _ = measured(*GRAM[name])
    assert beyond <= 512 << 20, f"{beyond >> 20} MiB"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_squares_of_wide_features_are_formed_in_pieces():
    beyond, _ = measured(LINEAR.format("8192, 4096, 3"), "linear(W, x)['output'].diagonal()")
    assert beyond <= 96 << 20, f"{beyond >> 20} MiB"


def test_what_is_kept_goes_with_the_object():
    """No circle keeps tensors until the collector comes."""
    gc.disable()
    try:
        H = hessext.one_hidden(torch.ones(2, 3), torch.ones(4, 2), torch.ones(5, 3), torch.zeros(5).long())
        H.dense(), H @ torch.ones(14), H.norms(), H.diagonal()
        kept = weakref.ref(H._data), weakref.ref(H._data.output.probs)
        del H
        assert [t() for t in kept] == [None, None]
    finally:
        gc.enable()


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a system without huge pages")
def test_large_results_are_in_huge_pages():
    """The system has been asked for them ("hg")."""
    H = hessext.linear(torch.ones(750, 4), torch.ones(2, 4))
    result, flags, inside = H.dense(), None, False
    address = result.data_ptr() + result.nbytes // 2
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition("-")
        if rest and "VmFlags" not in line and all(c in "0123456789abcdef" for c in first):
            inside = int(first, 16) <= address < int(rest.split()[0], 16)
        elif inside and line.startswith("VmFlags:"):
            flags = line.split()[1:]
    assert "hg" in flags


def measured(setup, call):
    """Peak bytes beyond the result, and 1.2 times the inputs and 64 MiB."""
    code = MEASURE.format(setup=setup, call=f"hessext.{call}")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    beyond, allowed = map(int, run.stdout.split())
    return beyond, allowed
