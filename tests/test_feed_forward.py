"""The arguments of feed_forward: what is accepted, what is refused, and what later changes to them do."""

from __future__ import annotations

import pytest
import torch
from helpers.deep import SHALLOW, make_deep
from helpers.results import assert_same_bits, everything
from torch import nn

import hessext

GOOD = make_deep(SHALLOW[1], torch.float64)  # 2, 3, 4, 3 with biases


def feed_forward(**changes):
    """hessext.feed_forward on good arguments with some replaced."""
    arguments = {"weights": GOOD.weights, "x": GOOD.x, "y": GOOD.y, "biases": GOOD.biases} | changes
    return hessext.feed_forward(**arguments)


def changed(sequence, number, value):
    """A tuple with one entry replaced."""
    return (*sequence[:number], value, *sequence[number + 1 :])


def test_the_good_arguments_are_good():
    expected = feed_forward().dense()
    for same in (
        {"weights": list(GOOD.weights), "biases": list(GOOD.biases)},
        {"activations": nn.ReLU()},
        {"activations": ["relu", nn.ReLU()]},
        {"activations": ("relu", "relu"), "loss": nn.CrossEntropyLoss()},
    ):
        assert torch.equal(feed_forward(**same).dense(), expected)
    assert feed_forward(biases=None).shape == (6 + 12 + 12,) * 2
    assert feed_forward(biases=(None, GOOD.biases[1], None)).shape == (6 + 12 + 4 + 12,) * 2


def test_one_and_two_layers_are_linear_and_one_hidden():
    W, b = GOOD.weights, GOOD.biases
    alone, linear = hessext.feed_forward(W[:1], GOOD.x), hessext.linear(W[0], GOOD.x)
    assert_same_bits(everything(alone), everything(linear))
    two = hessext.feed_forward(W[:2], GOOD.x, GOOD.y, biases=b[:2], activations="gelu")
    hidden = {"hidden_bias": b[0], "output_bias": b[1], "activation": "gelu"}
    assert_same_bits(everything(two), everything(hessext.one_hidden(*W[:2], GOOD.x, GOOD.y, **hidden)))


W, B = GOOD.weights, GOOD.biases
REFUSED = {
    "no weights": ({"weights": []}, ValueError, "weights: expected .*at least one"),
    "one tensor": ({"weights": W[0]}, TypeError, "weights: expected a list"),
    "weights of a generator": ({"weights": (w for w in W)}, TypeError, "weights: expected a list"),
    "a weight of numpy": ({"weights": changed(W, 1, W[1].numpy())}, TypeError, r"weights\[1\]: .*from_numpy"),
    "no weight": ({"weights": changed(W, 2, None)}, TypeError, r"weights\[2\]: expected a torch\.Tensor"),
    "shapes do not chain": (
        {"weights": changed(W, 1, W[1][:, :2])},
        ValueError,
        r"weights\[1\]: expected shape \(\w+, 3\); got \(4, 2\)",
    ),
    "first layer": ({"weights": changed(W, 0, W[0].T)}, ValueError, r"(weights\[1\]|biases\[0\]|x): expected shape"),
    "a vector": ({"weights": changed(W, 1, W[1][0])}, ValueError, r"weights\[1\]: expected "),
    "no rows": ({"weights": changed(W, 1, W[1][:0])}, ValueError, r"weights\[1\]: expected "),
    "float32 among float64": (
        {"weights": changed(W, 2, W[2].float())},
        TypeError,
        r"weights\[2\]: expected torch",
    ),
    "not finite": ({"weights": changed(W, 1, W[1] * torch.inf)}, ValueError, r"weights\[1\]: .*finite"),
    "another device": ({"weights": changed(W, 1, W[1].to("meta"))}, ValueError, r"weights\[1\]: expected device"),
    "too few biases": ({"biases": B[:2]}, ValueError, "biases: expected 3.*; got 2"),
    "too many biases": ({"biases": [*B, None]}, ValueError, "biases: expected 3.*; got 4"),
    "one bias": ({"biases": B[0]}, TypeError, "biases: expected a list"),
    "a bias too long": ({"biases": changed(B, 1, B[0])}, ValueError, r"biases\[1\]: expected shape \(4,\); got \(3,\)"),
    "a bias of float32": ({"biases": changed(B, 1, B[1].float())}, TypeError, r"biases\[1\]: expected torch.float64"),
    "no bias": ({"biases": changed(B, 1, 0.0)}, TypeError, r"biases\[1\]: expected a torch\.Tensor"),
    "too few activations": ({"activations": ["relu"]}, ValueError, "activations: expected 2.*; got 1"),
    "too many activations": ({"activations": ["relu"] * 3}, ValueError, "activations: expected 2.*; got 3"),
    "an unknown activation": ({"activations": "swish"}, ValueError, r"activations(\[0\])?: expected one of relu"),
    "an unknown one": ({"activations": ["relu", "swish"]}, ValueError, r"activations\[1\]: expected one of relu"),
    "a class": ({"activations": nn.ReLU}, TypeError, "activations"),
    "a function": ({"activations": ["relu", torch.relu]}, TypeError, r"activations\[1\]: expected one of relu"),
    "no activation": ({"activations": ["relu", None]}, TypeError, r"activations\[1\]: expected one of relu"),
    "x of another width": ({"x": GOOD.x[:, :1]}, ValueError, r"x: expected shape \(\w+, 2\); got"),
    "no targets": ({"y": None}, ValueError, "y: the Hessian of a network depends on the targets"),
    "targets out of range": ({"y": GOOD.y + 1}, ValueError, r"y: expected labels in \[0, 3\)"),
    "an unknown loss": ({"loss": "hinge"}, ValueError, "loss: expected"),
    "memory of none": ({"memory": 0}, ValueError, "memory: expected"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    changes, error, message = REFUSED[what]
    with pytest.raises(error, match=f"^{message}"):
        feed_forward(**changes)


@pytest.mark.parametrize("key", ["3", "-1", 0, ("0", "3"), "0.bias.weight", ("0",)], ids=str)
def test_unknown_layers(key):
    with pytest.raises(KeyError, match=r"'0', '0.weight'|expected one"):
        feed_forward()[key]


def test_changes_in_place_are_noticed():
    x = GOOD.x.clone()
    H = feed_forward(x=x)
    H.dense()
    x.mul_(2)
    for call in (H.dense, H["0"].ratio, H["0", "2"].norms, lambda: H @ torch.ones(H.shape[0], dtype=torch.float64)):
        with pytest.raises(RuntimeError, match=r"^x was changed in place"):
            call()


def test_later_training_does_not_change_the_result():
    weights = [w.clone().requires_grad_() for w in GOOD.weights]
    H, expected = feed_forward(weights=weights), feed_forward().dense()
    with torch.no_grad():
        for weight in weights:
            weight.mul_(3)
    assert torch.equal(H.dense(), expected)
    assert not H.dense().requires_grad
