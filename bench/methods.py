"""The methods by name: hessext, the closed forms in torch, and the peers. All return the same result."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .careful import careful
from .cases import APPROXIMATIONS, Case, Problem
from .method import Method
from .peers import PEERS
from .plain import plain

if TYPE_CHECKING:
    from hessext import BlockMatrix, Hessian


@dataclass(frozen=True)
class Entry:
    """A method that is not yet prepared for a problem."""

    make: Callable[[Problem], Method]
    applies: Callable[[Case], bool] = lambda case: True
    threads: int = 0  # of torch and hessext; 0: those of the run
    weighed: bool = True  # whether peak memory is measured; not of sampled rows, nor with an allocated result


# ------------------------------------------------------------------------------------------------------------ hessext


def hessian(problem: Problem) -> Hessian:
    """The Hessian object of a problem."""
    import hessext

    weights, loss = list(problem.weights.values()), problem.case.loss
    if problem.case.deep:
        return hessext.feed_forward(weights, problem.x, problem.y, activations="relu", loss=loss)
    if problem.hidden_weight is None:
        return hessext.linear(*weights, problem.x, problem.y, loss=loss)
    return hessext.one_hidden(*weights, problem.x, problem.y, activation="relu", loss=loss)


def asked(problem: Problem) -> Hessian | BlockMatrix:
    """The part that the case asks for."""
    h, part = hessian(problem), problem.case.part
    if part == "all":
        return h
    return h["hidden", "output"] if part == "cross" else h[part]


def hessext_result(problem: Problem, out: Tensor | None = None) -> Tensor:
    """Compute the quantity of the case with hessext."""
    case, h = problem.case, asked(problem)
    match case.quantity:
        case "dense":
            return h.dense(out=out)
        case "blocks":
            return h.blocks(problem.pairs)
        case "diagonal blocks":
            return h.diagonal_blocks()
        case "norms":
            return h.norms()
        case "ratio":
            return torch.tensor(h.ratio()[:2], dtype=torch.float64)
        case "approximations":
            table = h.approximations()
            return torch.tensor([table[name].relative_error for name in APPROXIMATIONS], dtype=torch.float64)
        case "product":
            return h @ problem.vector


def _hessext(problem: Problem) -> Method:
    return Method(lambda: hessext_result(problem))


def _hessext_out(problem: Problem) -> Method:
    out = problem.x.new_empty(problem.case.result_shape)
    return Method(lambda: hessext_result(problem, out), "into a result that is there")


@contextmanager
def threads_set(threads: int):
    """Use that many threads in torch and hessext; 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _with_threads(threads: int) -> Callable[[Problem], Method]:
    def make(problem: Problem) -> Method:
        def call() -> Tensor:
            with threads_set(threads):
                return hessext_result(problem)

        return Method(call)

    return make


def _with_isa(isa: str) -> Callable[[Problem], Method]:
    from hessext import _core

    def make(problem: Problem) -> Method:
        def call() -> Tensor:
            before = _core.isa()
            _core.set_isa(isa)
            try:
                return hessext_result(problem)
            finally:
                _core.set_isa(before)

        return Method(call, "this instruction set")

    return make


# ------------------------------------------------------------------------------------------------------------ by name


def known(device: str = "cpu", threads: tuple[int, ...] = (), isas: bool = False) -> dict[str, Entry]:
    """All methods that can run on the device: hessext's variants first, then torch's closed forms, then the peers.

    threads: further thread counts for hessext; isas: each of its instruction sets too.
    """

    def dense(case: Case) -> bool:
        return case.quantity == "dense"

    def gathered(case: Case) -> bool:
        return dense(case) and not case.deep

    def closed(case: Case) -> bool:
        return case.quantity != "product"

    table = {"hessext": Entry(_hessext), "hessext out=": Entry(_hessext_out, dense, weighed=False)}
    if device == "cpu":
        for count in threads:
            name = f"hessext, {count} thread{'s' * (count > 1)}"
            table[name] = Entry(_with_threads(count), threads=count, weighed=False)
        if isas:
            from hessext import _core

            table |= {f"hessext {isa}": Entry(_with_isa(isa), weighed=False) for isa in _core.isas()}
    table["careful"] = Entry(lambda problem: Method(lambda: careful(problem)), gathered)
    table["plain"] = Entry(lambda problem: Method(lambda: plain(problem)), closed)
    for name, peer in PEERS.items():
        if not peer.missing:
            table[name] = Entry(peer.make, lambda case, peer=peer: peer.applies(case, device), weighed=False)
    return table


def missing() -> dict[str, str]:
    """The peers that cannot run, and why."""
    return {name: peer.missing for name, peer in PEERS.items() if peer.missing}


# -------------------------------------------------------------------------------------------------------------- truth


def reference(problem: Problem) -> Tensor:
    """Return the closed form in float64 on the same inputs, or double backward for products.

    It is `careful` where that applies, as `plain` is slow for many hidden units. `plain` and the peers share none of
    its assembly, so that their errors against it in the table confirm it.
    """
    wide = problem.to(torch.float64)
    if problem.case.quantity == "product":
        return PEERS["double backward"].make(wide).call()
    return careful(wide) if problem.case.quantity == "dense" and not problem.case.deep else plain(wide)


def relative_error(result: Tensor, truth: Tensor, rows: Tensor | None = None, chunk: int = 1024) -> float:
    """Return ||result - truth||_F / ||truth||_F, summed in float64; `rows` are the rows of the truth to compare with.

    The two numbers of a ratio differ by orders of magnitude: for these it is the larger of their relative errors.
    """
    if rows is not None:
        truth = truth.flatten(0, -2)[rows.to(truth.device)]  # rows of blocks are numbered through all blocks
    if result.shape != truth.shape:
        return math.inf
    if len(truth) == 2 and truth.ndim == 1:
        return float((result.to(truth.device) / truth - 1).abs().max())
    pairs = zip(result.split(chunk), truth.split(chunk), strict=True)
    error = math.fsum(float((r.to(t.device) - t).square().sum()) for r, t in pairs)
    norm = math.fsum(float(t.square().sum()) for t in truth.split(chunk))
    return math.sqrt(error / norm)
