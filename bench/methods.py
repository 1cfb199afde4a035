"""The methods by name. Each takes a problem and returns its dense Hessian, in torch's parameter order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Problem
from .torch_forms import careful, plain, plain_ratio

AUTOGRAD_ROWS = 16  # rows that autograd computes where the whole Hessian would take minutes
AUTOGRAD_WHOLE = 256  # up to this many parameters autograd computes the whole Hessian


@dataclass
class Method:
    """A prepared method: `call()` returns the result, or only its `rows` where those are given."""

    name: str
    call: Callable[[], Tensor]
    note: str = ""
    rows: Tensor | None = None
    scale: float = 1.0  # measured seconds times this are the seconds of the whole result


# ------------------------------------------------------------------------------------------- autograd


def autograd(problem: Problem) -> Method:
    """torch.func: the whole Hessian where it is small, else a seeded sample of rows, extrapolated."""
    parts = [problem.output_weight] if problem.hidden_weight is None else [problem.hidden_weight]
    if problem.case.part == "dense" and problem.hidden_weight is not None:
        parts.append(problem.output_weight)
    flat = torch.cat([t.reshape(-1) for t in parts])
    sizes = [t.numel() for t in parts]

    def loss(parameters: Tensor) -> Tensor:
        pieces = [s.view(t.shape) for s, t in zip(parameters.split(sizes), parts, strict=True)]
        if problem.hidden_weight is None:
            f = problem.x @ pieces[0].T
        else:
            v = pieces[1] if len(pieces) == 2 else problem.output_weight
            f = (problem.x @ pieces[0].T).relu() @ v.T
        if problem.case.loss == "mse":
            return (f - problem.y).square().sum() / len(f)
        return torch.nn.functional.cross_entropy(f, problem.y)

    size = len(flat)
    if size <= AUTOGRAD_WHOLE:
        return Method("autograd", lambda: torch.func.hessian(loss)(flat), "torch.func.hessian")
    rows = torch.randperm(size, generator=torch.Generator().manual_seed(1))[:AUTOGRAD_ROWS].sort().values
    basis = torch.zeros(len(rows), size, dtype=flat.dtype)
    basis[torch.arange(len(rows)), rows] = 1

    def sample() -> Tensor:
        _, pull = torch.func.vjp(torch.func.grad(loss), flat)
        return torch.func.vmap(lambda e: pull(e)[0])(basis)

    note = f"{len(rows)} of {size} rows, extrapolated"
    return Method("autograd", sample, note, rows, size / len(rows))


# -------------------------------------------------------------------------------------------- hessext


def hessext_object(problem: Problem):
    """Return what hessext assembles for this problem: a Hessian, or one of its layers."""
    import hessext

    if problem.hidden_weight is None:
        return hessext.linear(problem.output_weight, problem.x, problem.y, loss=problem.case.loss)
    h = hessext.one_hidden(problem.hidden_weight, problem.output_weight, problem.x, problem.y, loss=problem.case.loss)
    return h["hidden"] if problem.case.part == "hidden" else h


def hessext_method(problem: Problem, isa: str | None = None, reuse: bool = False) -> Method:
    """Use hessext with the instruction set of its own choice, or `isa`; into a new result or a reused one."""
    out = problem.x.new_empty((problem.case.size,) * 2) if reuse else None

    def call() -> Tensor:
        if problem.case.part == "ratio":
            return torch.tensor(hessext_object(problem)["output"].ratio()[:2], dtype=torch.float64)
        return hessext_object(problem).dense() if out is None else hessext_object(problem).dense(out=out)

    if isa is None:
        return Method("hessext" + (" out=" if reuse else ""), call, "reused result" if reuse else "")

    from hessext import _core

    def with_isa() -> Tensor:
        before = _core.isa()
        _core.set_isa(isa)
        try:
            return call()
        finally:
            _core.set_isa(before)

    return Method(f"hessext {isa}", with_isa, "this instruction set alone")


def available_isas() -> list[str]:
    """Instruction sets that this machine can run; empty where hessext is not built."""
    try:
        from hessext import _core
    except ImportError:
        return []
    return list(_core.isas())


_PLAIN = {"ratio": plain_ratio}
_MATRICES_ONLY = ("hessext out=", "careful", "autograd")


def applies(name: str, part: str) -> bool:
    """Whether there is such a method for this part."""
    return part != "ratio" or name not in _MATRICES_ONLY


def known() -> dict[str, Callable[[Problem], Method]]:
    """All methods by name; hessext only where it can be imported."""
    table: dict[str, Callable[[Problem], Method]] = {}
    try:
        from hessext import linear, one_hidden  # noqa: F401  (a package without its core fails here)
    except ImportError:
        pass
    else:
        table["hessext"] = hessext_method
        table["hessext out="] = lambda problem: hessext_method(problem, reuse=True)
        for isa in available_isas():
            table[f"hessext {isa}"] = lambda problem, isa=isa: hessext_method(problem, isa)
    table["careful"] = lambda problem: Method("careful", lambda: careful(problem))
    table["plain"] = lambda problem: Method("plain", lambda: _PLAIN.get(problem.case.part, plain)(problem))
    table["autograd"] = autograd
    return table


def reference(problem: Problem) -> Tensor:
    """Return the closed form in float64 on the same inputs.

    It is `careful`, because `plain` takes minutes on `wide-ce`. The table proves it: `plain` and `autograd`
    share none of its assembly and are compared with it.
    """
    return _PLAIN.get(problem.case.part, careful)(problem.to(torch.float64))


def relative_error(result: Tensor, truth: Tensor, rows: Tensor | None = None, chunk: int = 1024) -> float:
    """Return ||result - truth||_F / ||truth||_F, summed in float64; `rows` are those of the truth to use."""
    if rows is not None:
        truth = truth[rows]
    if truth.ndim == 1:  # a few numbers of very different size
        return float((result / truth - 1).abs().max())
    if result.shape != truth.shape:
        return math.inf
    pairs = zip(result.split(chunk), truth.split(chunk), strict=True)
    error = math.fsum(float((r - t).square().sum()) for r, t in pairs)
    norm = math.fsum(float(t.square().sum()) for t in truth.split(chunk))
    return math.sqrt(error / norm)
