"""Faults put into the kernels' PTX: each is found, as a fault or as a wrong result."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context

import pytest
import torch
from helpers.gram_reference import assert_rounded
from helpers.reference import assert_accurate, assert_softmax

from hessext import _ops

from . import build
from .cases import gram, logits, residual
from .faults import Stopped
from .launches import Device
from .mutations import mutations
from .parse import Kernel

pytestmark = pytest.mark.skipif(bool(build.missing()), reason=build.missing())


@cache
def built():
    return build.build(["90"])


def multiply():
    """Lists of samples, two rounds of them."""
    torch.manual_seed(0)
    x, slope = torch.randn(520, 20, dtype=torch.float64), (torch.randn(520, 2) > 0).double()
    scale, V = torch.linspace(1, 2, 520, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    curvature = _ops.Curvature(1, 2, 2, True, 3, scale=scale, weight=V, gram=V.T @ V, slope=slope)
    pairs = torch.tensor([[0, 0], [0, 1]])
    blocks = _ops.blocks(pairs, False, x, False, x, False, True, *curvature)
    squares = _ops.block_squares(pairs, x, False, x, False, True, *curvature)
    for (i, j), block, square in zip(pairs.tolist(), blocks, squares, strict=True):
        weights = scale * slope[:, i] * slope[:, j] * (V.T @ V)[i, j]
        exact = (x * weights[:, None]).T @ x
        assert_accurate(block, exact)
        assert_accurate(square, exact.square().sum())


OPERATIONS = {
    "gram": (lambda: gram(torch.float32), (40, 0, 0)),
    "multiply": (multiply, (0, 0, 0)),
    "small": (assert_rounded, (32, 0, 0)),
    "logits": (lambda: logits(65, 130, 40, 0), (0, 0, 0)),
    "residual": (lambda: residual(torch.float32), (0, 0, 0)),
    "softmax": (lambda: assert_softmax(300, 1.0, torch.float32), (0, 0, 0)),
}


def found(operation: str, kernels: dict[str, Kernel]) -> str:
    """What is wrong; empty if nothing."""
    run, limits = OPERATIONS[operation]
    device = Device(built()[0], kernels)
    device.faults.stops = True
    try:
        with device.in_use(limits=limits):
            run()
    except (AssertionError, Stopped) as error:
        return f"{error} {device.faults.lines()}"
    return "\n".join(device.faults.lines())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nothing_is_found_in_the_kernels(operation):
    assert found(operation, built()[1]["90"]) == ""


@cache
def listed():
    return list(mutations(built()[1]["90"]))


def missed(number: int) -> str:
    """The name of a mutation that is not found."""
    operation, mutation = listed()[number]
    kernels = built()[1]["90"]
    with_it = {**kernels, mutation.kernel: mutation.of(kernels[mutation.kernel])}
    return "" if found(operation, with_it) else f"{operation}: {mutation.kernel}: {mutation.what}"


def test_every_mutation_is_found():
    count = len(listed())
    assert count > 70
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        assert [name for name in pool.map(missed, range(count), chunksize=4) if name] == []


def test_a_kernel_that_is_not_there_is_found():
    kernels = {name: replace(kernel) for name, kernel in built()[1]["90"].items() if "residual" not in name}
    assert "not in the PTX" in found("residual", kernels)
