"""Targets that cannot be, or that are meant otherwise, are refused; those that can be taken as what they are, are."""

from __future__ import annotations

import pickle
import re

import pytest
import torch
from helpers.modules import hessian_of
from torch import nn
from torch.nn import functional as F

import hessext

N, d, C = 9, 4, 3
X = torch.randn(N, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(N) % C
LOGITS = torch.randn(N, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LOSS = nn.CrossEntropyLoss(label_smoothing=0.1)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d, 5), nn.Tanh(), nn.Linear(5, C)).double()


WAYS = {
    "hessian": lambda x, y, loss: hessext.hessian(model(), x, y, loss),
    "batches": lambda x, y, loss: hessext.hessian(model(), [(x[:4], y[:4]), (x[4:], y[4:])], loss=loss),
    "layer": lambda x, y, loss: hessext.layer(model(), "0", x, y, loss=loss),
    "head": lambda x, y, loss: hessext.head(model(), "2", x, y, loss),
    "linear": lambda x, y, loss: hessext.linear(model()[2].weight, model()[:2](x).detach(), y, loss=loss),
    "truth": lambda x, y, loss: hessext.autograd.hessian(model(), x, y, loss=loss),
}


def dense(H):
    return H if isinstance(H, torch.Tensor) else H.dense()


# --- probabilities ------------------------------------------------------------------------------------------------

