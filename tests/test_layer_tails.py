"""Tails of the network behind a layer: where they end, and outputs that they change in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from helpers.layers import assert_layer, texts, truth
from helpers.networks import Transformer
from torch import nn

import hessext
from hessext.data.tail import Tail


def test_tails_that_end_at_another_layer(monkeypatch):
    """Queries reach the loss through the output projection alone, gate and up through down, and q through no other."""
    model, batches = Transformer(), texts((2, 5), (1, 4))
    names = [f"blocks.1.{name}" for name in ("attention.q", "mlp.up", "attention.o", "mlp.down", "mlp.gate")]
    tails = hessext.layer(model, names, batches).each[0]._data._tails
    assert tails.ends == {0: 2, 1: 3, 4: 3}
    ended = []
    ending = Tail.ending
    monkeypatch.setattr(Tail, "ending", lambda tail, number: ended.append(number) or ending(tail, number))
    H = hessext.layer(model, names, batches)
    assert_layer(H, names[0], truth(model, names[0], batches, nn.CrossEntropyLoss()))
    assert set(ended) == {2}
    for name in names:  # whole S_n of one layer after the other is kept, and its own rows come from it
        assert_layer(H, name, truth(model, name, batches, nn.CrossEntropyLoss()))
    parts = [getattr(H, term)()[names[0]].dense() for term in ("gauss_newton", "residual")]
    torch.testing.assert_close(sum(parts), H[names[0]].dense(), rtol=0, atol=1e-15)
    ended.clear()
    few = hessext.layer(model, names, batches, memory=1 << 13)  # no room for it
    assert_layer(few, names[0], truth(model, names[0], batches, nn.CrossEntropyLoss()))
    assert not ended


class InPlace(nn.Module):
    """Outputs of a layer that are changed in place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.double()

    def forward(self, x):
        return self.c(F.gelu(self.b(torch.tanh(self.a(x)))).mul_(2))


def test_outputs_that_are_changed_in_place():
    model, batches = InPlace(), [(torch.randn(7, 4).double(), torch.arange(7) % 3)]
    H = hessext.layer(model, ["a", "b"], batches)
    for name in ("a", "b"):
        assert_layer(H, name, truth(model, name, batches, nn.CrossEntropyLoss()))
