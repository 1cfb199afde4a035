"""Units of deep networks that are off for all samples: they add nothing, and hide what overflows behind them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.cases import DTYPES
from helpers.deep import DEEP, Deep, blocks, make_deep
from helpers.reference import TERMS, assert_accurate, matrix

from hessext import autograd
from hessext.data import curvature as entries


def with_bias(inputs, layer, units, value):
    """The same inputs with some entries of a layer's bias."""
    biases = list(inputs.biases)
    biases[layer] = biases[layer].clone()
    biases[layer][units] = value
    return replace(inputs, biases=tuple(biases))


@pytest.mark.parametrize(
    ("layer", "dtype"), [(0, torch.float32), (1, torch.float64), (2, torch.float32), (4, torch.float64)]
)
def test_units_that_are_off_add_nothing(layer, dtype):
    """Whatever their outgoing weights are."""
    inputs = with_bias(make_deep(DEEP[17], dtype), layer, slice(0, 1), -1000)
    found = []
    for value in (0.0, torch.finfo(dtype).max / 100):
        weights = list(inputs.weights)
        weights[layer + 1] = weights[layer + 1].clone()
        weights[layer + 1][::2, 0], weights[layer + 1][1::2, 0] = value, -value
        found.append(replace(inputs, weights=tuple(weights)).hessian())
    expected, H = found
    assert torch.equal(H.dense(), expected.dense())
    for col in H.layers:
        part = H[str(layer), col]
        assert not part.blocks([(0, 0)]).any()
        assert not part.norms()[0].any()
        assert torch.equal(part.norms(), expected[str(layer), col].norms())
    assert H[str(layer)].ratio() == expected[str(layer)].ratio()


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize(("layer", "dtype"), [(0, DTYPES[0]), (1, DTYPES[1]), (2, DTYPES[0]), (3, DTYPES[1])])
def test_units_that_are_off_hide_what_overflows(layer, dtype, factors, term, monkeypatch):
    """As in torch's own backward pass. Tangents, gradients and curvature that reach them are infinite, or inf - inf."""
    monkeypatch.setattr(entries.Entries, "_few_classes", property(lambda e: factors and e.col < e.samples.network.last))
    inputs = make_deep(Deep(17, (3, 9, 9, 9, 9, 3), loss="mse sum", bias="01234"), dtype)
    inputs = replace(with_bias(inputs, layer, slice(0, 1), -1000), y=10 * inputs.y)
    found = []
    for value in (0.0, torch.finfo(dtype).max):
        weights = [2 * weight for weight in inputs.weights]
        weights[layer + 1][::2, 0], weights[layer + 1][1::2, 0] = value, -value
        if layer:  # what comes into it is not negative
            weights[layer][0] = -value
        H = replace(inputs, weights=tuple(weights)).hessian()
        found.append(H if term == "full" else getattr(H, term)())
    expected, H = found
    assert not H._data._pulled_back(layer).isfinite().all()
    v = torch.linspace(-1, 1, H.shape[0], dtype=dtype)
    assert torch.equal(H.dense(), expected.dense())
    assert torch.equal(H.norms(), expected.norms())
    assert torch.equal(H @ v, expected @ v)
    if dtype == torch.float64:
        assert_accurate(H.dense(), autograd.hessian(H))


@pytest.mark.parametrize(("layer", "dtype"), [(0, DTYPES[0]), (3, DTYPES[1])])
def test_a_dead_layer(layer, dtype):
    """Nothing before it moves the loss, and what comes after it sees its biases alone."""
    inputs = with_bias(make_deep(DEEP[17], dtype), layer, slice(None), -1000)
    H = inputs.hessian()
    expected = blocks(inputs.lift())
    for row in inputs.case.layers:
        for col in inputs.case.layers:
            B = H[str(row), str(col)]
            assert_accurate(B.dense(), matrix(expected[row, col]))
            assert_accurate(B.norms(), expected[row, col].flatten(2).norm(dim=2))
            assert min(row, col) > layer or not B.dense().any()
    assert H[str(layer)].ratio().diagonal == 0
    assert H[H.layers[-1]].ratio().diagonal > 0
