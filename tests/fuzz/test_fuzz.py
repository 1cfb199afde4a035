"""Hypothesis: any shapes, strides, dtypes, losses and pair lists agree with the reference; any junk raises.

HYPOTHESIS_PROFILE=long looks further than the derandomized default of conftest.py.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from helpers.arguments import junk
from helpers.cases import DTYPES, Case, Inputs, make_inputs
from helpers.fuzzed import cases, close, off_kinks
from helpers.reference import TOLERANCE, blocks, dense, matrix
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F

import hessext


def strided(t, way: int):
    """The same values in another layout; others in memory that is shared by rows, which only strides can describe."""
    if t is None or way == 0 or t.ndim == 0:
        return t
    if way == 5:
        return t[:1].expand_as(t)
    if way == 6:
        return t.contiguous().as_strided(t.shape, (1,) * t.ndim)  # overlapping windows
    if way == 1:
        return torch.stack([t, t + 1], -1)[..., 0]
    if way == 2:
        return t.mT.contiguous().mT if t.ndim == 2 else t.flip(0).contiguous().flip(0)
    return torch.cat([t, t])[: len(t)] if way == 3 else torch.stack([t, t + 1], 1)[:, 0]


def restride(inputs: Inputs, ways) -> Inputs:
    """Every tensor of a case in some layout."""
    names = ("x", "y", "output_weight", "output_bias", "hidden_weight", "hidden_bias")
    tensors = {n: strided(getattr(inputs, n), way) for n, way in zip(names, ways, strict=True)}
    return Inputs(inputs.case, loss=inputs.loss, **tensors)


ways = st.integers(0, 6)
layouts = st.tuples(ways, ways, ways.filter(lambda w: w != 5), ways, ways, ways)  # equal rows of V: all cancels
terms = st.sampled_from(["full", "gauss_newton", "residual"])


@given(cases(), st.sampled_from(DTYPES), layouts, terms)
def test_dense_and_product(case, dtype, ways, term):
    inputs = restride(make_inputs.__wrapped__(case, dtype), ways)
    assume(off_kinks(inputs))
    H = inputs.hessian()
    H = H if term == "full" else getattr(H, term)()
    expected = dense(blocks(inputs.lift(), term), inputs)
    scale = dense(blocks(inputs.lift()), inputs).norm()
    out = H.dense()
    assert torch.equal(out, out.T)
    assert close(out, expected, scale, dtype)
    v = torch.linspace(-1, 1, len(out), dtype=dtype)
    assert close(H @ v, expected @ v.double(), scale * max(1, v.double().norm()), dtype)


@given(cases(), st.sampled_from(DTYPES), layouts, st.data())
def test_pair_lists(case, dtype, ways, data):
    inputs = restride(make_inputs.__wrapped__(case, dtype), ways)
    assume(off_kinks(inputs))
    H = inputs.hessian()
    row, col = (data.draw(st.sampled_from(H.layers)) for _ in range(2))
    parts, B = blocks(inputs.lift()), H[row, col]
    part, whole = parts[row, col], dense(parts, inputs).norm()
    rows, cols = B.grid
    pairs = data.draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, cols - 1)), min_size=1, max_size=40))
    repeats = data.draw(st.integers(1, 3))
    pairs = torch.tensor(pairs * repeats)
    given_as = data.draw(st.sampled_from([lambda p: p, lambda p: p.T.contiguous().T, lambda p: p.tolist()]))
    i, j = pairs.T
    assert close(B.blocks(given_as(pairs)), part[i, j], repeats * whole + part[i, j].norm(), dtype)
    norms = part.flatten(2).norm(dim=2)
    assert close(B.norms(given_as(pairs)), norms[i, j], repeats * whole + norms[i, j].norm(), dtype)
    assert close(B.norms(), norms, whole, dtype)
    assert close(B.dense(), matrix(part), whole, dtype)


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)), max_size=5))
def test_any_pairs_are_right_or_refused(pairs):
    B = make_inputs(Case(3, 2, 4), torch.float32).hessian()["output"]
    inside = bool(pairs) and all(0 <= i < 4 and 0 <= j < 4 for i, j in pairs)
    for method in (B.blocks, B.norms):
        if inside:
            assert len(method(pairs)) == len(pairs)
        else:
            with pytest.raises(IndexError if pairs else ValueError):
                method(pairs)


@given(
    junk,
    junk,
    junk,
    junk,
    junk,
    st.sampled_from(["relu", "gelu", "what"]),
    st.sampled_from(["cross_entropy", "binary_cross_entropy", "mse", "?"]),
)
def test_junk_is_refused_and_nothing_crashes(W, V, x, y, bias, kind, loss):
    for call in (
        lambda: hessext.one_hidden(W, V, x, y, hidden_bias=bias, activation=kind, loss=loss),
        lambda: hessext.linear(W, x, y, bias=bias, loss=loss),
    ):
        try:
            H = call()
        except (ValueError, TypeError):
            continue
        H.dense()
        H.norms()
        H @ torch.ones(H.shape[0], dtype=H.dtype)


magnitudes = st.sampled_from([0.0, -0.0, 1e-45, 1e-40, 1e-20, 1e-6, 1.0, -1.0, 30.0, 1e4, -1e10, 1e20, 1e30, 3e38])
names = ("x", "y", "output_weight", "output_bias", "hidden_weight", "hidden_bias")


def magnified(case: Case, dtype, factors) -> Inputs:
    """A case with each of its float tensors times a factor."""
    inputs = make_inputs.__wrapped__(case, dtype)
    tensors = {n: getattr(inputs, n) for n in names}
    scaled = {
        n: t * f if t is not None and t.is_floating_point() else t
        for (n, t), f in zip(tensors.items(), factors, strict=True)
    }
    assume(all(t.isfinite().all() for t in scaled.values() if t is not None))
    return Inputs(case, loss=inputs.loss, **scaled)


@given(cases(), st.sampled_from(DTYPES), st.lists(magnitudes, min_size=6, max_size=6))
def test_extreme_values_overflow_but_never_crash(case, dtype, factors):
    inputs = magnified(case, dtype, factors)
    H = inputs.hessian()
    refused = ""
    try:
        out = H.dense()
    except ValueError as error:
        refused = str(error)
    if refused:
        assert refused == f"x: expected logits that {dtype} can hold; got some that overflow"
        assert not logits(inputs).isfinite().all()
        return
    assert out.shape == H.shape
    assert torch.equal(out.nan_to_num(7.0), out.T.nan_to_num(7.0))
    for r in H.layers:
        for call in (H[r].norms, H[r].ratio, H[r].row_norms, H[r].diagonal, H[r].trace):
            call()
    H @ torch.ones(len(out), dtype=dtype)


def logits(inputs: Inputs) -> torch.Tensor:
    """What goes into the loss, in the inputs' dtype."""
    with torch.no_grad():
        return inputs.model()(inputs.x)


