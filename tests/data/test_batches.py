"""Data as an iterable of batches: its forms, its bounded memory, and errors that say where."""

from __future__ import annotations

import pickle
import re
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hessext
from hessext.data import batches as data_batches

D, C = 6, 4


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, C)).double()


def data(N=23):
    g = torch.Generator().manual_seed(1)
    return torch.randn(N, 2, D // 2, generator=g, dtype=torch.float64), torch.randint(C, (N,), generator=g)


@pytest.mark.parametrize("shuffle", [False, True])
def test_data_loader_of_a_module(shuffle):
    x, y = data()
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=shuffle)
    H, expected = hessext.hessian(model(), loader), hessext.hessian(model(), x, y)
    assert H.layers == expected.layers
    for _ in range(2):  # it is read anew each time
        assert torch.allclose(H.dense(), expected.dense(), rtol=1e-12, atol=1e-14)
    assert torch.allclose(pickle.loads(pickle.dumps(H)).dense(), expected.dense(), rtol=1e-12, atol=1e-14)


def test_sequences_of_several_lengths():
    g = torch.Generator().manual_seed(2)
    W = torch.randn(C, D, generator=g, dtype=torch.float64)
    batches = []
    for B, T in ((2, 5), (1, 1), (3, 4)):
        y = torch.randint(C, (B, T), generator=g)
        y[:, -1] = -100
        batches.append((torch.randn(B, T, D, generator=g, dtype=torch.float64), y))
    x, y = (torch.cat([b[k].flatten(0, 1) for b in batches]) for k in range(2))
    out, expected = hessext.linear(W, batches).dense(), hessext.linear(W, x, y).dense()
    assert torch.allclose(out, expected, rtol=1e-12, atol=1e-15)


def test_a_batch_without_labels_that_count():
    """(1, 1) above has none: its mean is 0 / 0, that of all batches is not."""
    x, y = torch.eye(4, dtype=torch.float64), torch.tensor([0, 1, -100, -100])
    W = torch.ones(2, 4, dtype=torch.float64)
    out = hessext.linear(W, [(x[2:], y[2:]), (x[:2], y[:2])], loss=nn.CrossEntropyLoss()).dense()
    assert torch.equal(out, hessext.linear(W, x, y, loss=nn.CrossEntropyLoss()).dense())
    none = hessext.linear(W, [(x[2:], y[2:])] * 2, loss=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"^y: expected labels whose weights do not sum to 0"):
        none.dense()


def test_without_targets():
    x = torch.randn(9, D, dtype=torch.float64)
    W = torch.randn(C, D, dtype=torch.float64)
    out = hessext.linear(W, [(x[:4], None), (x[4:], None)]).dense()
    assert torch.allclose(out, hessext.linear(W, x).dense(), rtol=1e-12, atol=1e-15)


def test_batches_take_the_parameters_dtype():
    x, y = data()
    batches = [(x[:7].half(), y[:7]), (x[7:].half(), y[7:])]
    out = hessext.hessian(model(), batches)
    assert torch.allclose(out.dense(), hessext.hessian(model(), x.half().double(), y).dense(), rtol=1e-12, atol=1e-14)
    wide = hessext.hessian(model().float(), batches).to(torch.float64)
    assert wide.dtype == torch.float64
    expected = hessext.hessian(model().float().double(), x.half().double(), y).dense()
    assert torch.allclose(wide.dense(), expected, rtol=1e-12, atol=1e-14)


