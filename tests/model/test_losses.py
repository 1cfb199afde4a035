"""Losses against torch's own: value, curvature and residual, and their digits where one class dominates."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hessext.model.loss_arguments import resolve
from hessext.model.losses import CrossEntropy, SquaredError

N, C = 11, 5
DTYPES = (torch.float32, torch.float64)
WEIGHT = torch.tensor([0.5, 0.0, 2.0, 0.125, 1.0])


def cross_entropies():
    """Every combination of torch's options with the kinds of targets that it takes."""
    options = itertools.product(("mean", "sum"), (None, WEIGHT), (0.0, 0.3, 1.0), (-100, 1, 255))
    for reduction, weight, smoothing, ignore in options:
        loss = nn.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=smoothing, ignore_index=ignore)
        for kind in ("labels", "probabilities", "any numbers") if ignore < 0 else ("labels",):
            yield pytest.param(loss, kind, id=f"{name(loss)}-{kind}")


def name(loss):
    weighted = "plain" if loss.weight is None else "weighted"
    return f"{loss.reduction}-{weighted}-smooth{loss.label_smoothing}-ignore{loss.ignore_index}"


def logits(dtype, scale=3.0, seed=0):
    return scale * torch.randn(N, C, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def targets(kind, loss, dtype):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, C, (N,), generator=generator)
    if kind == "labels":
        if hasattr(loss, "ignore_index"):
            labels[::4] = loss.ignore_index
        return labels
    y = torch.rand(N, C, dtype=dtype, generator=generator)
    if kind == "one hot":
        return nn.functional.one_hot(labels, C).to(dtype)
    return y / y.sum(1, keepdim=True) if kind == "probabilities" else 3 * y - 1


def truth(loss, f, y):
    """Value, (N, C) gradient and (N, C, C) diagonal blocks of torch's loss in float64; the other blocks are zero."""
    loss = copy.deepcopy(loss).double()
    y = y.double() if y.is_floating_point() else y
    if isinstance(loss, nn.MSELoss) and not y.is_floating_point():
        y = nn.functional.one_hot(y, C).double()
    f = f.double()
    hessian = torch.func.jacrev(torch.func.grad(loss))(f, y)
    blocks = hessian.diagonal(dim1=0, dim2=2).movedim(-1, 0)
    assert torch.count_nonzero(hessian) == torch.count_nonzero(blocks)
    return loss(f, y), torch.func.grad(loss)(f, y), blocks


def curvature(output):
    if output.probs is None:
        return output.scale[:, None, None] * torch.eye(C, dtype=output.scale.dtype)
    p, scale = output.probs, output.scale[:, None, None]
    return scale * (torch.diag_embed(p) - p[:, :, None] * p[:, None, :])


