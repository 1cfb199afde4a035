"""The comparison of a Hessian with float64 autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hessext import _checks
from hessext._memory import require
from hessext._progress import as_call, steps
from hessext._random import generator

from ._layer_truth import truth_of
from ._report import CheckReport, PartError
from ._truth import Truth

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


@as_call
def check(
    H: Any, *, rtol: float | None = None, max_bytes: int = 1 << 28, samples: int = 16, seed: int = 0
) -> CheckReport:
    """Compares the blocks of every layer pair of H with float64 autograd.

    Where the dense truth fits in max_bytes, all blocks are compared. Otherwise `samples` rows of each layer are drawn,
    their truth is a Hessian-vector product with a unit vector, and in each row `samples` blocks of every column layer
    are compared, the diagonal one among them.

    Args:
        H: a hessext Hessian, of any term.
        rtol: allowed ||difference||_F / ||truth||_F of each layer pair; by default 1e-6 (float32) or 1e-12 (float64)
            times the largest |logit| where that exceeds 1, since a logit's rounding is a probability's relative error.
            Where the truth of a part is exactly zero, the difference is measured against the whole Hessian instead.
        max_bytes: bound on the dense truth, and on the blocks that are held at once when sampling.
        samples: rows of each layer and blocks of each row, when sampling.
        seed: of the sample.

    Returns:
        A report with one row per layer pair.

    Raises:
        TypeError: H is not a Hessian.
        ValueError: rtol < 0, max_bytes < 0 or samples < 1.
        MemoryError: not even one row of the truth fits.
    """
    if not hasattr(H, "term"):
        raise TypeError(f"H: expected a hessext.Hessian; got {type(H).__name__}")
    with H._data.ranks.operation("check"):
        return _check(H, rtol, max_bytes, samples, seed)


def _check(H: Any, rtol: float | None, max_bytes: int, samples: int, seed: int) -> CheckReport:
    if hasattr(H, "each"):  # several layers without the parts between them
        reports = [check(one, rtol=rtol, max_bytes=max_bytes, samples=samples, seed=seed) for one in H.each]
        parts = tuple(part for report in reports for part in report.parts)
        complete = all(report.complete for report in reports)
        loosest = max(reports, key=lambda report: report.tolerance)
        return CheckReport(parts, H.dtype, loosest.tolerance, complete, loosest.largest_logit)
    rtol = None if rtol is None else _checks.real("rtol", rtol, 0)
    max_bytes, samples = _checks.count("max_bytes", max_bytes, 0), _checks.count("samples", samples)
    random = generator("check", seed)
    truth = truth_of(H, None, None, None, torch.float64)
    dtype = H.dtype
    factor = 1.0
    if rtol is None:
        largest = truth.logits(truth.parameters).abs().max().item()
        factor = max(1.0, *truth.ranks.notes("largest logit", largest))
        rtol = TOLERANCE[dtype] * factor
    complete = truth.size * truth.size * 8 <= max_bytes
    compare = _compare_all if complete else _compare_sample
    found = compare(H, truth, max_bytes, samples, random)
    whole = torch.tensor([norm for *_, norm in found], dtype=torch.float64, device="cpu").norm().item()
    parts = []
    for layers, blocks, worst, difference, norm in found:
        scale = norm or whole
        parts.append(PartError(layers, blocks, worst, difference / scale if difference else 0.0))
    return CheckReport(tuple(parts), dtype, rtol, complete, factor)


def _compare_all(H: Any, truth: Truth, *_: Any) -> list[tuple]:
    """(layers, blocks, largest error, norm of the difference, norm of the truth) of every layer pair."""
    P = truth.size
    dense = torch.empty(P, P, dtype=truth.dtype, device=truth.device)
    truth.rows(torch.arange(P, device=truth.device), None, dense)
    layers = {name: truth.layer(name).to(truth.device) for name in H.layers}
    found = []
    for r, rows in layers.items():
        for c, cols in layers.items():
            expected = dense[rows.flatten()[:, None], cols.flatten()]
            found.append(_errors((r, c), len(rows) * len(cols), H[r, c].dense(), expected))
    return found


def _compare_sample(H: Any, truth: Truth, max_bytes: int, samples: int, generator: torch.Generator) -> list[tuple]:
    """The same from sampled rows of every layer and sampled blocks in each of them."""
    require(4 * truth.work * truth.dtype.itemsize, "one row of the Hessian by autograd", truth.device)
    layers = {name: truth.layer(name) for name in H.layers}
    found = []
    for r, rows in steps(layers.items()):
        count = max(1, min(samples, max_bytes // (truth.size * truth.dtype.itemsize)))
        chosen = torch.randint(rows.numel(), (count,), generator=generator, device="cpu")
        lines = torch.empty(count, truth.size, dtype=truth.dtype, device=truth.device)
        truth.rows(rows.flatten()[chosen].to(truth.device), None, lines)
        for c, cols in layers.items():
            B, (a, b) = H[r, c], (rows.shape[1], cols.shape[1])
            per_row = max(1, min(samples, max_bytes // (a * b * 8)))
            outs, expected = [], []
            for line, k in zip(lines, chosen.tolist(), strict=True):
                j = torch.randint(len(cols), (per_row,), generator=generator, device="cpu")
                j[0] = k // a if r == c else j[0]
                j = j.unique()
                pairs = torch.stack([torch.full_like(j, k // a), j], 1)
                outs.append(B.blocks(pairs)[:, k % a])
                expected.append(line[cols[j].to(line.device)])
            blocks = sum(len(e) for e in expected)
            found.append(_errors((r, c), blocks, torch.cat(outs), torch.cat(expected)))
    return found


def _errors(layers: tuple[str, str], blocks: int, out: Tensor, expected: Tensor) -> tuple:
    difference = out.to(expected.dtype) - expected
    return layers, blocks, difference.abs().max().item(), difference.norm().item(), expected.norm().item()
