"""The operators are good citizens of torch: opcheck, and torch.compile without a graph break."""

import pytest
import torch
from helpers.cases import HIDDEN, LINEAR, make_inputs

from hessext import _ops
from hessext.matrix.curvature import Assemblies

OPERATORS = torch.ops.hessext


def arguments(case, dtype=torch.float64):
    """One call of each operator for a case's first part."""
    H = make_inputs(case, dtype).hessian()
    samples, row, col = H._data, H._data.network.whole[0], H._data.network.whole[-1]
    (call,) = Assemblies(H[row.name, col.name]._part)(None)
    part = call.arguments
    pairs = torch.tensor([[0, 0], [row.blocks - 1, col.blocks - 1]])
    rows, cols = row.blocks * row.size, col.blocks * col.size
    axes = [n for group in (row, col) for n in (0, group.size, group.cols, group.size, group.cols)]
    c = samples.output
    yield OPERATORS.dense_, (torch.zeros(rows, cols, dtype=dtype), cols, axes, True, row == col, None, *part)
    yield OPERATORS.blocks, (pairs, False, *part)
    yield OPERATORS.blocks, (pairs[:0], True, *part)
    blocks = torch.zeros(len(pairs), row.size, col.size, dtype=dtype)
    yield OPERATORS.blocks_, (blocks, pairs, False, *part)
    yield OPERATORS.block_squares, (pairs, *part)
    yield OPERATORS.curvature_entries, (pairs, *part[5:])
    curvature = _ops.Curvature(*part[5:])
    entries = _ops.curvature_entries(pairs, *curvature)
    given = _ops.Curvature(int(_ops.Kind.GIVEN), *curvature[1:4], entries=entries)
    yield (
        OPERATORS.dense_,
        (torch.zeros(rows, cols, dtype=dtype), cols, axes, True, row == col, pairs, *part[:5], *given),
    )
    yield OPERATORS.blocks, (pairs, False, *part[:5], *given)
    yield OPERATORS.block_squares, (pairs, *part[:5], *given)
    yield OPERATORS.curvature_entries, (pairs, *given)
    yield OPERATORS.curvature_entries, (pairs[:0], *part[5:])
    if c.probs is not None:
        yield OPERATORS.softmax_, (c.probs.log(),)
        yield OPERATORS.softmax_product_, (c.probs.clone(), c.probs, c.scale, c.top)
        yield OPERATORS.label_residual, (c.probs, c.scale, c.top.flip(0), c.top, c.rest)
        if samples.network.last:
            yield OPERATORS.softmax_shift, (c.probs, c.top, samples.network.like)
        yield from gram_arguments(c, dtype)


def gram_arguments(c, dtype):
    logits, N = c.probs.T.log(), len(c.scale)
    yield OPERATORS.logits_, (logits.contiguous(), logits.contiguous(), c.probs[0].clone(), torch.eye(N, dtype=dtype))
    largest, others = torch.full((N,), -torch.inf, dtype=dtype), torch.zeros(N, dtype=torch.float64)
    yield OPERATORS.softmax_scan_, (logits.contiguous(), 0, largest, torch.zeros_like(c.top), others)
    largest = logits.amax(0)
    yield OPERATORS.softmax_others_, (logits.contiguous(), 0, largest, c.top, others, others + 1)
    P, W = c.probs.T.contiguous(), torch.ones(N, N, dtype=dtype)
    products, sums = torch.zeros(N, N, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    yield OPERATORS.gram_sums_, (P, P, W, True, products, [products.clone()] * 2, [others + 1] * 2, sums)
    yield OPERATORS.gram_sums_, (P, P, None, False, None, [products], [], sums)
    top = [c.top, others, others, W]
    yield OPERATORS.gram_tops_, (products, W, True, [], [others + 1] * 2, top, top, sums)


@pytest.mark.parametrize("case", [LINEAR[0], HIDDEN[0]], ids=lambda c: c.name)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_opcheck(case):
    for operator, args in arguments(case):
        torch.library.opcheck(operator.default, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_without_a_graph_break():
    for operator, args in arguments(HIDDEN[0]):
        name = operator.__name__.rsplit(".", 1)[-1]
        call = getattr(_ops, name)
        if name.endswith("_"):  # writes to its arguments
            call = after(call)
        eager = call(*copied(args))
        torch.compiler.reset()  # the operators share the code of one function
        compiled = torch.compile(call, backend="eager", fullgraph=True)(*copied(args))
        torch.testing.assert_close(compiled, eager, rtol=0, atol=0)


def after(operator):
    def call(*args):
        operator(*args)
        return [a + 0 for a in args if isinstance(a, torch.Tensor)]

    return call


def copied(args):
    return [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