def assert_agrees(loss, module, f, y):
    value, gradient, blocks = truth(module, f, y)
    output = loss.output(f.clone, y, f)
    tolerance = {torch.float32: 2e-6, torch.float64: 5e-15}[f.dtype]

    def close(got, true):
        torch.testing.assert_close(got.double(), true, rtol=0, atol=tolerance * true.abs().max().item())

    close(loss.value(f, y), value)
    close(loss.value(f.double(), y), value)
    close(torch.func.grad(loss.value)(f.double(), y), gradient)
    close(output.residual(), gradient)
    close(curvature(output), blocks)
    assert all(t.dtype == f.dtype for t in (output.scale, output.residual()))
    assert output.scale.shape == (N,)
    assert output.residual().shape == (N, C)
    return output


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("module", "kind"), list(cross_entropies()))
def test_cross_entropy_is_torchs(module, kind, dtype):
    f = logits(dtype)
    module = copy.deepcopy(module).to(dtype)
    loss = resolve(module)
    output = assert_agrees(loss, module, f, targets(kind, module, dtype))
    assert output.probs is not None
    torch.testing.assert_close(output.probs.double(), f.double().softmax(1), rtol=8 * torch.finfo(dtype).eps, atol=0)
    assert torch.equal(output.top, f.argmax(1))
    torch.testing.assert_close(output.rest, 1 - output.probs.amax(1))
    if not loss.needs_targets and kind == "probabilities":
        torch.testing.assert_close(loss.output(f.clone, None, f).scale, output.scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["labels", "any numbers"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_squared_error_is_torchs(reduction, kind, dtype):
    module = nn.MSELoss(reduction=reduction)
    f, y = logits(dtype), targets(kind, module, dtype)
    output = assert_agrees(resolve(module), module, f, y)
    assert output.probs is None
    assert output.probs is output.top is output.rest is None
    assert torch.equal(resolve(module).output(f.clone, None, f).scale, output.scale)


def test_names():
    f = logits(torch.float64)
    labels, y = targets("labels", None, f.dtype), targets("any numbers", None, f.dtype)
    assert_agrees(resolve("cross_entropy"), nn.CrossEntropyLoss(), f, labels)
    torch.testing.assert_close(resolve("mse").value(f, y), (f - y).square().sum(1).mean())
    torch.testing.assert_close(resolve("mse").output(f.clone, y, f).residual(), 2 / N * (f - y))
    assert (resolve("mse").output(f.clone, None, f).scale == 2 / N).all()


@pytest.mark.parametrize(
    ("loss", "needed"),
    [
        ("cross_entropy", False),
        ("mse", False),
        (nn.CrossEntropyLoss(label_smoothing=0.5, reduction="sum"), False),
        (nn.CrossEntropyLoss(weight=WEIGHT), True),
        (nn.CrossEntropyLoss(ignore_index=0), True),
        (nn.MSELoss(), False),
    ],
)
def test_needs_targets(loss, needed):
    assert resolve(loss).needs_targets is needed


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_no_residual_without_targets(loss):
    f = logits(torch.float32)
    with pytest.raises(ValueError, match="y: the residual needs targets; got None"):
        resolve(loss).output(f.clone, None, f).residual()


def test_all_ignored_in_a_sum_weighs_nothing():
    f, y = logits(torch.float32), torch.full((N,), -100)
    output = resolve(nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1)).output(f.clone, y, f)
    assert not output.scale.any()
    assert not output.residual().any()


# --- digits -----------------------------------------------------------------------------------------------------


def peaked(gap, dtype):
    """Logits of a class that leads by `gap`, exact in float32, and the exact float64 probabilities of the others."""
    f = torch.full((N, C), -gap, dtype=dtype) - torch.arange(C) / 4
    top = torch.arange(N) % C
    f[torch.arange(N), top] = 0
    odds = f.double().exp()
    odds[torch.arange(N), top] = 0
    return f, top, odds / (1 + odds.sum(1, keepdim=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [1.0, 10.0, 29.0, 80.0])  # 1 - p_top = 0.7, 1e-4, 7e-13, 5e-35
@pytest.mark.parametrize("kind", ["labels", "one hot", "smooth", "weighted", "wrong labels"])
def test_digits_at_a_dominating_class(kind, gap, dtype):
    f, top, others = peaked(gap, dtype)
    eps = torch.finfo(dtype).eps
    y = (top + 1) % C if kind == "wrong labels" else top
    hit = nn.functional.one_hot(y, C).double()
    scale = torch.full((N, 1), 1 / N, dtype=torch.float64)
    spread = torch.zeros(1, C, dtype=torch.float64)
    loss = CrossEntropy()
    if kind == "weighted":
        weight = torch.linspace(1, 2, C, dtype=dtype)
        loss, scale = CrossEntropy(weight=weight), (weight[y] / weight[y].sum())[:, None].double()
    if kind == "smooth":  # so little that it matters no more than the other probabilities
        smoothing = float(torch.tensor(1e-12, dtype=dtype))
        loss, spread = CrossEntropy(label_smoothing=smoothing), spread + smoothing / C
    # p - t, where t is hit up to smoothing, and hit and the largest p cancel exactly
    p_top = 1 - others.sum(1, keepdim=True)
    at_top = torch.where(
        y[:, None] == top[:, None], -others.sum(1, keepdim=True) + (C - 1) * spread[0, 0], p_top - spread[0, 0]
    )
    expected = (others - hit * (1 - spread.sum()) - spread).scatter(1, top[:, None], at_top) * scale

    output = loss.output(f.clone, hit.to(dtype) if kind == "one hot" else y, f)
    torch.testing.assert_close(output.rest.double(), others.sum(1), rtol=8 * eps, atol=0)
    # spread and p may nearly agree: then their difference has the digits of the larger one
    terms = scale * (others + spread) + expected.abs()
    assert ((output.residual().double() - expected).abs() <= 16 * eps * terms).all()


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(label_smoothing=0.5)], ids=["plain", "smooth"])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_digits_at_many_even_classes(loss, kind):
    f = 0.01 * torch.randn(4, 100_000, generator=torch.Generator().manual_seed(0))
    y = f.argmin(1) if kind == "labels" else (-100 * f).softmax(1)
    r = loss.output(f.clone, y, f).residual()
    wide = f.double()
    exact = loss.output(wide.clone, y if kind == "labels" else y.double(), wide).residual()
    assert (r - exact).norm() <= 1e-6 * exact.norm()
    if kind == "labels":  # p_top is near 1e-5 and no target is there: all of its digits hold, too
        top = f.argmax(1, keepdim=True)
        assert ((r - exact).gather(1, top).abs() <= 1e-6 / 4 / 100_000).all()


