"""Plain-torch closed form of every Hessian block of the paper, in any dtype; test_truth.py proves it by autograd.

With phi = [x, 1] and psi = [a, 1] (the 1 only where that layer has a bias), a = act(z), D = diag act'(z), per sample
B = d2l/df2 and r = dl/df, and sums over samples (means and factors live in B and r):

    hidden  (8), (14):   H[i, j] = sum (D V^T B V D)[i, j] phi phi^T  +  [i == j] sum (V^T r)_i act''(z_i) phi phi^T
    output  (3), (5), (9), (15):   H[i, j] = sum B[i, j] psi psi^T
    cross   (11), (18):  H[i, j] = sum (D V^T B)[i, j] phi psi^T  +  sum r_j D_i phi e_i^T

The sums with B are the Gauss-Newton part; those with r are the residual part.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.cases import ACTIVATIONS, Case, Inputs, make_inputs

TERMS = ("full", "gauss_newton", "residual")
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}  # relative Frobenius error against float64 truth
SLACK = 2e-7  # by how much float32 may exceed the plain float32 closed form, which is lucky at times: 2 roundings


def assert_accurate(out: Tensor, truth: Tensor, plain: Tensor | None = None) -> None:
    """Asserts ||out - truth|| <= TOLERANCE ||truth||, in float32 also <= ||plain - truth|| + SLACK ||truth||.

    Where the truth vanishes identically, so must out.
    """
    assert out.shape == truth.shape
    error, norm = (out.double() - truth).norm().item(), truth.norm().item()
    assert error <= TOLERANCE[out.dtype] * norm, f"error {error / norm if norm else error:.1e}"
    if out.dtype == torch.float32 and plain is not None:
        bar = (plain.double() - truth).norm().item()
        assert error <= bar + SLACK * norm, f"error {error / norm:.1e}, plain torch {bar / norm:.1e}"


def assert_softmax(classes: int, scale: float, dtype: torch.dtype, device: str = "cpu") -> None:
    """The core's softmax in place, each row's largest class, and 1 - p of it as the sum of the others."""
    from hessext import _ops

    logits = scale * torch.randn(5, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    logits[1] = 0  # all equal: the first one
    logits = logits.to(dtype)
    probs = logits.to(device, copy=True)
    top, rest = (t.cpu() for t in _ops.softmax_(probs))
    assert torch.equal(top, logits.argmax(1))
    gaps = logits.double() - logits.double().amax(1, keepdim=True)
    others = gaps.exp().scatter_(1, top[:, None], 0).sum(1)
    tolerance = {"rtol": 16 * torch.finfo(dtype).eps, "atol": 2 * torch.finfo(dtype).tiny}
    torch.testing.assert_close(rest.double(), others / (1 + others), **tolerance)
    # a difference of logits is rounded before its exponential is taken
    tolerance["rtol"] *= max(1, gaps.abs().max().clamp(max=100).item())
    torch.testing.assert_close(probs.cpu().double(), gaps.exp() / (1 + others)[:, None], **tolerance)


def assert_softmax_product(classes: int, dtype: torch.dtype, device: str = "cpu") -> None:
    """The core's c_n (diag p_n - p_n p_n^T) v_n, in place; in one sample one class dominates."""
    from hessext import _ops

    g = torch.Generator().manual_seed(classes)
    logits, v = (torch.randn(9, classes, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
    logits[3, 0] = 60
    probs, out, scale = (t.to(device, copy=True) for t in (logits, v, torch.linspace(-1, 2, 9, dtype=dtype)))
    top, _ = _ops.softmax_(probs)
    _ops.softmax_product_(out, probs, scale, top)
    p, centred = probs.cpu().double(), v.double() - v.double().gather(1, top.cpu()[:, None])
    assert_accurate(out.cpu(), scale.cpu().double()[:, None] * p * (centred - (p * centred).sum(1, keepdim=True)))


def assert_silent(inputs: Inputs) -> None:
    """Asserts that a hidden unit which is never active adds nothing, even where sums of its output weights overflow."""
    bias, V = inputs.hidden_bias.clone(), inputs.output_weight.clone()
    bias[0] = -1000
    hessians = []
    for weight in (0.0, torch.finfo(inputs.dtype).max):
        V[::2, 0], V[1::2, 0] = weight, -weight
        hessians.append(replace(inputs, hidden_bias=bias, output_weight=V.clone()).hessian())
    expected, H = hessians
    assert torch.equal(H.dense(), expected.dense())
    for col in H.layers:
        assert torch.equal(H["hidden", col].blocks([(0, 0)]), expected["hidden", col].blocks([(0, 0)]))


def activation(name: str, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of an activation of cases.ACTIVATIONS."""
    kind, zero = name.split()[0], torch.zeros_like(z)
    module = ACTIVATIONS[name]
    if kind == "identity":
        return z, zero + 1, zero
    if kind in ("relu", "leaky_relu"):
        slope = torch.where(z > 0, zero + 1, zero + getattr(module, "negative_slope", 0.0))
        return slope * z, slope, zero
    if kind == "tanh":
        t = torch.tanh(z)
        return t, 1 - t * t, -2 * t * (1 - t * t)
    if kind == "gelu":
        cdf, pdf = torch.erfc(-z / math.sqrt(2)) / 2, torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return z * cdf, cdf + z * pdf, pdf * (2 - z * z)
    if kind == "gelu_tanh":
        k = math.sqrt(2 / math.pi)
        t = torch.tanh(k * (z + 0.044715 * z**3))
        du, ddu, sech2 = k * (1 + 3 * 0.044715 * z * z), k * 6 * 0.044715 * z, 1 - t * t
        return (
            z * (1 + t) / 2,
            (1 + t) / 2 + z * sech2 * du / 2,
            sech2 * du + z * sech2 * (ddu - 2 * t * du * du) / 2,
        )
    beta = module.beta if kind == "softplus" else 1.0
    s, ds = torch.sigmoid(beta * z), torch.sigmoid(beta * z) * torch.sigmoid(-beta * z)
    dds = ds * (torch.sigmoid(-beta * z) - s)
    if kind == "sigmoid":
        return s, ds, dds
    if kind == "silu":
        return z * s, s + z * ds, 2 * ds + z * dds
    assert kind == "softplus"
    line = beta * z > module.threshold
    return F.softplus(z, beta, module.threshold), torch.where(line, zero + 1, s), torch.where(line, zero, beta * ds)


def output_curvature(loss: str | nn.Module, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """B (N, C, C) and r (N, C): second and first derivative of every sample's share of the loss in its logits.

    Nothing is formed as 1 - p: with c = sum_k t_k,  r_i = c p_i - t_i = sum_{k != i} (p_i t_k - t_i p_k).
    """
    N, C = logits.shape
    if loss == "binary_cross_entropy" or isinstance(loss, nn.BCEWithLogitsLoss):
        return binary_curvature(nn.BCEWithLogitsLoss() if isinstance(loss, str) else loss, logits, y)
    eye = torch.eye(C, dtype=logits.dtype)
    target = (eye[y.clamp(0, C - 1)] if y.dtype == torch.int64 else y).to(logits.dtype)
    if loss == "mse" or isinstance(loss, nn.MSELoss):
        count = N if loss == "mse" else N * C if loss.reduction == "mean" else 1
        return (2 / count * eye).expand(N, C, C), 2 / count * (logits - target)
    if isinstance(loss, str):
        loss = nn.CrossEntropyLoss()
    weight = torch.ones_like(eye[0]) if loss.weight is None else loss.weight
    smoothing, count = loss.label_smoothing, torch.tensor(float(N))
    t = ((1 - smoothing) * target + smoothing / C) * weight
    if y.dtype == torch.int64:
        kept = y != loss.ignore_index
        count = (weight[y.clamp(0, C - 1)] * kept).sum()
        t = ((1 - smoothing) * target * weight + smoothing / C * weight) * kept[:, None]
    if loss.reduction == "mean":
        t = t / count.to(t.dtype)
    p, off = torch.softmax(logits, 1), 1 - eye
    B = torch.diag_embed(p * (p @ off)) - off * p[:, :, None] * p[:, None, :]
    return t.sum(1)[:, None, None] * B, p * (t @ off) - t * (p @ off)


def binary_curvature(loss: nn.BCEWithLogitsLoss, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the sigmoids of logits, with the weights of torch's formula: of one logit, N or 1 of each."""
    y = y.to(logits.dtype).view(logits.shape)
    one = torch.ones_like(y)
    weights = (one if t is None else t for t in (loss.weight, loss.pos_weight))
    weight, pos_weight = (t.view(-1, 1) if logits.shape[1] == 1 else t for t in weights)
    weight = weight / (y.numel() if loss.reduction == "mean" else 1)
    p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
    hit, miss = pos_weight * y, 1 - y
    curvature = (one if loss.pos_weight is None else hit + miss) * weight * p * q
    return torch.diag_embed(curvature), weight * (miss * p - hit * q)


def with_one(features: Tensor, bias: Tensor | None) -> Tensor:
    """Appends the bias's constant feature."""
    return features if bias is None else F.pad(features, (0, 1), value=1.0)


def weighted_products(weights: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """sum_n weights[n, i, j] left[n, a] right[n, b] -> (I, J, A, B)."""
    N, rows, cols = weights.shape
    products = (left[:, :, None] * right[:, None, :]).reshape(N, -1)
    return (weights.reshape(N, -1).T @ products).reshape(rows, cols, left.shape[1], right.shape[1])


def blocks(inputs: Inputs, term: str = "full") -> dict[tuple[str, str], Tensor]:
    """All blocks of all layer pairs, (rows, cols, row block size, column block size), a bias being the last feature."""
    curvature, slope_out = term != "residual", term != "gauss_newton"
    x, V = inputs.x, inputs.output_weight
    if inputs.hidden_weight is None:
        B, _ = output_curvature(inputs.loss, F.linear(x, V, inputs.output_bias), inputs.y)
        phi = with_one(x, inputs.output_bias)
        return {("output", "output"): curvature * weighted_products(B, phi, phi)}
    z = F.linear(x, inputs.hidden_weight, inputs.hidden_bias)
    a, first, second = activation(inputs.case.activation, z)
    B, r = output_curvature(inputs.loss, F.linear(a, V, inputs.output_bias), inputs.y)
    phi, psi = with_one(x, inputs.hidden_bias), with_one(a, inputs.output_bias)
    M = V * first[:, None, :]  # (N, C, m): logits by pre-activations
    MB = M.mT @ B
    hidden = curvature * (MB @ M) + slope_out * torch.diag_embed((r @ V) * second)
    cross = curvature * weighted_products(MB, phi, psi)
    index = torch.arange(V.shape[1])
    cross[index, :, :, index] += slope_out * torch.einsum("nj,ni,na->ija", r, first, phi)
    return {
        ("hidden", "hidden"): weighted_products(hidden, phi, phi),
        ("hidden", "output"): cross,
        ("output", "hidden"): cross.permute(1, 0, 3, 2).contiguous(),
        ("output", "output"): curvature * weighted_products(B, psi, psi),
    }


@cache
def truth(case: Case, dtype: torch.dtype, term: str = "full") -> dict[tuple[str, str], Tensor]:
    """Float64 blocks of the values that the inputs have in dtype."""
    return blocks(make_inputs(case, dtype).lift(), term)


@cache
def plain(case: Case, dtype: torch.dtype, term: str = "full") -> dict[tuple[str, str], Tensor]:
    """The same closed form computed in dtype itself: the error that hessext must not exceed."""
    return blocks(make_inputs(case, dtype), term)


def select(parts: dict[tuple[str, str], Tensor], inputs: Inputs, row: str, col: str) -> Tensor:
    """Blocks of a layer ("hidden") or of one parameter ("hidden.weight", "hidden.bias") on either side."""
    (row, row_kind), (col, col_kind) = ((name + ".").split(".")[:2] for name in (row, col))
    part = parts[row, col]
    weights = {"hidden": inputs.x.shape[1], "output": inputs.output_weight.shape[1]}

    def features(layer, kind):
        return {"": slice(None), "weight": slice(weights[layer]), "bias": slice(weights[layer], None)}[kind]

    return part[:, :, features(row, row_kind), features(col, col_kind)]


def matrix(part: Tensor) -> Tensor:
    """(I, J, A, B) blocks as the (I*A, J*B) matrix."""
    rows, cols, a, b = part.shape
    return part.permute(0, 2, 1, 3).reshape(rows * a, cols * b)


def dense(parts: dict[tuple[str, str], Tensor], inputs: Inputs) -> Tensor:
    """The whole Hessian in torch's parameter order."""
    names = list(inputs.parameters())
    return torch.cat([torch.cat([matrix(select(parts, inputs, r, c)) for c in names], 1) for r in names])
