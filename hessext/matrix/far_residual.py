"""What the residual term adds to a dense matrix between layers that are no neighbours.

Between layers l < k - 1, beside Q_n[i, j] phi_n[a] psi_n[b] of a_{k-1} = psi, entry (i, a; j, b) has

    sum_n tau_n[i, b] phi_n[a] g_n[j],    tau_n[i, b] = d psi_n[b] / d z_l[i],    g_n[j] = d loss / d z_k[j]

These are the blocks (i, b) of a curvature tau between the features phi and g, and the core assembles them as such.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hessext import _ops
from hessext._ops import Curvature, Kind
from hessext._progress import steps
from hessext.data.curvature import tangents

from .part import Part

_PIECE = 16 << 20  # bytes of tangents, or of entries formed, at once


def add_far_residual(part: Part, out: Tensor, ld: int, axes: list[int], direct: bool, mirror: bool) -> None:
    """Add it to the places of the part in `out`, and to the mirror images: as `_ops.dense_` takes them."""
    row, col = part.upright.row, part.upright.col
    phi, g = part.features(row), part.samples.gradient(col.layer)
    widest = max(len(layer.weight) for layer in part.samples.network.layers[row.layer + 1 : col.layer])
    most = max(1, _PIECE // g.element_size())
    # Some units and all b at once, or some b of one unit.
    few = max(1, most // max(len(g), row.size * col.blocks))
    step, some = max(1, min(most // (len(g) * widest), few // col.cols)), min(few, col.cols)
    for i in steps(range(0, row.blocks, step)):
        units = torch.arange(i, min(row.blocks, i + step), device=g.device)
        tau = tangents(part.samples, row.layer, units, col.layer - 1).mT
        for b in steps(range(0, col.cols, some)):
            entries = tau[:, b : b + some]
            pairs = torch.cartesian_prod(units, torch.arange(b, b + entries.shape[1], device=g.device))
            curvature = Curvature(Kind.GIVEN, row.blocks, col.cols, False, entries=entries.flatten(0, 1).contiguous())
            blocks = _ops.blocks(pairs, False, phi, row.bias, g, False, False, *curvature)
            added = blocks.view(*entries.shape[:2], row.size, col.blocks).permute(0, 2, 3, 1)
            for upright in [True] * direct + [False] * mirror:
                for features, place in _places(out, ld, axes, (row.blocks, row.size, col.blocks, col.cols), upright):
                    place[i : i + step, :, :, b : b + some] += added[:, features]


def _places(
    out: Tensor, ld: int, axes: list[int], shape: tuple[int, ...], upright: bool
) -> Iterator[tuple[slice, Tensor]]:
    """Views of `out` or of its transpose, entries (i, a; j, b): those of the weights a, and of the bias."""
    start, step, start_bias, step_bias, cols, start_right, step_right = axes[:7]
    rows, size, *right = shape
    down, across = (ld, 1) if upright else (1, ld)
    for features, origin, distance in (
        (slice(0, cols), start, step),
        (slice(cols, size), start_bias, step_bias),
    ):
        count = len(range(*features.indices(size)))
        strides = (distance * down, down, step_right * across, across)
        offset = out.storage_offset() + origin * down + start_right * across
        yield features, out.as_strided((rows, count, *right), strides, offset)
