"""What is run on a device of `launches`, and compared with the truth: every kernel, in shapes that are full and not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from unittest.mock import patch

import torch
from helpers.cases import DTYPES, Case, make_inputs
from helpers.gram_reference import assert_rounded, assert_tiles, close, softmax_sums, sums
from helpers.reference import (
    assert_accurate,
    assert_softmax,
    assert_softmax_product,
    dense,
    matrix,
    plain,
    truth,
)

from hessext import _ops

DENSE = [
    Case(33, 65, 3),  # several tiles
    Case(16, 3, 17, bias="o"),  # classes fill the tile
    Case(17, 2, 5, loss="mse", bias="o"),
    Case(33, 4, 33, 2, bias="o"),
    Case(16, 37, 3, 1, activation="gelu", bias="ho"),
    Case(17, 3, 2, 9, activation="tanh", loss="mse", bias="o"),
    Case(20, 4, 3, 2, loss="ce sum ignore"),
    Case(17, 50, 50, 1),  # tiles of 64
    Case(18, 128, 100, 1),  # of 128, over classes
    Case(17, 250, 2, 1),  # and over features
]
PIECES = 16, 1 << 14, 20  # spans of 16 samples, little workspace, launches of 20 blocks
WAYS = {"": (True, (0, 0, 0)), " plain": (False, (0, 0, 0)), " in pieces": (True, PIECES)}


def _dense(case: Case, dtype: torch.dtype) -> None:
    inputs = make_inputs(case, dtype)
    exact, bar = dense(truth(case, dtype), inputs.lift()), dense(plain(case, dtype), inputs)
    assert_accurate(inputs.hessian().dense(), exact, bar)


def _blocks(case: Case, dtype: torch.dtype) -> None:
    H, expected = make_inputs(case, dtype).hessian(), truth(case, dtype)
    for row in H.layers:
        for col in H.layers:
            B, blocks = H[row, col], expected[row, col]
            last = B.grid[0] - 1, B.grid[1] - 1
            assert_accurate(B.blocks([(0, 0), last]), blocks[[0, -1], [0, -1]])
            assert_accurate(B.norms(), blocks.flatten(2).norm(dim=2))


def _pairs_of_samples(case: Case, dtype: torch.dtype) -> None:
    """In the Gram form, which asks for entries of Q_n and for sums without a softmax."""
    with patch("hessext.matrix.cost._sample_pairs", lambda *_: 0.0):
        _blocks(case, dtype)


def _softmax_sums(case: Case, dtype: torch.dtype) -> None:
    squares = truth(case, dtype)["output", "output"].flatten(2).square().sum(2)
    found = softmax_sums(make_inputs(case, dtype).hessian()["output"]._part)
    for value, wanted in zip(found, sums(squares), strict=True):
        close(value, wanted, {torch.float32: 1e-6, torch.float64: 1e-12}[dtype])


def _matrices(case: Case, dtype: torch.dtype) -> None:
    inputs = make_inputs(case, dtype)
    assert_tiles(inputs.hessian(), inputs.lift().hessian(), dtype)


def _shared_tiles(case: Case, dtype: torch.dtype) -> None:
    """The first block of each layer, whose samples several blocks share."""
    H, expected = make_inputs(case, dtype).hessian(), truth(case, dtype)
    for layer in H.layers:
        assert_accurate(H[layer].blocks([(0, 0)]), expected[layer, layer][[0], [0]])


def _covariance(case: Case, dtype: torch.dtype) -> None:
    blocks = truth(case, dtype)["hidden", "hidden"]
    assert_accurate(make_inputs(case, dtype).hessian()["hidden"].dense(), matrix(blocks))


def gram(dtype: torch.dtype) -> None:
    """Several tiles, and with spans of 40 several of them, of several stages."""
    torch.manual_seed(0)
    left, right, weight = (torch.randn(*shape, dtype=dtype) for shape in ((72, 33), (72, 70), (33, 70)))
    total = torch.zeros(2, dtype=torch.float64)
    _ops.gram_sums_(left, right, weight, False, None, [], [], total)
    terms = weight.double() * (left.double().T @ right.double())
    assert abs(total[0] - terms.sum()) < torch.finfo(dtype).eps * terms.abs().sum()


def logits(classes: int, samples: int, d: int, stride: int) -> None:
    torch.manual_seed(classes)
    weight, features = (torch.randn(rows, d + stride)[:, stride:] for rows in (classes, samples))
    bias, out = torch.randn(classes), torch.empty(classes, samples)
    _ops.logits_(out, weight, bias, features)
    exact, bar = (
        torch.nn.functional.linear(*(t.to(dtype) for t in (features, weight, bias))).T
        for dtype in (torch.float64, torch.float32)
    )
    assert_accurate(out, exact, bar)


def residual(dtype: torch.dtype) -> None:
    probs = torch.softmax(torch.linspace(-1, 2, 77, dtype=dtype).view(11, 7), 1)
    scale, label = torch.linspace(1, 2, 11, dtype=dtype), torch.arange(11) % 7
    top, rest = probs.argmax(1), 1 - probs.amax(1)
    found = _ops.label_residual(probs, scale, label, top, rest)
    one = torch.nn.functional.one_hot(label, 7)
    assert_accurate(found, (scale.double()[:, None] * (probs.double() - one)))


def cases() -> Iterator[tuple[str, Callable[[], None], tuple[bool, tuple[int, int, int]]]]:
    """(name, what computes and asserts, how kernels are used then)."""
    for dtype in DTYPES:
        for way, settings in WAYS.items():
            yield f"gram {dtype}{way}", partial(gram, dtype), settings
            for name, run, *arguments in _of_every_way(short=way == " in pieces"):
                label = " ".join(a.name for a in arguments)
                yield f"{name} {label} {dtype}{way}", partial(run, *arguments, dtype), settings
        usual = WAYS[""]
        yield f"covariance {dtype}", partial(_covariance, Case(9, 3, 300, 2), dtype), usual
        for classes, scale in ((2, 1.0), (97, 30.0), (300, 1e4)):
            yield f"softmax {classes} {dtype}", partial(assert_softmax, classes, scale, dtype), usual
        yield f"softmax product {dtype}", partial(assert_softmax_product, 300, dtype), usual
        yield f"residual {dtype}", partial(residual, dtype), usual
    for way in ("", " in pieces"):
        yield f"small probabilities{way}", assert_rounded, WAYS[way]
    for sizes in ((65, 97, 33, 0), (130, 257, 20, 1), (130, 70, 20, 4), (64, 64, 1, 0)):
        yield f"logits {sizes}", partial(logits, *sizes), WAYS[""]


def _of_every_way(short: bool) -> Iterator[tuple]:
    """(name, function, case); `short`: what takes several rounds where the pieces of work are small."""
    for case in DENSE[3:4] + DENSE[7:] if short else DENSE:
        yield "dense", _dense, case
    yield "blocks", _blocks, Case(33, 4, 5, 2, bias="o")
    yield "pairs of samples", _pairs_of_samples, Case(9, 40, 3, 2, bias="ho")
    yield "softmax sums", _softmax_sums, Case(33, 5, 17)
    if not short:
        yield "softmax sums", _softmax_sums, Case(66, 3, 20, bias="o")
        yield "matrices", _matrices, Case(35, 3, 4, 5, bias="h")
        for d in (2, 50):
            yield "shared tiles", _shared_tiles, Case(1100, d, 2, 1)