def test_many_pieces_are_added_in_float64(monkeypatch):
    x = 1 + torch.rand(3000, 3, generator=torch.Generator().manual_seed(3))
    W = torch.randn(C, 3, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(data_batches, "_PIECE", 1)
    H = hessext.linear(W, list(zip(x.split(1), [None] * 3000, strict=True)))
    exact = hessext.linear(W.double(), x.double())
    for out, wanted in ((H.dense(), exact.dense()), (H @ torch.ones(12), exact @ torch.ones(12).double())):
        assert out.dtype == torch.float32
        assert (out - wanted).norm() <= 1e-7 * exact.dense().norm()


def test_binary_weight_with_axes():
    g = torch.Generator().manual_seed(5)
    x, y = torch.randn(6, 2, 3, generator=g), torch.randint(2, (6, 2), generator=g)
    loss = nn.BCEWithLogitsLoss(torch.full((1, 1), 2.0), pos_weight=torch.full((1,), 3.0))
    W = torch.randn(1, 3, generator=g)
    H, expected = hessext.linear(W, [(x[:2], y[:2]), (x[2:], y[2:])], loss=loss), hessext.linear(W, x, y, loss=loss)
    assert torch.allclose(H.dense(), expected.dense(), rtol=1e-6)
    assert torch.allclose(H.norms(), expected.norms(), rtol=1e-6)


def test_one_result_and_that_of_a_piece_are_alive(monkeypatch):
    """The memory that is asked for before: two results, whether compute writes to what it is given or not."""
    x, y = data(40)
    monkeypatch.setattr(data_batches, "_PIECE", 1)
    monkeypatch.setattr(data_batches, "SMALL", 0)
    H = hessext.hessian(model(), list(zip(x.split(9), y.split(9), strict=True)))
    alive, most = [], 0

    def compute(problem, out):
        nonlocal most
        alive[:] = [r for r in alive if r() is not None]
        result = torch.zeros(5) if out is None else out
        alive.append(weakref.ref(result))
        most = max(most, len({id(r()) for r in alive}))
        return result

    H._data.sum(compute)
    H._data.sum(compute, torch.zeros(5))
    assert most == 2


def test_result_given():
    x, y = data()
    H = hessext.hessian(model(), list(zip(x.split(4), y.split(4), strict=True)))
    for A in (H, H["3"]):
        out = torch.full(A.shape, torch.nan, dtype=torch.float64)
        assert A.dense(out) is out
        assert torch.equal(out, A.dense())


class Counted(list):
    """Batches that know how often they were read to the end, or begun to be."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def test_one_pass_for_a_result_and_none_for_a_copy():
    x, y = data()
    batches = Counted(zip(x.split(4), y.split(4), strict=True))
    H = hessext.hessian(model(), batches)
    v = torch.ones(H.shape[0], dtype=torch.float64)
    begun = batches.passes
    for ask in (H.dense, H.diagonal, H.trace, lambda: H @ v, H["3"].diagonal_blocks, H.norms):
        ask()
        begun += 1
        assert batches.passes == begun
    H["1"].ratio()  # of the samples that are kept
    wide = H.to(torch.float32).to(torch.float64)
    assert batches.passes == begun
    assert torch.allclose(wide.norms(), H.norms(), rtol=1e-5)
    assert batches.passes == begun + 1  # those of another dtype are not


def test_a_pickle_of_a_part_has_no_samples_that_norms_have_kept():
    x, y = data(64)
    batches = list(zip(x.flatten(1).split(8), y.split(8), strict=True))
    B = hessext.linear(torch.ones(C, D, dtype=torch.float64), batches)["output"]
    before = len(pickle.dumps(B))
    B.norms()
    assert len(pickle.dumps(B)) == before


def test_pieces_are_of_bounded_size(monkeypatch):
    x, y = data(64)
    seen = []

    H = hessext.hessian(model(), [(x[:40], y[:40]), *zip(x[40:].split(1), y[40:].split(1), strict=True)])
    monkeypatch.setattr(data_batches, "_PIECE", 10 * H._data._bytes(1))
    H._data.sum(lambda samples, _: seen.append(len(samples)) or samples.x.new_zeros(1))
    assert sum(seen) == 64
    assert max(seen) <= 10
    assert len(seen) <= 8  # small ones are put together


# ------------------------------------------------------------------------------------------------------------ refused


def test_memory_for_norms():
    x, y = data(40)
    batches = list(zip(x.split(7), y.split(7), strict=True))
    H = hessext.hessian(model(), batches, memory=1000)
    H["1"].diagonal_blocks()
    needed = H._data._bytes(40)
    for ask in (H.norms, H["1"].ratio, H["1", "3"].norms, H["3"].row_norms, lambda: hessext.autograd.check(H)):
        with pytest.raises(MemoryError, match=rf"^norms.*: {needed} bytes .* for 40 .* memory=1000 "):
            ask()
    exact = hessext.hessian(model(), batches, memory=needed)
    assert torch.equal(exact.norms(), hessext.hessian(model(), x, y).norms())


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "x: expected at least one batch; got none"),
        (
            ((x, y) for x, y in [data()]),
            TypeError,
            r"x: expected batches that can be read again, .* got generator, which ends after one pass \(list",
        ),
        ([data()[0]], TypeError, r"x: expected a tensor, or a list or loader of batches \(x, y\); batch 0 is a tensor"),
        ([(1, 2, 3)], TypeError, r"x: .* batch 0 is tuple of 3"),
        ([{"x": 1}], TypeError, r"x: .* batch 0 is dict of 1 \(hessext.layer and"),
        ([(3, 4)], TypeError, "batch 0: x: expected a torch.Tensor; got int"),
        ([(data()[0][:, :1], data()[1])], ValueError, r"batch 0: x: expected shape \(any, 6\); got \(23, 3\)"),
        ([(data()[0], data()[1] + 9)], ValueError, r"batch 0: y: expected labels in \[0, 4\)"),
        ([(data()[0].long(), data()[1])], TypeError, "batch 0: x: expected torch.float64; got torch.int64"),
        ({"x": data()[0]}, TypeError, "x: expected a torch.Tensor; got dict"),
        ("batches", TypeError, "x: expected a torch.Tensor; got str"),
        (TensorDataset(*data()), TypeError, r"x: expected a torch.Tensor; got TensorDataset \(a DataLoader"),
    ],
)
def test_bad_batches(batches, error, message):
    with pytest.raises(error, match=f"^{message}"):
        hessext.hessian(model(), batches)


def test_errors_of_later_batches_say_which():
    x, y = data()
    H = hessext.hessian(model(), [(x, y), (x, y), (x / 0, y)])
    with pytest.raises(ValueError, match=r"^batch 2: x: expected finite values; got \d+ that"):
        H.dense()
    H = hessext.hessian(model(), [(x, y), (x, torch.eye(C, dtype=torch.float64)[y])])
    with pytest.raises(ValueError, match=r"^batch 1: y: expected torch.int64 of 1 axes, as .* got torch.float64 of 2"):
        H.dense()


def test_targets_beside_batches():
    x, y = data()
    with pytest.raises(TypeError, match=r"^x: expected a torch.Tensor; got list \(of batches"):
        hessext.hessian(model(), [(x, y)], y)
    for loss in ("mse", nn.CrossEntropyLoss()):
        with pytest.raises(
            TypeError, match=r"^y: expected None beside batches \(x, y\); got .*: a loss is passed as loss="
        ):
            hessext.hessian(model(), [(x, y)], loss)


def test_weights_of_single_samples():
    x, y = torch.ones(4, 2), torch.ones(4, 1)
    loss = nn.BCEWithLogitsLoss(torch.ones(4, 1))
    with pytest.raises(
        ValueError, match=re.escape("loss.weight: expected one number, for samples in batches; got shape (4, 1)")
    ):
        hessext.linear(torch.ones(1, 2), [(x, y)], loss=loss)


@pytest.mark.parametrize("memory", [0, -1, 1.5, True, None])
def test_bad_memory(memory):
    x, y = data()
    with pytest.raises((TypeError, ValueError), match=r"^memory: expected"):
        hessext.hessian(model(), [(x, y)], memory=memory)


def test_large_weights_are_watched(monkeypatch):
    monkeypatch.setattr(hessext._parameters, "_COPIED", 0)
    W = torch.ones(C, D, dtype=torch.float64)
    x = torch.ones(3, D, dtype=torch.float64)
    H = hessext.linear(W, [(x, None)])
    H.dense()
    W += 1
    for ask in (H.dense, H.norms, lambda: H.to(torch.float32), lambda: pickle.dumps(H)):
        with pytest.raises(RuntimeError, match=r"^output_weight was changed in place"):
            ask()
