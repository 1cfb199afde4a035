"""The bench suite: methods agree, wrong ones are not timed, clocks and memory. No assertion on real time."""

import dataclasses
import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import cases, machine, measure, methods, peers, run
from hessext import _core

CLOSED = ("hessext", "hessext out=", "careful", "plain")
QUICK = [case.quick() for case in cases.CASES.values() if case.small and case.group != "growth"]
TINY = cases.CASES["tiny"]
LINEAR = dataclasses.replace(cases.CASES["linear"], sizes=cases.Sizes(30, 4, 3))


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


def settings(*names, **options):
    options = {"threads": (1,), "repeats": 2, "budget": 0.1, "quick": True, "memory": False} | options
    return run.Settings((), names, **options)


def ran(case, *names, **options):
    """The report of one case."""
    found = {"failed": [], "benchmarks": []}
    run.run_case(case, settings(*names, **options), found, lambda what: None)
    return found


# ------------------------------------------------------------------------------------------------- cases and methods


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_closed_forms_agree_on_every_case(case, dtype):
    found = ran(case, *CLOSED, dtype=dtype, repeats=1)
    assert found["failed"] == []
    expected = {name for name in CLOSED if methods.known()[name].applies(case)}
    assert {row["name"] for row in found["benchmarks"]} == expected >= {"hessext"}


PARTS = [
    dataclasses.replace(TINY, part=part, loss=loss)
    for part, loss in itertools.product(("all", "hidden", "output", "cross"), ("cross_entropy", "mse"))
]
OTHERS = [dataclasses.replace(case, quantity="product") for case in (TINY, LINEAR)] + [LINEAR]
DEEP = [
    dataclasses.replace(cases.CASES[f"deep-{name}"], sizes=cases.Sizes(20, 5, 3, (6, 4)))
    for name in ("dense", "product", "diagonal")
]


# torch's forward mode loads its decompositions at first use, through its own deprecated torch.jit.script
FORWARD = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@FORWARD
@pytest.mark.parametrize("peer", peers.PEERS)
def test_peers_agree(peer):
    if why := peers.PEERS[peer].missing:
        pytest.skip(why)
    there = [case for case in PARTS + OTHERS + DEEP if methods.known()[peer].applies(case)]
    assert there
    for case in there:
        problem = cases.make(case, torch.float64)
        method = methods.known()[peer].make(problem)
        result = method.in_order(method.call())
        assert result.shape == case.result_shape
        assert methods.relative_error(result, methods.reference(problem)) < 1e-13


@FORWARD
def test_long_ones_are_sampled_and_extrapolated(monkeypatch):
    monkeypatch.setattr(peers, "WHOLE", 100)
    case = dataclasses.replace(TINY, sizes=cases.Sizes(20, 60, 5, 6))  # 390 parameters
    (row,) = ran(case, "torch.func.hessian")["benchmarks"]
    method = methods.known()["torch.func.hessian"].make(cases.make(case))
    rows, cols = method.call().shape
    assert 0 < rows < cols == 390 and method.scale == 390 / rows
    assert row["extra_info"]["note"] == f"{rows} of 390 rows, extrapolated"


def test_one_that_disagrees_is_not_timed(monkeypatch):
    def off(problem):
        return methods.Method(lambda: methods.hessext_result(problem) * 1.0001)

    def broken(problem):
        raise NotImplementedError("no such thing\nmore lines")

    known = methods.known() | {"off": methods.Entry(off), "broken": methods.Entry(broken)}
    monkeypatch.setattr(methods, "known", lambda *_: known)
    found = ran(TINY, "hessext", "off", "broken")
    assert [row["name"] for row in found["benchmarks"]] == ["hessext"]
    reasons = {row["name"]: row["reason"] for row in found["failed"]}
    assert reasons.keys() == {"off", "broken"}
    assert reasons["off"] == "disagrees with float64: relative error 1.0e-04"
    assert reasons["broken"] == "NotImplementedError: no such thing"


def test_missing_peers_are_named(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name in ("jax", "sklearn") else object())
    assert {"jax.hessian", "scikit-learn"} == methods.missing().keys()
    assert "pip install jax" in methods.missing()["jax.hessian"]
    assert not {"jax.hessian", "scikit-learn"} & methods.known().keys()


def test_variants_of_hessext(set_threads):
    known = methods.known(threads=(3,), isas=True)
    seen = []
    problem = cases.make(TINY)
    assert {f"hessext {isa}" for isa in _core.isas()} <= known.keys()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "hessext_result", lambda p: seen.append(torch.get_num_threads()))
        known["hessext, 3 threads"].make(problem).call()
    assert seen == [3] and torch.get_num_threads() == 1
    of_gpu = methods.known("cuda", (3,), True)
    assert [name for name in of_gpu if name.startswith("hessext")] == ["hessext", "hessext out="]
    assert "scikit-learn" not in of_gpu or not of_gpu["scikit-learn"].applies(LINEAR)