# --- memory -----------------------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Counts tensors of `size` elements that do not share the memory of one seen before."""

    def __init__(self, size, *known):
        super().__init__()
        self.size, self.known, self.count = size, {t.data_ptr() for t in known}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else (result,):
            if isinstance(t, torch.Tensor) and t.numel() >= self.size and t.data_ptr() not in self.known:
                self.known.add(t.data_ptr())
                self.count += 1
        return result


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(label_smoothing=0.1), SquaredError()])
def test_probabilities_take_the_memory_of_the_logits(loss, kind):
    f = logits(torch.float32)
    y = targets(kind, None, f.dtype)
    with Allocations(N * C, f, y) as allocations:
        output = loss.output(lambda: f, y, f)
        assert allocations.count == 0
        residual = output.residual()
    assert allocations.count == (output.probs is not None)
    assert residual.shape == (N, C)


# --- bad input --------------------------------------------------------------------------------------------------


class Subclass(nn.CrossEntropyLoss):
    pass


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        ("hinge", ValueError, "loss: expected 'cross_entropy', .* or 'mse'; got 'hinge'"),
        (nn.CrossEntropyLoss(reduction="none"), ValueError, "loss: a Hessian needs a scalar, .*; got 'none'"),
        (nn.MSELoss(reduction="none"), ValueError, "loss: a Hessian needs a scalar, .*; got 'none'"),
        (nn.CrossEntropyLoss(label_smoothing=1.5), ValueError, "loss: .*label_smoothing between 0 and 1; got 1.5"),
        (nn.L1Loss(), TypeError, r"loss: expected .* nn.MSELoss \(not of a subclass\); got L1Loss"),
        (Subclass(), TypeError, r"loss: expected .* nn.MSELoss \(not of a subclass\); got Subclass"),
        (
            nn.functional.cross_entropy,
            TypeError,
            "loss: expected 'cross_entropy', .*; got cross_entropy. Try nn.CrossEntropyLoss",
        ),
        (None, TypeError, "loss: expected 'cross_entropy', .*; got None"),
    ],
)
def test_bad_loss(loss, error, message):
    with pytest.raises(error, match=message):
        resolve(loss)
