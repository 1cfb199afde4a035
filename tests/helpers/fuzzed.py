"""Cases for hypothesis to choose from, and what is asked of them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from .cases import ACTIVATIONS, LOSSES, Case, Inputs
from .reference import TOLERANCE, activation

sizes = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33]))


@st.composite
def cases(draw):
    """Small cases of any kind; the logits of some are scaled up."""
    loss = draw(st.sampled_from(list(LOSSES)))
    C = draw(sizes)
    fewest = 3 if loss in ("ce sum ignore", "ce weight smooth") else 1  # ignore_index = 0 or 1 leaves a class
    shape = draw(sizes), draw(sizes), max(fewest, C)
    if not draw(st.booleans()):
        return Case(*shape, loss=loss, bias=draw(st.sampled_from(["", "o"])))
    kind = draw(st.sampled_from(list(ACTIVATIONS)))
    bias = draw(st.sampled_from(["", "h", "o", "ho"]))
    return Case(*shape, draw(sizes), activation=kind, loss=loss, bias=bias, scale=draw(st.sampled_from([1.0, 3.0])))


def off_kinks(inputs: Inputs) -> bool:
    """Whether float32 and float64 are on the same side of every kink."""
    if inputs.hidden_weight is None:
        return True
    z = [F.linear(i.x, i.hidden_weight, i.hidden_bias) for i in (inputs, inputs.lift())]
    first = [activation(inputs.case.activation, t)[1] for t in z]
    return torch.allclose(first[0].double(), first[1], rtol=1e-4, atol=1e-4)


def close(out, expected, scale, dtype) -> bool:
    """Within ten tolerances of the whole Hessian: fuzzed sums may cancel where the chosen cases do not."""
    return bool((out.double() - expected).norm() <= 10 * TOLERANCE[dtype] * scale)
