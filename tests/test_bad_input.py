"""One test per rule: bad input raises, names the argument, and says what was expected; nothing crashes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.cases import SMALL, make_inputs
from torch import nn

import hessext

INPUTS = make_inputs(replace(SMALL[1], bias="ho"), torch.float64)  # N=6, d=4, C=3, m=5
NAMES = ("hidden_weight", "output_weight", "x", "y", "hidden_bias", "output_bias")
FLOATS = tuple(n for n in NAMES if n != "y")


def one_hidden(**changes):
    """hessext.one_hidden on good arguments with some replaced."""
    arguments = {n: getattr(INPUTS, n) for n in NAMES} | changes
    return hessext.one_hidden(**arguments)


def linear(**changes):
    """hessext.linear on good arguments (C=3, d=5, N=6) with some replaced."""
    arguments = {"weight": INPUTS.output_weight, "x": torch.ones(6, 5, dtype=torch.float64), "y": INPUTS.y} | changes
    return hessext.linear(**arguments)


def with_entry(t, value):
    """A copy of t with its last entry replaced."""
    t = t.clone()
    t.view(-1)[-1] = value
    return t


def test_the_good_arguments_are_good():
    one_hidden().dense()
    linear().dense()
    linear(bias=INPUTS.output_bias, y=None).dense()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:-1],
        lambda t: torch.cat([t, t]),
        lambda t: t[None],
        lambda t: t.flatten()[0],
        lambda t: t[:0],
        lambda t: t[..., :0] if t.ndim == 2 else t[:0],
    ],
    ids=["shorter", "longer", "3-d", "0-d", "no rows", "no columns"],
)
def test_wrong_shape(name, change):
    # hidden_weight and output_weight set the sizes: the others are then the ones that do not fit
    with pytest.raises(ValueError, match=rf"^({name}|output_weight|hidden_bias|output_bias|x|y): expected "):
        one_hidden(**{name: change(getattr(INPUTS, name))})


@pytest.mark.parametrize(("name", "shape"), [("x", (6, 3)), ("output_weight", (3, 4)), ("hidden_weight", (4, 4))])
def test_shapes_that_do_not_fit_name_both(name, shape):
    with pytest.raises(ValueError, match=r"expected shape \(.*\); got \("):
        one_hidden(**{name: torch.ones(shape, dtype=torch.float64)})


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.complex64], ids=str)
def test_wrong_dtype(name, dtype):
    with pytest.raises(TypeError, match=r"expected torch\.float"):
        one_hidden(**{name: torch.ones(getattr(INPUTS, name).shape, dtype=dtype)})


@pytest.mark.parametrize("name", FLOATS)
def test_dtypes_name_the_argument(name):
    # of one that comes first, half precision stands for float32, which those after it do not have
    with pytest.raises(TypeError, match=f"^{name if name != 'hidden_weight' else 'hidden_bias'}: "):
        one_hidden(**{name: torch.ones(getattr(INPUTS, name).shape, dtype=torch.float16)})
    with pytest.raises(TypeError, match=f"^{name}: "):
        one_hidden(**{name: torch.ones(getattr(INPUTS, name).shape, dtype=torch.int32)})


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.float32], ids=str)
def test_wrong_target_dtype(dtype):
    shape = (6, 3) if dtype.is_floating_point else (6,)
    with pytest.raises(TypeError, match=r"^y: "):
        one_hidden(y=torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_device(name):
    named = name if name != "hidden_weight" else "(hidden_weight|output_weight)"  # the first argument sets the device
    with pytest.raises(ValueError, match=rf"^{named}: expected (device|a CPU or CUDA tensor)"):
        one_hidden(**{name: getattr(INPUTS, name).to("meta")})


def test_everything_on_meta():
    with pytest.raises(ValueError, match=r"^hidden_weight: expected a CPU or CUDA tensor"):
        one_hidden(**{n: getattr(INPUTS, n).to("meta") for n in NAMES})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [lambda t: t.tolist(), lambda t: t.numpy(), lambda t: 3, lambda t: "x"])
def test_not_a_tensor(name, change):
    with pytest.raises(TypeError, match=rf"^{name}: expected a torch\.Tensor"):
        one_hidden(**{name: change(getattr(INPUTS, name))})


@pytest.mark.parametrize("name", ["hidden_weight", "output_weight", "x"])
def test_none_is_not_a_tensor(name):
    with pytest.raises(TypeError, match=rf"^{name}: "):
        one_hidden(**{name: None})


def test_numpy_arrays_are_pointed_at_from_numpy():
    with pytest.raises(TypeError, match="from_numpy"):
        linear(x=np.ones((6, 5)))


def test_sparse_tensors():
    with pytest.raises(TypeError, match=r"^x: "):
        one_hidden(x=INPUTS.x.to_sparse())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_not_finite(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: .*finite"):
        one_hidden(**{name: with_entry(getattr(INPUTS, name), value)})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_targets_not_finite(loss, value):
    y = with_entry(torch.full((6, 3), 1 / 3, dtype=torch.float64), value)
    with pytest.raises(ValueError, match=r"^y: .*finite"):
        one_hidden(y=y, loss=loss)


@pytest.mark.parametrize("label", [3, -1, 2**40, -100])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse", nn.CrossEntropyLoss(ignore_index=7)], ids=str)
def test_labels_out_of_range(label, loss):
    if label == -100 and loss == "cross_entropy":
        return  # torch's own ignore_index
    with pytest.raises(ValueError, match=r"^y: expected labels in \[0, 3\); got "):
        one_hidden(y=with_entry(INPUTS.y, label), loss=loss)


def test_no_label_left():
    with pytest.raises(ValueError, match=r"^y: "):
        one_hidden(y=torch.ones(6, dtype=torch.int64), loss=nn.CrossEntropyLoss(ignore_index=1))


def test_missing_targets():
    with pytest.raises(ValueError, match=r"^y: "):
        one_hidden(y=None)
    with pytest.raises(ValueError, match=r"^y: "):
        linear(y=None, loss=nn.CrossEntropyLoss(weight=torch.ones(3, dtype=torch.float64)))


class OwnLoss(nn.CrossEntropyLoss):
    """A subclass may compute anything."""


@pytest.mark.parametrize(
    "loss",
    ["hinge", "", None, 3, nn.L1Loss(), OwnLoss(), nn.CrossEntropyLoss, nn.CrossEntropyLoss(reduction="none")],
    ids=str,
)
def test_unknown_loss(loss):
    for call in (one_hidden, linear):
        with pytest.raises((ValueError, TypeError), match=r"^loss: "):
            call(loss=loss)


@pytest.mark.parametrize("size", [2, 4])
def test_class_weights_of_another_size(size):
    with pytest.raises(ValueError, match=r"^loss\.weight: "):
        one_hidden(loss=nn.CrossEntropyLoss(weight=torch.ones(size, dtype=torch.float64)))


@pytest.mark.parametrize("activation", ["swish", "ReLU", "", None, 1, nn.ReLU, nn.Softmax(0), torch.relu], ids=range(8))
def test_unknown_activation(activation):
    with pytest.raises((ValueError, TypeError), match=r"^activation: expected one of relu"):
        one_hidden(activation=activation)


@pytest.mark.parametrize(
    "model",
    [
        None,
        nn.Sequential(),
        nn.Sequential(nn.ReLU()),
        nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.Softmax(1), nn.Linear(5, 3)),
        nn.Conv1d(1, 1, 1),
        nn.Linear,
    ],
    ids=repr,
)
def test_unknown_model(model):
    with pytest.raises((ValueError, TypeError), match=r"^model: expected"):
        hessext.hessian(model, INPUTS.x.float(), INPUTS.y, loss="cross_entropy")


def test_model_with_an_unknown_activation():
    model = nn.Sequential(nn.Linear(4, 5), nn.Softsign(), nn.Linear(5, 3)).double()
    with pytest.raises(TypeError, match=r"^model: expected .*; got Softsign '1', which is not supported"):
        hessext.hessian(model, INPUTS.x, INPUTS.y, loss="cross_entropy")