MESSAGE = "y: expected class probabilities, no entry below 0 and the sum of each row 1; got "
IMPOSSIBLE = {
    "logits": (LOGITS, "entries down to -1.51. "),
    "log probabilities": (LOGITS.log_softmax(1), "entries down to "),
    "several labels": (torch.ones(N, C).double(), "rows that sum to 3. "),
    "none": (torch.zeros(N, C).double(), "rows that sum to 0. "),
    "scaled": (torch.cat([LOGITS.softmax(1)[:5], 0.5 * LOGITS.softmax(1)[5:]]), "rows that sum to 0.5 and 1. "),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("y", "got"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_is_no_distribution_is_refused(y, got, way):
    for loss in ("cross_entropy", LOSS):
        with pytest.raises(ValueError, match=re.escape(MESSAGE + got if way != "batches" else MESSAGE)):
            dense(WAYS[way](X, y, loss))


@pytest.mark.parametrize("way", WAYS)
def test_the_message_names_what_takes_them(way):
    with pytest.raises(
        ValueError, match=r"softmax first.*BCEWithLogitsLoss.*hessext\.UnnormalizedCrossEntropyLoss\(\)"
    ):
        dense(WAYS[way](X, LOGITS, "cross_entropy"))


@pytest.mark.parametrize(
    "options", [{}, {"reduction": "sum"}, {"weight": torch.tensor([1.0, 2.0, 0.5]).double()}], ids=str
)
@pytest.mark.parametrize("y", [y for y, _ in IMPOSSIBLE.values()], ids=IMPOSSIBLE)
def test_any_numbers_as_torch_has_them(y, options):
    expected = hessian_of(model(), X, lambda logits: nn.CrossEntropyLoss(**options)(logits, y))
    loss = hessext.UnnormalizedCrossEntropyLoss(**options)
    H = hessext.hessian(model(), X, y, loss)
    for out in (H, WAYS["batches"](X, y, loss), WAYS["truth"](X, y, loss), pickle.loads(pickle.dumps(H))):
        assert (dense(out) - expected).norm() <= 1e-12 * expected.norm()
    assert hessext.autograd.check(H)
    torch.testing.assert_close(loss(LOGITS, y), nn.CrossEntropyLoss(**options)(LOGITS, y))


@pytest.mark.parametrize("way", WAYS)
def test_probabilities_may_be_rounded(way):
    """As those of two digits each are, and those in half precision."""
    p = LOGITS.softmax(1)
    for y in (p, (100 * p).round() / 100, p.bfloat16().double(), p.half().double()):
        dense(WAYS[way](X, y, "cross_entropy"))


def test_other_losses_take_any_numbers():
    for loss in ("mse", "binary_cross_entropy", nn.MSELoss(), nn.BCEWithLogitsLoss()):
        hessext.hessian(model(), X, LOGITS, loss)


# --- one-hot ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss(ignore_index=1), LOSS, "mse"], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_one_hot_matrices_are_labels(way, loss, dtype):
    hot = F.one_hot(LABELS, C).to(dtype)
    assert torch.equal(dense(WAYS[way](X, hot, loss)), dense(WAYS[way](X, LABELS, loss)))


def test_one_hot_of_sequences():
    x, labels = X[:8].view(2, 4, d), LABELS[:8].view(2, 4)
    for way in ("hessian", "layer", "head"):
        assert torch.equal(WAYS[way](x, F.one_hot(labels, C), LOSS).dense(), WAYS[way](x, labels, LOSS).dense())
    assert hessext.autograd.check(WAYS["layer"](x, F.one_hot(labels, C), LOSS))


@pytest.mark.parametrize("y", [torch.ones(N, C).long(), torch.zeros(N, C).bool(), 2 * F.one_hot(LABELS, C)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_other_matrices_of_integers_are_not(way, y):
    for loss in ("cross_entropy", "mse"):
        with pytest.raises(
            ValueError, match=r"y: expected one-hot rows in .* \(\d, 3\), a single 1 in each; got others"
        ):
            dense(WAYS[way](X, y, loss))


# --- what would do ------------------------------------------------------------------------------------------------

HOT = F.one_hot(LABELS, C)
OF_NUMBERS = r"\(labels stand for one-hot targets; numbers to be met are float targets, one for each logit\)$"
HINTS = {
    "float labels": (LABELS.double(), "cross_entropy", r"got torch\.float64 \(9,\) \(y\.long\(\) makes labels of it\)"),
    "int32": (LABELS.int(), "cross_entropy", r"got torch\.int32 \(y\.long\(\) makes labels of it\)"),
    "column": (LABELS[:, None], "cross_entropy", r"\(9, 1\) \(y\[\.\.\., 0\] makes labels of it\)"),
    "float column": (
        LABELS[:, None].double(),
        "cross_entropy",
        r"shape \(9, 3\); got \(9, 1\) \(y\[\.\.\., 0\]\.long\(\) makes labels of it\)",
    ),
    "int32 column": (
        LABELS[:, None].int(),
        "cross_entropy",
        r"\(9, 1\) \(y\[\.\.\., 0\]\.long\(\) makes labels of it\)",
    ),
    "numbers": (LOGITS[:, 0], "mse", r"\(9,\) \(one number for each sample, which has 3 logits\)$"),
    "column of numbers": (LOGITS[:, :1], "mse", r"\(9, 1\) \(one number for each sample, which has 3 logits\)$"),
    "whole numbers": (LABELS.double(), "mse", r"\(9,\) \(one number for each sample, which has 3 logits\)$"),
    "column of whole numbers": (LABELS[:, None].double(), nn.MSELoss(), r"\(9, 1\) \(one number for each sample, "),
    "counts": (LABELS.int(), "mse", r"got torch\.int32 " + OF_NUMBERS),
    "column of counts": (LABELS[:, None].int(), "mse", r"\(9, 1\) " + OF_NUMBERS),
    "counts of each": (LOGITS.int(), "mse", r"got torch\.int32 \(9, 3\) " + OF_NUMBERS),
    "integers of each": (2 * HOT.int(), "cross_entropy", r"got torch\.int32 \(9, 3\)$"),
    **{
        f"one-hot, {dtype}, {loss}": (HOT.to(dtype), loss, rf"{dtype} \(9, 3\) \(y\.long\(\) makes labels of it\)$")
        for dtype in (torch.int32, torch.uint8)
        for loss in ("cross_entropy", "mse")
    },
    "list": (LABELS.tolist(), "cross_entropy", r"a torch\.Tensor; got list \(torch\.tensor makes it one\)"),
    "array": (LABELS.numpy(), "cross_entropy", r"a torch\.Tensor; got ndarray \(torch\.from_numpy makes it one\)"),
    "ignored": (LABELS - 1, "cross_entropy", r"got -1 \(nn\.CrossEntropyLoss\(ignore_index=-1\) leaves it out\)"),
    "of mse": (
        LABELS + 1,
        nn.MSELoss(),
        r"got 3 " + OF_NUMBERS,
    ),
    "a class of each": (
        LABELS,
        "binary_cross_entropy",
        r"got \(9,\) \(the class of each sample is that of 'cross_entropy'\)",
    ),
    "from 1": (LABELS + 1, "cross_entropy", r"labels in \[0, 3\); got 3 \(y - 1, if they start at 1\)"),
    "higher": (LABELS + 2, "cross_entropy", r"labels in \[0, 3\); got 4$"),
}


@pytest.mark.parametrize(("y", "loss", "message"), HINTS.values(), ids=HINTS)
def test_messages_say_what_to_do(y, loss, message):
    with pytest.raises((ValueError, TypeError), match=r"^y: expected .*?" + message):
        hessext.hessian(model(), X, y, loss)


def test_signs_in_place_of_labels():
    W, signs = torch.ones(2, d).double(), 2 * (LABELS % 2) - 1
    with pytest.raises(ValueError, match=r"in \[0, 2\); got -1 \(\(y \+ 1\) // 2 makes labels 0 and 1 of -1 and 1\)$"):
        hessext.linear(W, X, signs)
    with pytest.raises(ValueError, match=r"got -1 \(\(y \+ 1\) // 2 makes labels"):
        hessext.linear(W[:1], X, signs, loss="binary_cross_entropy")
    with pytest.raises(ValueError, match=r"got -1 \(nn\.CrossEntropyLoss\(ignore_index=-1\) leaves it out\)$"):
        hessext.linear(W, X, LABELS - 1)  # of which some are 0
    hessext.linear(W, X, (signs + 1) // 2)


def test_numbers_of_one_logit():
    one = nn.Sequential(nn.Linear(d, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    with pytest.raises(
        ValueError, match=r"^y: expected .*got torch\.float64 \(9,\) \(y\[\.\.\., None\] is of one logit\)"
    ):
        hessext.hessian(one, X, LOGITS[:, 0], "mse")
    with pytest.raises(
        ValueError, match=r"^y: expected .*got 2 \(of one logit, 'binary_cross_entropy' takes labels 0 and 1"
    ):
        hessext.hessian(one, X, LABELS)
    with pytest.raises(ValueError, match=r"^y: expected .*\(9,\) \(of one logit, 'binary_cross_entropy' takes labels"):
        hessext.hessian(one, X, LABELS.double())
    with pytest.raises(
        TypeError, match=r"^y: expected torch\.float64; got torch\.float32 \(\.to\(torch\.float64\) converts"
    ):
        hessext.hessian(one, X, LOGITS[:, :1].float(), "mse")


def test_what_the_messages_propose_is_taken():
    expected = hessext.hessian(model(), X, LABELS).dense()
    for y in (LABELS.double().long(), LABELS[:, None][..., 0], LABELS[:, None].double()[..., 0].long()):
        assert torch.equal(hessext.hessian(model(), X, y).dense(), expected)
    hot = F.one_hot(LABELS, C).double()
    for y in (HOT.int().long(), HOT.to(torch.uint8).long()):
        assert torch.equal(hessext.hessian(model(), X, y).dense(), expected)
    assert torch.equal(*(hessext.hessian(model(), X, y, nn.MSELoss()).dense() for y in (LABELS, hot)))
    assert hessext.autograd.check(hessext.hessian(model(), X, LABELS - 1, nn.CrossEntropyLoss(ignore_index=-1)))


def test_classes_of_sequences_are_the_last_axis():
    x, labels = X[:8].view(2, 4, d), LABELS[:8].view(2, 4)
    second = F.one_hot(labels, C).movedim(-1, 1)
    for y in (second, second.double()):
        for way in ("hessian", "layer", "head"):
            with pytest.raises(ValueError, match=r"\(classes are the last axis here: y\.movedim\(1, -1\)\)$"):
                WAYS[way](x, y, "cross_entropy")
            WAYS[way](x, y.movedim(1, -1), "cross_entropy")
    transposed = nn.Sequential(model(), Transposed())
    with pytest.raises(
        ValueError, match=r"got .*\(2, 4\) \(are classes the second axis of the logits\? here they are the last"
    ):
        hessext.layer(transposed, "0.0", x, labels)


class Transposed(nn.Module):
    """Classes as the second axis, as torch's cross-entropy has them."""

    def forward(self, x):
        return x.mT
