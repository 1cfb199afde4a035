"""Every bad argument is refused with a message that names it, what was expected and what came."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from hessext import _memory
from hessext._checks import finite, matrix, multiplied, out, vector
from hessext._memory import require, spare
from hessext.matrix.requests import block_index, named_factors, pairs, symmetric
from hessext.model import loss_arguments as losses
from hessext.model.targets import checked_targets

X = torch.ones(4, 3)
Y = torch.tensor([0, 1, 2, 1])
CE, MSE = losses.resolve("cross_entropy"), losses.resolve("mse")


def with_value(value):
    x = X.clone()
    x[2, 1] = value
    return x


def loss(**options):
    return losses.resolve(nn.CrossEntropyLoss(**options))


def refused(error, message, call):
    with pytest.raises(error, match="^" + re.escape(message)):
        call()


# --- tensors ----------------------------------------------------------------------------------------------------


def test_good_tensors_pass_detached():
    x = X.clone().requires_grad_()
    assert matrix("x", X) is X
    assert not matrix("x", x, rows=4, cols=3, like=X).requires_grad
    assert matrix("x", X.T, rows=3).stride() == (1, 3)
    assert matrix("x", 1e38 * X).sum() == math.inf  # a sum that overflows says nothing about the entries
    assert vector("b", X[0].double(), size=3, like=X.double()).shape == (3,)
    assert multiplied("v", X[0], 3, X).shape == (3,)
    assert multiplied("v", X.T, 3, X).shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_symmetric_but_for_rounding(dtype):
    """Relative to the largest entry: rounding of a product leaves small entries any sign."""
    eps = torch.finfo(dtype).eps
    t = torch.tensor([[1.0, eps, 3.0], [-eps, 0.0, 0.0], [3.0, 0.0, 1.0]], dtype=dtype)
    for given in (t, torch.stack([t, t])):
        found = symmetric("M", given)
        assert found.dtype == torch.float64
        assert torch.equal(found, found.mT)
        assert (found - given).abs().max() <= eps
    found = named_factors({"mine": (t, t)}, ("taken",), (3, 3), (3, 3), t)["mine"]
    assert all(torch.equal(side, symmetric("M", t)) for side in found)
    t[0, 1] = 1e4 * eps
    refused(ValueError, "M: expected symmetric matrices; got entries that differ", lambda: symmetric("M", t))


BAD_MATRICES = {
    "list": ([[1.0]], TypeError, "x: expected a torch.Tensor; got list"),
    "none": (None, TypeError, "x: expected a torch.Tensor; got NoneType"),
    "numpy": (np.ones((4, 3)), TypeError, "x: expected a torch.Tensor; got ndarray (torch.from_numpy makes it one)"),
    "sparse": (X.to_sparse(), TypeError, "x: expected a dense tensor; got torch.sparse_coo"),
    "int": (X.long(), TypeError, "x: expected torch.float32; got torch.int64"),
    "half": (X.half(), TypeError, "x: expected torch.float32; got torch.float16"),
    "double": (X.double(), TypeError, "x: expected torch.float32; got torch.float64 (.to(torch.float32) converts it)"),
    "vector": (X[0], ValueError, "x: expected shape (any, 3); got (3,)"),
    "cols": (X.T, ValueError, "x: expected shape (any, 3); got (3, 4)"),
    "empty": (X[:0], ValueError, "x: expected at least one element; got shape (0, 3)"),
    "device": (X.to("meta"), ValueError, "x: expected device cpu; got meta"),
    "nan": (with_value(math.nan), ValueError, "x: expected finite values; got 1 that are NaN or infinite"),
    "inf": (with_value(math.inf), ValueError, "x: expected finite values; got 1 that are NaN or infinite"),
    "-inf": (with_value(-math.inf), ValueError, "x: expected finite values; got 1 that are NaN or infinite"),
}


@pytest.mark.parametrize(("x", "error", "message"), BAD_MATRICES.values(), ids=BAD_MATRICES)
def test_bad_matrix(x, error, message):
    refused(error, message, lambda: matrix("x", x, cols=3, like=X))


def test_dtypes_without_a_tensor_to_match():
    refused(
        TypeError, "x: expected torch.float32 or torch.float64; got torch.bfloat16", lambda: matrix("x", X.bfloat16())
    )


@pytest.mark.parametrize(
    ("b", "message"),
    [
        (torch.ones(4), "bias: expected shape (3,); got (4,)"),
        (X, "bias: expected shape (3,); got (4, 3)"),
        (torch.tensor([0, math.nan, 0]), "bias: expected finite values; got 1 that are NaN or infinite"),
    ],
)
def test_bad_vector(b, message):
    refused(ValueError, message, lambda: vector("bias", b, size=3, like=X))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_finite(value):
    refused(ValueError, "z: expected finite values; got 1", lambda: finite("z", torch.tensor([[0.0, value]])))


@pytest.mark.parametrize(
    ("v", "message"),
    [
        (torch.ones(4), "v: expected shape (3,); got (4,)"),
        (X, "v: expected shape (3, any); got (4, 3)"),
        (X[None], "v: expected shape (3, any); got (1, 4, 3)"),
    ],
)
def test_bad_factor(v, message):
    refused(ValueError, message, lambda: multiplied("v", v, 3, X))


# --- targets ----------------------------------------------------------------------------------------------------


def test_good_targets_pass():
    assert checked_targets(Y, (4,), 3, CE, X) is Y
    assert checked_targets(Y, (4,), 3, MSE, X) is Y
    assert checked_targets(X, (4,), 3, MSE, X) is X
    assert checked_targets(X / 3, (4,), 3, CE, X).equal(X / 3)
    assert checked_targets(None, (4,), 3, CE, X) is None
    ignored = torch.tensor([-100, 0, -100, 2])
    assert checked_targets(ignored, (4,), 3, CE, X) is ignored
    assert checked_targets(Y.where(Y != 1, 255), (4,), 3, loss(ignore_index=255), X)[1] == 255
    assert (checked_targets(torch.full((4,), -100), (4,), 3, loss(reduction="sum"), X) == -100).all()
    assert checked_targets(Y, (4,), 3, loss(weight=torch.tensor([1.0, 0.0, 0.0])), X) is Y


NAMED = "y: expected int64 labels (4,) or torch.float32 targets (4, 3); got "
WEIGHTLESS = "y: expected labels whose weights do not sum to 0; all are ignored or weigh nothing"
WANTED = "y: expected int64 labels (4,) or torch.float32 targets (4, 3); got "
BAD_TARGETS = {
    "list": ([0, 1, 2, 1], CE, TypeError, "y: expected a torch.Tensor; got list"),
    "int32": (Y.int(), CE, TypeError, NAMED + "torch.int32"),
    "bool": (Y > 0, MSE, TypeError, NAMED + "torch.bool"),
    "double": (X.double(), CE, TypeError, "y: expected torch.float32; got torch.float64"),
    "labels of other samples": (Y[:3], CE, ValueError, "y: expected shape (4,); got (3,)"),
    "column of labels": (Y[:, None], CE, ValueError, WANTED + "torch.int64 (4, 1)"),
    "vector of floats": (X[:, 0], MSE, ValueError, WANTED + "torch.float32 (4,)"),
    "nan": (with_value(math.nan), CE, ValueError, "y: expected finite values; got 1 that are NaN or infinite"),
    "device": (Y.to("meta"), CE, ValueError, "y: expected device cpu; got meta"),
    "high label": (Y + 1, CE, ValueError, "y: expected labels in [0, 3); got 3"),
    "low label": (Y - 1, CE, ValueError, "y: expected labels in [0, 3); got -1"),
    "high label beside ignored": (Y * 5, loss(ignore_index=0), ValueError, "y: expected labels in [0, 3); got 10"),
    "mse ignores nothing": (Y - 100, MSE, ValueError, "y: expected labels in [0, 3); got -100"),
    "all ignored": (torch.full((4,), -100), CE, ValueError, WEIGHTLESS),
    "no weight": (torch.ones_like(Y), loss(weight=torch.tensor([1.0, 0, 1])), ValueError, WEIGHTLESS),
    "missing": (
        None,
        loss(ignore_index=1),
        ValueError,
        "y: this loss's class weights, ignore_index or pos_weight need targets; got None",
    ),
    "ignored probabilities": (
        X,
        loss(ignore_index=1),
        ValueError,
        "y: ignore_index=1 needs int64 labels (4,); got torch.float32",
    ),
    "weight's length": (Y, loss(weight=torch.ones(4)), ValueError, "loss.weight: expected shape (3,); got (4,)"),
    "weight's dtype": (
        Y,
        loss(weight=torch.ones(3).double()),
        TypeError,
        "loss.weight: expected torch.float32; got torch.float64",
    ),
    "weight's nan": (
        Y,
        loss(weight=torch.tensor([1, math.nan, 1])),
        ValueError,
        "loss.weight: expected finite values; got 1 that are NaN or infinite",
    ),
}


@pytest.mark.parametrize(("y", "loss", "error", "message"), BAD_TARGETS.values(), ids=BAD_TARGETS)
def test_bad_targets(y, loss, error, message):
    refused(error, message, lambda: checked_targets(y, (4,), 3, loss, X))


# --- results ----------------------------------------------------------------------------------------------------


def test_good_out_passes():
    t = torch.empty(2, 5)
    assert out(t, (2, 5), X) is t
    new = out(None, (2, 5), X.double())
    assert (new.shape, new.dtype, new.device) == ((2, 5), torch.float64, X.device)


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (np.empty((2, 5)), TypeError, "out: expected a torch.Tensor; got ndarray (torch.from_numpy makes it one)"),
        (torch.empty(2, 5).double(), TypeError, "out: expected torch.float32; got torch.float64"),
        (torch.empty(5, 2), ValueError, "out: expected shape (2, 5); got (5, 2)"),
        (torch.empty(2, 5, device="meta"), ValueError, "out: expected device cpu; got meta"),
        (torch.empty(5, 2).T, ValueError, "out: expected a contiguous tensor; got strides (1, 2)"),
        (torch.empty(2, 5).requires_grad_(), ValueError, "out: expected a tensor that does not require grad"),
    ],
)
def test_bad_out(t, error, message):
    refused(error, message, lambda: out(t, (2, 5), X))


# --- blocks -----------------------------------------------------------------------------------------------------


def test_good_blocks_pass():
    assert block_index(1, torch.tensor(4), (2, 5)) == (1, 4)
    for given in ([(0, 0), (1, 4)], ((0, 0), (1, 4)), torch.tensor([[0, 0], [1, 4]])):
        assert pairs(given, 2, 5, X.device).tolist() == [[0, 0], [1, 4]]


@pytest.mark.parametrize("pair", [(2, 0), (0, 5), (-1, 0), (0, -1)])
def test_block_out_of_the_grid(pair):
    message = f"block: expected a pair within the 2 x 5 grid; got ({pair[0]}, {pair[1]})"
    refused(IndexError, message, lambda: block_index(*pair, (2, 5)))
    value = next(i for i, size in zip(pair, (2, 5), strict=True) if not 0 <= i < size)
    kind = "rows" if value == pair[0] else "columns"
    message = f"pairs: expected {kind} of the 2 x 5 grid; got {value}"
    refused(IndexError, message, lambda: pairs([(0, 0), pair], 2, 5, X.device))


@pytest.mark.parametrize("pair", [(0.0, 1), ("0", 1), (None, 1)])
def test_block_of_no_integers(pair):
    refused(TypeError, f"block: expected two integers; got {pair[0]!r}, 1", lambda: block_index(*pair, (2, 5)))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], ValueError, "pairs: expected shape (any, 2); got (0,)"),
        (torch.empty(0, 2).long(), ValueError, "pairs: expected at least one element; got shape (0, 2)"),
        ([0, 1], ValueError, "pairs: expected shape (any, 2); got (2,)"),
        ([(0, 1, 2)], ValueError, "pairs: expected shape (any, 2); got (1, 3)"),
        ([(0, 1), (1,)], TypeError, "pairs: expected an int64 tensor (P, 2) or a list of (i, j); "),
        ([("a", "b")], TypeError, "pairs: expected an int64 tensor (P, 2) or a list of (i, j); "),
        ("01", TypeError, "pairs: expected an int64 tensor (P, 2) or a list of (i, j); "),
        ([(0.0, 1.0)], TypeError, "pairs: expected int64; got torch.float32"),
        (torch.tensor([[0, 1]]).int(), TypeError, "pairs: expected int64; got torch.int32"),
        (np.array([[0, 1]]), TypeError, "pairs: expected a torch.Tensor; got ndarray (torch.from_numpy makes it one)"),
        (3, TypeError, "pairs: expected a torch.Tensor; got int"),
    ],
)
def test_bad_pairs(given, error, message):
    refused(error, message, lambda: pairs(given, 2, 5, X.device))


# --- memory -----------------------------------------------------------------------------------------------------


def test_memory_names_what_is_needed_and_free(monkeypatch):
    monkeypatch.setattr(_memory, "_free_on_host", lambda: 1 << 30)
    require(1 << 30, "a dense Hessian")
    message = "a dense Hessian needs 3,221,225,472 bytes (3.0 GiB), but 1,073,741,824 bytes (1.0 GiB) are free on cpu"
    refused(MemoryError, message, lambda: require(3 << 30, "a dense Hessian"))
    refused(MemoryError, "a (65536, 65536) result needs 17,179,869,184 bytes", lambda: out(None, (1 << 16, 1 << 16), X))


def test_small_requests_do_not_ask_the_system(monkeypatch):
    monkeypatch.setattr(_memory, "_free_on_host", lambda: pytest.fail("asked"))
    require(_memory._ALWAYS_FREE, "a block")


def test_memory_of_a_gpu(monkeypatch):
    """What torch holds and does not use is free; the driver is asked when that is too little."""
    stats = {"reserved_bytes": {"all": {"current": 300 << 20}}, "allocated_bytes": {"all": {"current": 100 << 20}}}
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda _: stats)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: pytest.fail("asked"))
    require(200 << 20, "a block", "cuda:1")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (50 << 20, 80 << 30))
    require(250 << 20, "a block", "cuda:1")
    message = "a block needs 263,192,576 bytes (0.2 GiB), but 262,144,000 bytes (0.2 GiB) are free on cuda:1"
    refused(MemoryError, message, lambda: require(251 << 20, "a block", "cuda:1"))


def test_what_only_saves_time_takes_a_quarter_of_what_is_free(monkeypatch):
    monkeypatch.setattr(_memory, "_free_on_host", lambda: 9 << 30)
    assert spare(2 << 30, X.device) and not spare((2 << 30) + 1, X.device)
    assert spare(1 << 30, X.device, 2) and not spare((1 << 30) + 1, X.device, 2)
    monkeypatch.setattr(_memory, "_free_on_host", lambda: pytest.fail("asked"))
    assert spare(_memory._ALWAYS_FREE, X.device)


def test_memory_of_this_machine():
    require(_memory._ALWAYS_FREE + 1, "a block")
    refused(MemoryError, "everything needs 1,152,921,504,606,846,976 bytes", lambda: require(1 << 60, "everything"))


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("0::/a/b\n", ("", "memory.max", "memory.current", "inactive_file")),
        ("4:memory:/a/b\n", ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
    ids=["v2", "v1"],
)
def test_the_tightest_group_counts(line, files, tmp_path, monkeypatch):
    root, limit, usage, cache = files
    for folder, bound in (("a", 1000), ("a/b", "max")):
        here = tmp_path / "sys" / root / folder
        here.mkdir(parents=True, exist_ok=True)
        (here / limit).write_text(f"{bound}\n")
        (here / usage).write_text("700\n")
        (here / "memory.stat").write_text(f"anon 1\n{cache} 200\n")
    (tmp_path / "cgroup").write_text("1:cpu:/elsewhere\n" + line)
    monkeypatch.setattr(_memory, "_OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(_memory, "_CGROUPS", tmp_path / "sys")
    assert list(_memory._free_in_cgroups()) == [1000 - 700 + 200]
    assert _memory._free_on_host() == 500


def test_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(_memory, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(_memory, "_OWN_CGROUPS", tmp_path / "none")
    assert _memory._free_on_host() > 0
    monkeypatch.delattr(_memory.os, "sysconf", raising=False)
    require(1 << 60, "nothing is known here, so nothing is refused")
