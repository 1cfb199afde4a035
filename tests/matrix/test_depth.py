"""What is general in depth already: the passes through a network, products and the truth, for chains of any length."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from helpers.cases import ACTIVATIONS

from hessext import Hessian, autograd
from hessext.data.samples import Samples
from hessext.model import activations, losses
from hessext.model.network import Layer, Network


def chain(widths, activation, loss, registered=None):
    g = torch.Generator().manual_seed(len(widths))

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    found = activations.resolve(ACTIVATIONS[activation])
    layers = [
        Layer(str(k), normal(rows, cols) / cols**0.5, normal(rows), found if k < len(widths) - 2 else None)
        for k, (cols, rows) in enumerate(pairwise(widths))
    ]
    N, C = 9, widths[-1]
    y = torch.randint(C, (N,), generator=g) if loss == "cross_entropy" else normal(N, C)
    network = Network(tuple(layers), registered)
    return Hessian(Samples.of(network, losses.resolve(loss), normal(N, widths[0]), y))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("widths", [(4, 3), (4, 5, 3), (4, 5, 2, 3), (3, 1, 17, 2, 5), (2, 3, 4, 3, 4, 3)], ids=str)
def test_products(widths, activation, loss):
    H = chain(widths, activation, loss)
    eye = torch.eye(H.shape[0], dtype=torch.float64)
    for part in (H, H.gauss_newton(), H.residual()):
        truth = autograd.hessian(part)
        assert (part @ eye - truth).norm() <= 1e-12 * max(truth.norm(), 1e-3)


def test_parts_and_their_products_lie_where_the_model_registers_them():
    H = chain((4, 5, 2, 3), "tanh", "cross_entropy", registered=(2, 0, 1))
    truth = autograd.hessian(H)
    assert H.layers == ("2", "0", "1")
    starts = {group.name: group.start for group in H._data.network.whole}
    assert starts == {"2": 0, "0": 9, "1": 34}
    for row in H.layers:
        for col in H.layers:
            B = H[f"{row}.weight", f"{col}.weight"]
            expected = truth[starts[row] :, starts[col] :][: B.shape[0], : B.shape[1]]
            out = B @ torch.eye(B.shape[1], dtype=torch.float64)
            assert (out - expected).norm() <= 1e-12 * truth.norm()
