"""Models and batches of other forms given to `layer` and `head`: the message says what to write, and that is taken."""

from __future__ import annotations

import contextlib
import re
import types
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import hessext

N, d, m, C = 20, 6, 4, 3
X = torch.randn(N, d, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % C
BOTH = hessext.layer, hessext.head


class Answering(nn.Module):
    """A model that takes its input by place or by name, and may return more than logits."""

    def __init__(self, answer=lambda hidden, logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.top, self.answer = nn.Linear(d, m), nn.Linear(m, C), answer

    def forward(self, x):
        hidden = self.body(x).relu()
        return self.answer(hidden, self.top(hidden))


def mlp(*last):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d, m), nn.ReLU(), nn.Linear(m, C), *last)


ANSWERS = {  # what comes back, and how forward= picks the logits
    "dict": (lambda hidden, logits: {"length": 3, "scores": logits}, "dict of 2", "['scores']"),
    "ordered": (lambda hidden, logits: OrderedDict(scores=logits), "OrderedDict of 1", "['scores']"),
    "tuple": (lambda hidden, logits: (logits, 3), "tuple of 2", "[0]"),
    "named logits": (lambda hidden, logits: {"hidden": hidden, "logits": logits}, "dict of 2", "['logits']"),
    "named out": (lambda hidden, logits: {"aux": hidden, "out": logits}, "dict of 2", "['out']"),
    "object": (lambda hidden, logits: types.SimpleNamespace(loss=None, scores=logits), "SimpleNamespace", ".scores"),
}
UNCLEAR = {  # what comes back, what may be the logits, and how forward= picks one of these
    "tuple": (lambda hidden, logits: (hidden, 3, logits), "tuple of 3", "[0], [2]", "[...]"),
    "dict": (lambda hidden, logits: {"a": hidden, "b": logits}, "dict of 2", "['a'], ['b']", "[...]"),
    "object": (lambda hidden, logits: types.SimpleNamespace(a=hidden, b=logits), "SimpleNamespace", ".a, .b", ".name"),
}
PAIRS = (
    "batches: expected pairs (x, y), or forward=, which runs the model on a batch and returns logits and targets; got "
)
BATCHES = {
    "x and y": ([X, Y], "a tensor (20, 6) (x and y are two arguments, or one pair in a list, [(x, y)])"),
    "a dict": ([{"x": X, "y": Y}], "dict of 2 (forward=lambda model, batch: (model(batch['x']), batch['y']))"),
    "a dict of transformers": (
        [{"x": X, "labels": Y}],
        "dict of 2 (forward=lambda model, batch: (model(**batch).logits, batch['labels']))",
    ),
    "three": ([(X, X, Y)], "tuple of 3 (forward=lambda model, batch: (model(*batch[:-1]), batch[-1]))"),
}
INPUTS = {
    "dtype": (X.double(), "a tensor (20, 6) of torch.float64, and the model has torch.float32 (.to converts either): "),
    "device": (X.to("meta"), "a tensor (20, 6) of torch.float32 on meta, and the model is on cpu (.to moves either): "),
    "transposed": (X.T, "a tensor (6, 20) of torch.float32: mat1 and mat2 shapes cannot be multiplied"),
    "array": (X.numpy(), "ndarray (torch.from_numpy makes it one): "),
    "numbers": (X.tolist(), "list of 20 (torch.tensor makes it one): "),
    "dict": (
        {"x": X},
        "dict of 1 (forward=lambda model, batch: (model(**batch[0]), batch[1]) passes its entries by name",
    ),
    "tuple": (
        (X, X),
        "tuple of 2 (forward=lambda model, batch: (model(*batch[0]), batch[1]) passes its entries one by",
    ),
}
FORWARD = {
    "of one argument": (
        lambda batch: batch,
        "forward: expected a function of two arguments, forward(model, batch); got (batch)",
    ),
    "no function": ("logits", "forward: expected a function, forward(model, batch); got str"),
    "of three": (
        lambda model, batch: (model(batch[0]), *batch),
        "forward: expected a function that returns",
        "got tuple of 3",
    ),
    "of another model": (
        lambda model, batch: (mlp()(batch[0]), batch[1]),
        "",
        "got 0 calls",
        "(does forward= run the model that it is given?)",
    ),
}
HEAD = "module: expected a layer whose outputs are what model(x) returns, the logits; "
OFF = "The cross-entropies take logits: leave that step off, as model[:-1] does; for 'mse' hessext.layer(model, "
OFF_ELSEWHERE = "The cross-entropies take logits: leave that step off; for 'mse' hessext.layer(model, "
OTHERS = "Name the last layer, or take this one as hessext.layer(model, "