def counted(problem):
    """Multiply-adds over all entries on and right of the diagonal, of active samples: flops by brute force."""
    N, d, C, m = problem.case.sizes
    on = problem.x @ problem.hidden_weight.T > 0
    sizes = {"hidden": [(i, on[:, i]) for i in range(m) for _ in range(d)]}
    sizes["output"] = [(k, on[:, k]) for _ in range(C) for k in range(m)]
    hidden, output = sizes["hidden"], sizes["output"]
    flops = {"cross": sum(2 * int((a & b).sum()) for _, a in hidden for _, b in output)}
    rows = sum(2 * int((on[:, i] & on[:, k]).sum()) for i, k in itertools.combinations_with_replacement(range(m), 2))
    flops["hidden"] = rows * d * (d + 1) // 2
    flops["output"] = rows * C * (C + 1) // 2
    return flops


def test_flops_and_bytes_are_counted():
    by_hand = counted(cases.make(TINY))
    for part in ("hidden", "output", "cross"):
        problem = cases.make(dataclasses.replace(TINY, part=part))
        assert cases.necessary_flops(problem) == by_hand[part]
    assert cases.necessary_flops(cases.make(TINY)) == sum(by_hand.values())
    N, d, C, m = TINY.sizes
    assert cases.necessary_bytes(cases.make(TINY)) == 4 * (m * d + C * m + N * d + (m * d + C * m) ** 2) + 8 * N


def test_flops_of_several_hidden_layers_are_counted():
    problem = cases.make(DEEP[0])
    on = [torch.ones(20, 5, dtype=torch.bool)]
    a = problem.x
    for name in "01":
        a = (a @ problem.weights[name].T).relu()
        on.append(a > 0)
    on.append(torch.ones(20, 3, dtype=torch.bool))
    layers = list(itertools.pairwise(on))  # who is active among the features and among the units of a layer
    own = [
        sum(2 * math.comb(int(u) + 1, 2) * math.comb(int(f) + 1, 2) for f, u in zip(x.sum(1), z.sum(1), strict=True))
        for x, z in layers
    ]
    weights = [(z[:, :, None] & x[:, None, :]).flatten(1).double() for x, z in layers]
    between = sum(2 * float((a.T @ b).sum()) for a, b in itertools.combinations(weights, 2))
    assert cases.necessary_flops(problem) == sum(own) + between
    diagonal = sum(2 * int(u) * 15 for u in layers[0][1].sum(1))
    assert cases.necessary_flops(cases.make(DEEP[2])) == diagonal


# ------------------------------------------------------------------------------------------------- clocks and memory


def test_rounds_are_interleaved_within_a_budget(monkeypatch):
    monkeypatch.setattr(measure, "SHORTEST", 0.005)
    lengths = {"a": 1.0, "b": 3.0, "quick": 0.001}
    order = []

    def clock(call, inner):
        order.append((call(), inner))
        return lengths[call()]

    calls = {name: (lambda name=name: name) for name in lengths}
    found = measure.interleave(calls, clock, 4, 6.0, lambda what: None)
    assert {name: len(t.seconds) for name, t in found.items()} == {"a": 4, "b": 2, "quick": 4}
    first = [("a", 1), ("b", 1), ("quick", 1), ("quick", 5)]
    assert order == [*first, ("a", 1), ("b", 1), ("quick", 5), *2 * [("a", 1), ("quick", 5)]]


def test_cuda_is_timed_by_events(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, other):
            assert log[-1] == "wait" and other is not self
            return 600.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    assert measure.clock_of("cuda:0")(lambda: log.append("call"), 3) == pytest.approx(0.2)
    assert log == ["synchronize", "record", "call", "call", "call", "record", "wait"]
    assert measure.clock_of("cpu") is measure.cpu_clock


def test_cuda_memory_is_the_allocators(monkeypatch):
    state = {"held": 100, "peak": 900}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: state.update(peak=state["held"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: state["held"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: state["peak"])

    def call():
        state.update(peak=400)
        return SimpleNamespace(numel=lambda: 10, element_size=lambda: 8, device=torch.device("cuda:0"))

    assert measure.peak_memory(call, "cuda") == 400 - 100 - 80


def test_cpu_memory_is_seen_beyond_the_result():
    code = """
import torch
from bench import measure
size = 64 << 20
def call():
    return torch.ones(size, dtype=torch.uint8)[: size // 2].clone()
print(measure.peak_memory(call, "cpu") / size)
"""  # in a process of its own: here memory may be left over from other tests
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert 0.95 < float(run.stdout) < 1.2, run.stderr


def test_memory_apart():
    order = measure.Weighing("paper", "plain", "float32", "cpu", 1, True)
    assert measure.weigh_apart(order) is None  # it says on stderr that there is no such case
    whole = dataclasses.replace(order, case="ratio-128k")
    probabilities = 256 * 8000 * 4
    assert probabilities <= measure.weigh_apart(whole) < 20 * probabilities


# --------------------------------------------------------------------------------------------------- the roofline


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_multiply_adds_are_counted():
    assert machine._multiply_add(torch.float32, tries=1, rounds=10_000) > 0
    assert machine._multiply_add(torch.float64, tries=1, rounds=10_000) > 0


def test_roofline_is_the_slower_of_the_two():
    peaks = machine.Peaks(flops=10.0, matmul=8.0, bytes=2.0)
    assert peaks.floor(100, 2) == 10.0 and peaks.floor(1, 100) == 50.0


def test_machine_is_described_without_its_name():
    import platform

    found = machine.describe("cpu", 2)
    assert {"cpu", "cores", "threads", "hessext", "torch", "isa"} <= found.keys()
    assert platform.node() not in json.dumps(found)