def largest(*tensors) -> float:
    """The largest of all entries and 1."""
    return max(1.0, *(t.abs().max().item() for t in tensors if t is not None))


@given(cases(), st.lists(magnitudes.filter(lambda f: f < 3e38), min_size=6, max_size=6))
def test_extreme_values_are_right_where_plain_torch_is(case, factors):
    """Where the plain closed form is finite in float32, so is ours, and as exact as float32 logits allow."""
    inputs = magnified(case, torch.float32, factors)
    lifted = inputs.lift()
    assume(off_kinks(inputs))
    assume(logits(inputs).isfinite().all())
    x, V = lifted.x, lifted.output_weight
    assume(V.abs().max() < 1e18)  # else V^T V overflows where slopes would have brought it back
    truth, plain, H = blocks(lifted), blocks(inputs), inputs.hessian()
    z = x if lifted.hidden_weight is None else F.linear(x, lifted.hidden_weight, lifted.hidden_bias)
    # Probabilities are e^logit, and any entry below 1e-38 may be taken for zero.
    rounding = 10 * TOLERANCE[torch.float32] * largest(z, logits(lifted))
    lost = 1e-37 * len(x) * largest(lifted.y) * (largest(x, z) * largest(V)) ** 2
    for key, part in plain.items():
        if not part.isfinite().all():
            continue
        exact = truth[key]
        error, allowed = matrix(exact).sub(H[key].dense()).norm(), rounding * exact.norm() + lost * exact.numel() ** 0.5
        assert error <= max(allowed, 10 * (exact - part).norm())
        norms = exact.flatten(2).norm(dim=2)
        assert norms.max() > 3e38 or (norms - H[key].norms()).norm() <= max(allowed, 10 * (exact - part).norm())


