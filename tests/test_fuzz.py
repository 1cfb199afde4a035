"""Hypothesis: any shapes, strides, dtypes, losses and pair lists agree with the reference; any junk raises.

HYPOTHESIS_PROFILE=long looks further than the derandomized default of conftest.py.
"""

from __future__ import annotations

import pytest
import torch
from cases import ACTIVATIONS, DTYPES, LOSSES, Case, Inputs, make_inputs
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import TOLERANCE, activation, blocks, dense, matrix
from torch.nn import functional as F

import hessext

sizes = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33]))


@st.composite
def cases(draw):
    """Small cases of any kind; the logits of some are scaled up."""
    loss = draw(st.sampled_from(list(LOSSES)))
    kind, C = LOSSES[loss][1], draw(sizes)
    fewest = {"class": 3, "prob": 2, "vector": 1}  # ignore_index = 0 or 1 leaves a class
    shape = draw(sizes), draw(sizes), 1 if kind.startswith("binary") else max(fewest[kind], C)
    if not draw(st.booleans()):
        return Case(*shape, loss=loss, bias=draw(st.sampled_from(["", "o"])))
    kind = draw(st.sampled_from(list(ACTIVATIONS)))
    bias = draw(st.sampled_from(["", "h", "o", "ho"]))
    return Case(*shape, draw(sizes), activation=kind, loss=loss, bias=bias, scale=draw(st.sampled_from([1.0, 3.0])))


def strided(t, way: int):
    """The same values in another layout."""
    if t is None or way == 0 or t.ndim == 0:
        return t
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


layouts = st.tuples(*[st.integers(0, 4)] * 6)
terms = st.sampled_from(["full", "gauss_newton", "residual"])


def off_kinks(inputs: Inputs) -> bool:
    """Whether float32 and float64 are on the same side of every kink."""
    if inputs.hidden_weight is None:
        return True
    z = [F.linear(i.x, i.hidden_weight, i.hidden_bias) for i in (inputs, inputs.lift())]
    first = [activation(inputs.case.activation, t)[1] for t in z]
    return torch.allclose(first[0].double(), first[1], rtol=1e-4, atol=1e-4)


def close(out, expected, scale, dtype) -> bool:
    """Within ten tolerances of the whole part: fuzzed sums may cancel where the chosen cases do not."""
    return bool((out.double() - expected).norm() <= 10 * TOLERANCE[dtype] * scale)


@given(cases(), st.sampled_from(DTYPES), layouts, terms)
def test_dense_and_product(case, dtype, ways, term):
    inputs = make_inputs.__wrapped__(case, dtype)
    assume(off_kinks(inputs))
    H = restride(inputs, ways).hessian()
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
    inputs = make_inputs.__wrapped__(case, dtype)
    assume(off_kinks(inputs))
    H = restride(inputs, ways).hessian()
    row, col = (data.draw(st.sampled_from(H.layers)) for _ in range(2))
    part, B = blocks(inputs.lift())[row, col], H[row, col]
    rows, cols = B.grid
    pairs = data.draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, cols - 1)), min_size=1, max_size=40))
    repeats = data.draw(st.integers(1, 3))
    pairs = torch.tensor(pairs * repeats)
    given_as = data.draw(st.sampled_from([lambda p: p, lambda p: p.T.contiguous().T, lambda p: p.tolist()]))
    i, j = pairs.T
    assert close(B.blocks(given_as(pairs)), part[i, j], repeats * part.norm() + part[i, j].norm(), dtype)
    norms = part.flatten(2).norm(dim=2)
    assert close(B.norms(given_as(pairs)), norms[i, j], repeats * part.norm() + norms[i, j].norm(), dtype)
    assert close(B.norms(), norms, part.norm(), dtype)
    assert close(B.dense(), matrix(part), part.norm(), dtype)


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


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.float16, torch.bool])
junk = st.one_of(
    st.builds(lambda s, t: torch.ones(s, dtype=t), shapes, dtypes),
    st.builds(lambda s, v: torch.full(s, v), shapes, st.sampled_from([float("nan"), 1e38, -1e38, 5e-324, 0.0])),
    st.builds(lambda s: torch.empty(s, device="meta"), shapes),
    st.none(),
    st.integers(),
    st.text(max_size=3),
)


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


extremes = st.sampled_from([0.0, -0.0, 5e-324, 1e-45, 1e-38, 1e-20, 1.0, -1.0, 80.0, 1e4, -1e20, 3e38])


@given(cases(), st.sampled_from(DTYPES), st.lists(extremes, min_size=6, max_size=6))
def test_extreme_values_overflow_but_never_crash(case, dtype, factors):
    inputs = make_inputs.__wrapped__(case, dtype)
    names = ("x", "y", "output_weight", "output_bias", "hidden_weight", "hidden_bias")
    scaled = {n: getattr(inputs, n) for n in names}
    scaled = {
        n: t * f if t is not None and t.is_floating_point() else t
        for (n, t), f in zip(scaled.items(), factors, strict=True)
    }
    assume(all(t.isfinite().all() for t in scaled.values() if t is not None))
    H = Inputs(case, loss=inputs.loss, **scaled).hessian()
    out = H.dense()
    assert out.shape == H.shape
    assert torch.equal(out.nan_to_num(7.0), out.T.nan_to_num(7.0))
    for r in H.layers:
        H[r].norms()
        H[r].ratio()
        H[r].diagonal()
    H @ torch.ones(len(out), dtype=dtype)
