"""Names of layers and parameters, and the forms of a model: functions, strings, modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import deep
from helpers.cases import ACTIVATIONS, HIDDEN, LINEAR, SMALL, make_inputs
from helpers.deep import DEEP, SHALLOW, make_deep
from helpers.reference import assert_accurate, dense, matrix, select, truth
from helpers.results import assert_part, assert_product
from torch import nn

import hessext

over_small = pytest.mark.parametrize("case", [*SMALL, HIDDEN[2], HIDDEN[11], LINEAR[1]], ids=lambda case: case.name)


@over_small
def test_layers_of_the_functions(case):
    inputs = make_inputs(case, torch.float64)
    H = inputs.hessian()
    assert H.layers == (("hidden", "output") if case.hidden else ("output",))
    for row in inputs.parameters():
        for col in inputs.parameters():
            assert_part(H[row, col], select(truth(case, torch.float64), inputs, row, col))


@over_small
def test_a_model_gives_the_same_with_its_parameter_names(case):
    inputs = make_inputs(case, torch.float64)
    model = inputs.model()
    H = hessext.hessian(model, inputs.x, inputs.y, loss=inputs.loss)
    assert H.layers == tuple(name for name, _ in model.named_parameters())
    assert torch.equal(H.dense(), inputs.hessian().dense())
    ours = dict(zip(H.layers, inputs.parameters(), strict=True))
    for row in H.layers:
        for col in H.layers:
            assert H[row, col].layers == (row, col)
            assert_part(H[row, col], select(truth(case, torch.float64), inputs, ours[row], ours[col]))
    norms = H.norms()
    assert norms.shape[0] == sum(p.shape[0] for p in model.parameters())
    assert torch.equal(norms, norms.T)


@pytest.mark.parametrize("case", [SMALL[2], HIDDEN[2]], ids=lambda case: case.name)
def test_a_module_name_is_its_weight_and_bias_together(case):
    inputs = make_inputs(case, torch.float64)
    H = hessext.hessian(inputs.model(), inputs.x, inputs.y, loss=inputs.loss)
    for ours, theirs in (("hidden", "0"), ("output", "2")):
        assert_part(H[theirs], select(truth(case, torch.float64), inputs, ours, ours))
    assert_part(H["0", "2"], select(truth(case, torch.float64), inputs, "hidden", "output"))


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_as_strings_and_modules(name):
    case = replace(SMALL[1], activation=name, bias="ho")
    inputs = make_inputs(case, torch.float64)
    expected = dense(truth(case, torch.float64), inputs)
    assert_accurate(inputs.hessian().dense(), expected)
    assert_accurate(hessext.hessian(inputs.model(), inputs.x, inputs.y, loss="cross_entropy").dense(), expected)


def test_targets_are_only_needed_where_the_hessian_depends_on_them():
    inputs = make_inputs(SMALL[0], torch.float64)
    H = hessext.linear(inputs.output_weight, inputs.x)
    assert torch.equal(H.dense(), inputs.hessian().dense())


def test_names_in_a_list_and_no_iteration():
    H = make_inputs(SMALL[0], torch.float64).hessian()
    name = H.layers[0]
    assert H[[name, name]].layers == (name, name)
    with pytest.raises(KeyError, match="expected one of"):
        H[0]
    with pytest.raises(TypeError, match="not iterable"):
        list(H)


@pytest.mark.parametrize("case", SHALLOW + DEEP, ids=lambda case: case.name)
def test_a_deep_model_gives_the_same_with_its_parameter_names(case):
    inputs = make_deep(case, torch.float64)
    model = inputs.model()
    H = hessext.hessian(model, inputs.x, inputs.y, loss=inputs.loss)
    assert H.layers == tuple(key for key, _ in model.named_parameters())
    assert torch.equal(H.dense(), inputs.hessian().dense())
    first, last = H.layers[0].partition(".")[0], H.layers[-1].partition(".")[0]
    assert_accurate(H[first, last].dense(), matrix(deep.truth(case, torch.float64)[0, case.layers[-1]]))


class Registered(nn.Module):
    """A network whose layers are registered in another order than they are applied in."""

    def __init__(self, steps, order):
        super().__init__()
        self.order = order
        layers = [step for step in steps if isinstance(step, nn.Linear)]
        for number in order:
            self.add_module(f"fc{number}", layers[number])
        self.activations = nn.ModuleList(step for step in steps if not isinstance(step, nn.Linear))

    def forward(self, x):
        for number, activation in enumerate(self.activations):
            x = activation(getattr(self, f"fc{number}")(x))
        return getattr(self, f"fc{len(self.activations)}")(x)


@pytest.mark.parametrize("order", [(2, 0, 1, 3), (3, 2, 1, 0)], ids=str)
def test_parameters_lie_where_the_model_registers_them(order):
    case = SHALLOW[3]
    inputs = make_deep(case, torch.float64)
    model = Registered(inputs.model(), order)
    H = hessext.hessian(model, inputs.x, inputs.y, loss=inputs.loss)
    assert H.layers == tuple(key for key, _ in model.named_parameters())
    names = [key.removeprefix("fc") for key in H.layers]
    expected = deep.dense(deep.truth(case, torch.float64), inputs, names)
    assert_accurate(H.dense(), expected)
    assert_product(H @ torch.ones(H.shape[0], dtype=torch.float64), expected, torch.ones(H.shape[0]).double())
    assert_accurate(H["fc2", "fc0"].dense(), matrix(deep.truth(case, torch.float64)[2, 0]))