sizes_of_any_kind = st.sampled_from([-(2**63), -1, 0, 1, 2, 5, True, 2.0, 2.5, math.nan, math.inf, "2", None])
numbers_of_any_kind = st.sampled_from([-1.0, 0.0, 5e-324, 1e-9, 0.5, 1, 3.0, 1e9, 1e100, math.nan, math.inf, "1", None])
FUNCTIONS = {  # of numbers: their names and kinds
    hessext.theory.linear_mse: "g",
    hessext.theory.linear_ce_limit: "g",
    hessext.theory.linear_ce: "gn",
    hessext.theory.hidden_mse: "gnn",
    hessext.theory.hidden_mse_limit: "gn",
    hessext.theory.output_mse: "n",
    hessext.theory.hidden_ce_limit: "gn",
    hessext.theory.output_ce_limit: "n",
    hessext.theory.cross_ce: "gnn",
    hessext.theory.cross_mse: "gnn",
    hessext.theory.F: "gn",
    hessext.theory.fourth_moment: "gn",
    hessext.theory.h0: "n",
    hessext.theory.h1: "n",
    hessext.theory.marchenko_pastur: "g",
    hessext.datasets.gaussian: "nnn",
    hessext.datasets.clustered: "nnnn",
}


def result_or_refusal(call):
    """What a call returns, and the message of the error that it raises in its place."""
    try:
        return call(), None
    except (ValueError, TypeError, MemoryError) as error:
        return None, str(error)


@given(st.sampled_from(list(FUNCTIONS)), st.data())
def test_functions_of_any_numbers(function, data):
    """A number, or refused in words that name an argument."""
    kinds = {"g": numbers_of_any_kind, "n": sizes_of_any_kind}
    arguments = [data.draw(kinds[kind]) for kind in FUNCTIONS[function]]
    result, refusal = result_or_refusal(lambda: function(*arguments))
    if refusal:
        assert re.match(r"[\w., ()^=/-]+( needs|:) ", refusal), refusal
        return
    values = [v for v in (result if isinstance(result, tuple) else (result,)) if isinstance(v, float)]
    if math.inf not in values:  # moments that do not exist; inf / inf is nan
        assert not any(map(math.isnan, values)), (arguments, result)


@given(st.lists(st.integers(0, 6), max_size=3), st.sampled_from([-1, 0, 1, 2, 3, 1000, 2.5, None]), st.text(max_size=4))
def test_pictures_of_any_matrix(shape, max_pixels, pooling):
    """Pooled images hold the largest entry, or what was wrong is named."""
    matrix = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    pooling = pooling or "max"
    image, refusal = result_or_refusal(lambda: hessext.plot.pool(matrix, max_pixels=max_pixels, pooling=pooling))
    if refusal:
        assert re.match(r"(H|max_pixels|pooling): expected ", refusal), refusal
        return
    assert pooling in ("max", "mean")
    assert image.max() <= matrix.max()
    assert max(image.shape) <= max(1, max_pixels)
