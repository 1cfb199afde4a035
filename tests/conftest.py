"""Fixtures, and the bounded, derandomized hypothesis profile that the suite runs under by default."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

from hessext import _core, _ops
from hessext.matrix import feature_products, gram, other_classes

slow_data = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "ci", derandomize=True, max_examples=40, deadline=None, database=None, suppress_health_check=slow_data
)
settings.register_profile("long", max_examples=2000, deadline=None, suppress_health_check=slow_data)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# What a shell runs in the background ignores it, and then its children do.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def set_threads():
    """torch.set_num_threads for one test; the count is restored after it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=_core.isas())
def isa(request):
    """One instruction set in force for a test."""
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


@pytest.fixture(
    params=[(None, None), (2500, None), (2500, 0), (None, 0)], ids=["whole", "pairs", "tiles", "recomputed"]
)
def memory(request, monkeypatch):
    """All samples at once and blocks of a few; probabilities kept, and formed again tile by tile."""
    squares, kept = request.param
    if squares is not None:
        monkeypatch.setattr(gram, "_SQUARES", squares)
    if kept is not None:
        monkeypatch.setattr(gram, "_ENTRIES", kept)
        monkeypatch.setattr(other_classes, "spare", lambda *_: False)
        monkeypatch.setattr(other_classes, "_SAMPLES", 7)
        for module in (feature_products, other_classes):
            monkeypatch.setattr(module, "_TILE", 1000)


SMALL = 64, 1 << 14, 5  # span, workspace and blocks of a launch: several of all of them
# How CUDA kernels are run: order of the threads of a block between barriers, whether on tensor cores, sizes of pieces.
EMULATED = {
    "tensor cores": (1, True, ()),
    "tensor cores, shuffled again": (2, True, ()),
    "plain": (3, False, ()),
    "small pieces": (4, True, SMALL),
}
GPU = {"gpu": (True, ()), "gpu, plain": (False, ()), "gpu, small pieces": (True, SMALL)}
if not (torch.cuda.is_available() and _core.cuda):
    GPU = {}


def run_as(core, products, limits):
    """How CUDA kernels are run from now on: whether on tensor cores, and the sizes of pieces, () for the usual ones."""
    core.set_tensor_cores(products)
    core.set_limits(*(limits or (0, 0, 0)))


@pytest.fixture
def emulated(monkeypatch):
    """The core whose CUDA kernels run on the CPU: tensors there are taken for a GPU's."""
    from hessext import _emulated as core  # built by scripts/env

    torch.use_deterministic_algorithms(True, warn_only=True)  # memory that nobody has written holds NaN
    monkeypatch.setattr(_ops, "_who", lambda t: (core, core.Stream(0, 0, _ops._Workspace(t.device))))
    yield core
    torch.use_deterministic_algorithms(False)
    run_as(core, True, ())


@pytest.fixture(params=[*EMULATED, *(pytest.param(name, marks=pytest.mark.gpu) for name in GPU)])
def cuda(request):
    """The device whose tensors are given to CUDA kernels: a GPU, or the CPU with the kernels emulated on it."""
    if request.param in GPU:
        run_as(_core, *GPU[request.param])
        yield "cuda"
        run_as(_core, True, ())
    else:
        order, products, limits = EMULATED[request.param]
        core = request.getfixturevalue("emulated")
        core.set_order(order)
        run_as(core, products, limits)
        yield "cpu"
