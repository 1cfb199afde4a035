"""Products of logits, of passes through a network and of H @ v: by torch, or by the core's tiles where they are faster.

Who multiplies is a table by processor, of which scripts/calibrate measures a row: nothing is timed at run time, and the
same machine gives the same bits. The tiles' errors are below those of torch.mm. oneDNN, which torch reaches through a
convolution, is left out: its errors in float32 are up to twice those of torch.mm.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _core

_CPUINFO = Path("/proc/cpuinfo")

# By vendor and family: from how many multiply-adds on the tiles are faster than torch.mm.
_TILES: dict[tuple[str, int], dict[torch.dtype, int]] = {
    # Zen 5, not from scripts/calibrate but from rates of each alone: torch.mm 187 GF/s in float32 and 105 in float64,
    # tiles at least 370, and half of that.
    ("AuthenticAMD", 26): {torch.float32: 1 << 24, torch.float64: 1 << 24},
    # A Xeon with AMX, the only one of this family that was tried: tiles take 1.1 to 1.2 times as long as torch.mm.
    ("GenuineIntel", 6): {},
}
_THIN = 64  # rows, columns or depth below which a tile is half empty


@functools.cache
def processor() -> tuple[str, int] | None:
    """Vendor and family of this CPU; None where the system does not say."""
    try:
        text = _CPUINFO.read_text()
    except OSError:
        return None
    vendor, family = (re.search(rf"^{key}\s*: (.+)$", text, re.M) for key in ("vendor_id", "cpu family"))
    return (vendor[1], int(family[1])) if vendor and family else None


def by_tiles(left: Tensor, right: Tensor) -> bool:
    """Whether the core's tiles multiply left (M, K) by right (K, N) here; never what has more axes.

    Nor what does not fit, as the core takes pointers: torch says so.
    """
    least = _TILES.get(processor(), {}).get(left.dtype)
    if least is None or left.ndim != 2 or not left.is_cpu or torch.compiler.is_compiling():
        return False
    if right.dtype != left.dtype or right.device != left.device or right.shape[:-1] != left.shape[1:]:
        return False
    (rows, depth), cols = left.shape, right.shape[1]
    return rows * depth * cols >= least and min(rows, depth, cols) >= _THIN


def multiply(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right (M, N) of matrices (M, K) and (K, N) of one dtype, into `out` if given. Raises as torch.mm."""
    if not by_tiles(left, right) or (out is not None and out.stride(1) != 1):
        return torch.mm(left, right) if out is None else torch.mm(left, right, out=out)
    if out is None:
        out = left.new_empty(left.shape[0], right.shape[1])
    factors = [_factor(left), _factor(right.T)]
    wide = left.dtype == torch.float64
    _core.product(wide, *factors, left.shape[1], out, out.stride(0), _core.Threads(torch.get_num_threads()))
    return out


def _factor(t: Tensor) -> dict:
    """t (items, K) as the core takes it."""
    if 1 not in t.stride():
        t = t.contiguous()
    return {"data": t, "items": t.shape[0], "item_step": t.stride(0), "depth_step": t.stride(1)}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias (N, K) of samples x (N, d)."""
    if not by_tiles(x, weight.T):
        return F.linear(x, weight, bias)
    result = multiply(x, weight.T)
    return result if bias is None else result.add_(bias)