def refused(call, *texts):
    with pytest.raises((TypeError, ValueError), match="^" + ".*".join(map(re.escape, texts))):
        call()


def refused_answer(function, answer, got, picked, place):
    refused(
        lambda: function(Answering(answer), "top", X, Y),
        f"model: expected logits (..., C) of at least two axes; got {got}. forward= picks {picked}: "
        f"forward=lambda model, batch: (model(batch[0]){place}, batch[1])",
    )


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("name", ANSWERS)
def test_answers(function, name):
    answer, got, place = ANSWERS[name]
    refused_answer(function, answer, got, "them", place)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("name", UNCLEAR)
def test_answers_with_more_than_one_that_may_be_the_logits(function, name):
    answer, got, places, place = UNCLEAR[name]
    refused_answer(function, answer, got, f"one of {places}", place)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("name", BATCHES)
def test_batches(function, name):
    batches, got = BATCHES[name]
    refused(lambda: function(mlp(), "2", batches), PAIRS + got)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("name", INPUTS)
def test_inputs(function, name):
    x, got = INPUTS[name]
    refused(lambda: function(mlp(), "2", x, Y), "x: expected what model(x) takes; got " + got)


class Failing(nn.Module):
    """A model with an error of its own in forward."""

    def __init__(self, fail):
        super().__init__()
        self.top, self.fail = nn.Linear(d, C), fail

    def forward(self, x):
        self.fail(self, x)
        return self.top(x)


def raised(error):
    def fail(model, x):
        raise error

    return fail


