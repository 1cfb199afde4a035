"""Hypothesis: networks of any depth agree with the reference; any junk for their arguments raises by name."""

from __future__ import annotations

import torch
from helpers.arguments import anything, junk, outcome
from helpers.cases import ACTIVATIONS, DTYPES, LOSSES
from helpers.deep import Deep, blocks, dense, make_deep, off_kinks
from helpers.fuzzed import close
from helpers.reference import TERMS, matrix
from hypothesis import assume, given
from hypothesis import strategies as st

import hessext

widths = st.one_of(st.integers(1, 5), st.sampled_from([7, 16, 17]))


@st.composite
def deep_cases(draw):
    """Networks of one to five layers of any kinds."""
    loss = draw(st.sampled_from(list(LOSSES)))
    fewest = 3 if loss in ("ce sum ignore", "ce weight smooth") else 1  # ignore_index = 0 or 1 leaves a class
    sizes = draw(st.lists(widths, min_size=2, max_size=6))
    sizes[-1] = max(fewest, sizes[-1])
    kinds = tuple(draw(st.sampled_from(list(ACTIVATIONS))) for _ in sizes[2:])
    bias = "".join(str(number) for number in range(len(sizes) - 1) if draw(st.booleans()))
    return Deep(draw(st.integers(1, 20)), tuple(sizes), kinds, loss, bias)


@given(deep_cases(), st.sampled_from(DTYPES), st.sampled_from(TERMS), st.data())
def test_networks_of_any_depth(case, dtype, term, data):
    inputs = make_deep.__wrapped__(case, dtype)
    assume(off_kinks(inputs))
    H = inputs.hessian()
    H = H if term == "full" else getattr(H, term)()
    parts, scale = blocks(inputs.lift(), term), dense(blocks(inputs.lift()), inputs).norm()
    out, expected = H.dense(), dense(parts, inputs)
    assert torch.equal(out, out.T)
    assert close(out, expected, scale, dtype)
    v = torch.linspace(-1, 1, len(out), dtype=dtype)
    assert close(H @ v, expected @ v.double(), scale * max(1, v.double().norm()), dtype)
    row, col = (data.draw(st.sampled_from(case.layers)) for _ in range(2))
    B, part = H[str(row), str(col)], parts[row, col]
    rows, cols = B.grid
    pairs = data.draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, cols - 1)), min_size=1, max_size=20))
    i, j = torch.tensor(pairs).T
    chosen, norms = part[i, j], part.flatten(2).norm(dim=2)
    assert close(B.blocks(pairs), chosen, scale + chosen.norm(), dtype)
    assert close(B.norms(pairs), norms[i, j], scale + chosen.norm(), dtype)
    assert close(B.norms(), norms, scale, dtype)
    assert close(B.dense(), matrix(part), scale, dtype)


some = st.one_of(anything, st.lists(junk, max_size=3))
kinds = st.sampled_from(["relu", "what", None, 3, ["relu"], ["relu", "gelu"], [None], torch.nn.GELU(), torch.relu])


@given(some, junk, junk, some, kinds, st.sampled_from(["cross_entropy", "mse", "?"]), anything)
def test_junk_is_refused_by_name(weights, x, y, biases, activations, loss, memory):
    options = {"biases": biases, "activations": activations, "loss": loss, "memory": memory}
    names = ("weights", "x", "y", *options)
    H = outcome(lambda: hessext.feed_forward(weights, x, y, **options), *names)
    if H is not None:
        outcome(H.dense, "x")
        outcome(lambda: H @ torch.ones(H.shape[0], dtype=H.dtype), "x")


@given(st.lists(junk, min_size=2, max_size=3), junk, junk, kinds)
def test_junk_for_weights_alone(weights, x, y, activations):
    H = outcome(
        lambda: hessext.feed_forward(weights, x, y, activations=activations), "weights", "x", "y", "activations"
    )
    if H is not None:
        outcome(H.dense, "x")
