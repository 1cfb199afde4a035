"""`hessext.layer` under losses and logits of all kinds, against float64 autograd."""

from __future__ import annotations

import pytest
import torch
from helpers.layers import assert_layer, texts, truth
from helpers.networks import Transformer
from torch import nn

import hessext

LOSSES = {
    "weights": (nn.CrossEntropyLoss(torch.linspace(0.5, 2, 11).double(), label_smoothing=0.1), False),
    "sum": (nn.CrossEntropyLoss(reduction="sum", ignore_index=3), False),
    "any numbers": (hessext.UnnormalizedCrossEntropyLoss(), True),
    "mse": (nn.MSELoss(), True),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_losses(kind):
    loss, per_class = LOSSES[kind]
    model, batches = Transformer(), texts((2, 5), (1, 3))
    if per_class:
        y = torch.rand(2, 5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        batches = [(x, y[: len(x), : x.shape[1]]) for x, _ in batches]
    elif kind == "sum":
        batches = [(x, x) for x, _ in batches]
    name = "blocks.1.mlp.up"
    assert_layer(hessext.layer(model, name, batches, loss=loss), name, truth(model, name, batches, loss))


def test_a_loss_in_the_place_of_targets():
    model, batches, loss = Transformer(), texts((2, 5)), nn.CrossEntropyLoss(reduction="sum")
    name = "blocks.1.mlp.up"
    got, expected = hessext.layer(model, name, batches, loss), hessext.layer(model, name, batches, loss=loss)
    assert torch.equal(got.dense(), expected.dense())


class Capped(nn.Module):
    """Logits that no linear layer gives: they are differentiated, too."""

    def __init__(self):
        super().__init__()
        self.inner = Transformer(tied=False)

    def forward(self, x):
        return 3 * torch.tanh(self.inner(x) / 3)


def test_logits_that_no_layer_gives():
    model, batches = Capped().eval(), texts((2, 4), (1, 5))
    names = ["inner.head", "inner.blocks.1.mlp.up"]
    H = hessext.layer(model, names, batches)
    for name in names:
        assert_layer(H, name, truth(model, name, batches, nn.CrossEntropyLoss()))


def next_token(model, batch):
    """Logits and targets of all positions but the last."""
    return model(batch["tokens"])[:, :-1], batch["tokens"][:, 1:]


def test_forward_gives_some_rows_of_the_head():
    model, batches = Transformer(), texts((2, 5), (1, 4))
    names = ["blocks.1.mlp.up", "head"]
    H = hessext.layer(model, names, [{"tokens": x} for x, _ in batches], forward=next_token)
    for name in names:
        assert_layer(H, name, truth(model, name, batches, nn.CrossEntropyLoss()))
    assert len(H["head"]._part.samples) == 2 * 4 + 3