FAILURES = {
    "a typo": (lambda model, x: model.botom(x), AttributeError, "'Failing' object has no attribute 'botom'"),
    "a file": (raised(RuntimeError("no weights file")), RuntimeError, "no weights file"),
    "None": (lambda model, x: F.linear(None, model.top.weight), TypeError, "linear(): argument 'input' (position 1) "),
    "a missing argument": (lambda model, x: mlp(1, 2, 3, key=4), TypeError, "mlp() got an unexpected keyword argument"),
    "memory": (
        raised(torch.cuda.OutOfMemoryError("CUDA out of memory. Expected less")),
        torch.cuda.OutOfMemoryError,
        "CUDA out of memory",
    ),
    "memory of the host": (
        raised(RuntimeError("DefaultCPUAllocator: can't allocate memory")),
        RuntimeError,
        "DefaultCPUAllocator",
    ),
    "an assert": (raised(RuntimeError("CUDA error: device-side assert")), RuntimeError, "CUDA error"),
    "no forward": (lambda model, x: nn.Module()(x), NotImplementedError, "Module [Module] is missing the required"),
}


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("x", [X, X.double(), {"x": X}], ids=["x", "another dtype", "a dict"])
@pytest.mark.parametrize("name", FAILURES)
def test_errors_of_the_models_own_come_as_they_are(function, name, x):
    fail, kind, message = FAILURES[name]
    if name == "a file" and isinstance(x, torch.Tensor) and x.dtype == torch.float64:
        return  # where x does not fit either, that is said
    with pytest.raises(kind, match="^" + re.escape(message)) as caught:
        function(Failing(fail), "top", x, Y)
    assert type(caught.value) is kind


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize(
    ("first", "x", "cause"),
    [
        (nn.Linear(5, d), X, "mat1 and mat2 shapes cannot be multiplied"),
        (nn.Linear(d, d), Y.view(4, 5), "mat1 and mat2"),
        (nn.Conv1d(5, d, 1), X[..., None], "Given groups=1, weight of size "),
        (nn.Conv1d(d, d, 1), X[..., None].double(), "Input type (double) and bias type (float) should be the same"),
        (nn.LayerNorm(5), X, "Given normalized_shape=[5], expected input"),
        (nn.BatchNorm1d(5).eval(), X, "running_mean should contain 6 elements not 5"),
        (nn.Embedding(2, d), X, "Expected tensor for argument #1 'indices'"),
        (nn.Embedding(2, d), Y, "index out of range in self"),
        (nn.Softmax(1), Y[:, None], '"softmax'),
        (nn.Bilinear(d, d, d), X, "Bilinear.forward() missing 1 required positional argument"),
        (nn.Flatten(), X.tolist(), "'list' object has no attribute 'flatten'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_inputs_that_do_not_fit(function, first, x, cause):
    model = first if isinstance(first, nn.Bilinear) else nn.Sequential(OrderedDict(first=first, top=nn.Linear(d, C)))
    if model is first:
        model.top = nn.Linear(d, C)
    refused(lambda: function(model, "top", x, Y), "x: expected what model(x) takes; got ", ": " + cause)


def test_a_device_that_does_not_fit_is_said_with_torchs_message_of_cuda():
    error = RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (when checking "
        "argument for argument mat1 in method wrapper_CUDA_addmm)"
    )
    got = "a tensor (20, 6) of torch.float32 on meta, and the model is on cpu (.to moves either): Expected all tensors"
    for function in BOTH:
        refused(lambda: function(Failing(raised(error)), "top", X.to("meta"), Y), "x: expected what ", "got " + got)  # noqa: B023


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("name", FORWARD)
def test_functions(function, name):
    forward, *texts = FORWARD[name]
    refused(lambda: function(mlp(), "2", [(X, Y)], forward=forward), *texts)


@pytest.mark.parametrize(
    ("model", "name", "texts"),
    [
        (mlp(), "0", ("'0' gives a tensor (20, 4), and model(x) returns a tensor (20, 3). ", OTHERS, "'0', ...)")),
        (mlp(nn.Softmax(-1)), "2", ("'2' gives a tensor (20, 3), and model(x) returns their softmax. ", OFF)),
        (mlp(nn.LogSoftmax(-1)), "2", ("model(x) returns their log_softmax. ", OFF)),
        (mlp(nn.Sigmoid()), "2", ("model(x) returns their sigmoid. ", OFF)),
        (mlp(nn.Sequential(nn.Sigmoid())), "2", ("model(x) returns their sigmoid. ", OFF_ELSEWHERE)),
        (nn.Sequential(mlp(nn.Sigmoid()), nn.Identity()), "0.2", ("returns their sigmoid. ", OFF_ELSEWHERE)),
        (mlp(nn.ReLU()), "2", ("model(x) returns another one. ", OTHERS)),
        (mlp(nn.ReLU(inplace=True)), "2", ("model(x) returns this one, changed in place. ", OTHERS)),
    ],
    ids=["middle", "softmax", "log_softmax", "sigmoid", "nested", "sigmoid before Identity", "relu", "in place"],
)
def test_layers_that_do_not_give_the_logits(model, name, texts):
    refused(lambda: hessext.head(model, name, X, Y), HEAD, *texts)


def test_data_without_batches():
    made = (
        "x: expected a tensor beside y, or an iterable of batches; got TensorDataset (a DataLoader makes batches of it)"
    )
    end = "(an iterator is at its end after one pass)"
    for function in BOTH:
        refused(lambda function=function: function(mlp(), "2", TensorDataset(X, Y)), made)
        refused(lambda function=function: function(mlp(), "2", iter([])), "batches: expected at least one", end)
    refused(
        lambda: hessext.layer(mlp(), "0", [(X, Y), (X[:0], Y[:0])]),
        "batch 1: model: expected logits of at least one sample; got (0, 3)",
    )
    refused(lambda: hessext.layer(mlp(), "0", X, Y.to("meta")), "batch 0: y: expected device cpu; got meta")


# -------------------------------------------------------------------------------------------------- what is proposed


@pytest.mark.parametrize("name", ANSWERS)
def test_the_proposed_forward_is_taken(name):
    answer, _, place = ANSWERS[name]
    forward = eval(f"lambda model, batch: (model(batch[0]){place}, batch[1])")  # as the message has it
    for function, which in ((hessext.layer, "body"), (hessext.layer, "top"), (hessext.head, "top")):
        H = function(Answering(answer), which, [(X, Y)], forward=forward)
        assert torch.equal(H.dense(), function(Answering(), which, X, Y).dense())


def test_proposed_forwards_of_batches_are_taken():
    plain, expected = Answering(), hessext.layer(Answering(), "body", X, Y).dense()
    with_logits = Answering(lambda _, logits: types.SimpleNamespace(logits=logits))
    proposed = [
        (plain, {"x": X, "y": Y}, lambda model, batch: (model(batch["x"]), batch["y"])),
        (plain, (X, Y), lambda model, batch: (model(*batch[:-1]), batch[-1])),
        (plain, ({"x": X}, Y), lambda model, batch: (model(**batch[0]), batch[1])),
        (plain, ((X,), Y), lambda model, batch: (model(*batch[0]), batch[1])),
        (with_logits, (X, Y), lambda model, batch: (model(batch[0]).logits, batch[1])),
        (with_logits, (X, Y), None),
    ]
    for model, batch, forward in proposed:
        assert torch.equal(hessext.layer(model, "body", [batch], forward=forward).dense(), expected)


@pytest.mark.parametrize(
    ("step", "loss", "made"),
    [
        (nn.Softmax(-1), "cross_entropy", "softmax"),
        (nn.Softmax(-1), "mse", None),
        (nn.Sigmoid(), nn.BCEWithLogitsLoss(), "sigmoid"),
        (nn.LogSoftmax(-1), "cross_entropy", None),  # of which the softmax is that of the logits
        (nn.Tanh(), "cross_entropy", None),
    ],
)
def test_probabilities_in_place_of_logits(step, loss, made):
    """torch takes the softmax of a softmax without a word."""
    model, y = mlp(step), F.one_hot(Y).float()
    message = rf"^model: expected logits, of which \w+ makes .* got the outputs of a {made}\. .* as model\[:-1\] does"
    with pytest.warns(UserWarning, match=message) if made else contextlib.nullcontext() as warned:
        H = hessext.layer(model, "0", X, y, loss)
    assert hessext.autograd.check(H)
    assert not made or [w.filename for w in warned] == [__file__]  # which points at the caller's line


def test_probabilities_of_a_nested_model_are_not_left_off_by_an_index():
    with pytest.warns(UserWarning, match=r"leave that step off$"):
        hessext.layer(mlp(nn.Sequential(nn.Softmax(-1))), "0", X, Y)


def test_a_softmax_of_many_classes_is_not_any_other():
    """Whose entries are all small."""
    model, y = nn.Sequential(nn.Linear(d, 10_000), nn.Softmax(-1), nn.Softmax(-1)), Y
    refused(lambda: hessext.head(model, "0", X, y), HEAD, "model(x) returns another one. ", OTHERS)
    refused(lambda: hessext.head(model[:-1], "0", X, y), HEAD, "model(x) returns their softmax. ", OFF)


def test_some_places_of_a_language_model():
    model, tokens = nn.Sequential(nn.Embedding(C, d), nn.Linear(d, C)), Y.view(4, 5)
    model[0].requires_grad_(False)

    def some(model, batch):
        return model(batch)[:, :-1], batch[:, 1:]

    def shifted(model, batch):
        return model(batch), F.pad(batch[:, 1:], (0, 1), value=-100)

    refused(
        lambda: hessext.head(model, "1", [tokens], forward=some),
        "module: expected a layer whose outputs are what forward returns, the logits; '1' gives a tensor (4, 5, 3), "
        "and forward returns a tensor (4, 4, 3). forward= may run the model and return the targets alone, of all ",
        "hessext.layer(model, '1', ...) takes it as it is",
    )
    expected = hessext.layer(model, "1", [tokens], forward=some).dense()
    for forward in (shifted, lambda *both: shifted(*both)[1]):
        torch.testing.assert_close(hessext.head(model, "1", [tokens], forward=forward).dense(), expected)


def test_second_names_of_arguments():
    model = mlp()
    layer, head = hessext.layer(model, "2", X, Y).dense(), hessext.head(model, "2", X, Y).dense()
    for name in ("name", "module"):
        for data in ("x", "batches"):
            assert torch.equal(hessext.layer(model, **{name: "2", data: [(X, Y)]}).dense(), layer)
            assert torch.equal(hessext.head(model, **{name: model[2], data: [(X, Y)]}).dense(), head)
    refused(lambda: hessext.layer(model, "2", X, module="0"), "layer: name and module are one argument; got both")
    refused(lambda: hessext.head(model, "2", X, name="0"), "head: module and name are one argument; got both")
    refused(lambda: hessext.layer(model, "2", X, batches=X), "layer: x and batches are one argument; got both")
    refused(lambda: hessext.layer(model, "2", x=X, batches=[(X, Y)]), "layer: x and batches are one argument; got both")
    whole = hessext.hessian(model, X, Y).dense()
    torch.testing.assert_close(hessext.hessian(model, batches=[(X, Y)]).dense(), whole)
    refused(lambda: hessext.head(model, [(X, Y)]), "head(model, module, x): missing a required argument: 'x'")


def test_the_loss_has_the_same_place_in_both():
    for function in BOTH:
        expected = function(mlp(), "2", X, Y, loss=nn.MSELoss()).dense()
        assert torch.equal(function(mlp(), "2", X, Y, nn.MSELoss()).dense(), expected)


def test_logits_that_become_float_after_the_head():
    """As those of models in half precision."""

    class Lifted(nn.Sequential):
        def forward(self, x):
            return super().forward(x).float()

    model, x = Lifted(*mlp()).bfloat16(), X.bfloat16()
    expected = hessext.head(nn.Sequential(*model), "2", x, Y).dense()
    assert torch.equal(hessext.head(model, "2", x, Y).dense(), expected)
