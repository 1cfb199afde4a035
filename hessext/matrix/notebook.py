"""What a notebook shows: a table of parts, and the norms of their blocks as a small picture where that is cheap."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hessext.data.samples import Samples

from .part import Part

if TYPE_CHECKING:
    from .block_matrix import BlockMatrix

_ROWS = 20  # of the table
_WORK = 1 << 29  # multiply-adds of all norms: less than a second
_BLOCKS = 1 << 20  # of which a picture is made unasked
_PIXELS, _WIDTH = 128, 256  # along a side, at most; and on the screen, at least one for each
_DECADES = 4  # from black to white
_ASK = "Norms of all blocks: <code>.norms()</code>; a picture of them: <code>hessext.plot.block_norm_map</code>"


def page(text: str, blocks: Mapping[str, BlockMatrix], parts: Sequence[Part], norms: Callable[[], Tensor]) -> str:
    """The text, a row for each of the blocks by its name, and a picture of norms(), those of all parts, if cheap."""
    lines = [_row("th", "", "blocks", "of", "entries")]
    for name, B in list(blocks.items())[:_ROWS]:
        sizes = [f"{a:,} × {b:,}" for a, b in (B.grid, B.block_shape, B.shape)]
        lines.append(_row("td", name, *sizes))
    if len(blocks) > _ROWS:
        lines.append(_row("td", f"and {len(blocks) - _ROWS} more", "", "", ""))
    return f"<div><p>{escape(text)}</p><table>{''.join(lines)}</table>{_picture(parts, norms)}</div>"


def _row(cell: str, *texts: str) -> str:
    return "<tr>" + "".join(f"<{cell}>{escape(text)}</{cell}>" for text in texts) + "</tr>"


def _picture(parts: Sequence[Part], norms: Callable[[], Tensor]) -> str:
    """An image with its caption, or what to call for one."""
    if not (parts and _cheap(parts)):
        return f"<p>{_ASK}</p>"
    try:
        found = norms().double().cpu()
    except Exception as error:  # what is shown unasked must not fail
        return f"<p>No norms: {escape(str(error))}</p>"
    largest = found.max().item()
    if not 0 < largest < math.inf:
        return f"<p>Norms of blocks: the largest is {largest:g}.</p>"
    pooled = F.adaptive_max_pool2d(found[None], [min(size, _PIXELS) for size in found.shape])[0]
    grey = (pooled / largest).log10_().div_(-_DECADES).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    data = base64.b64encode(png(grey)).decode()
    style = f"width:{_WIDTH}px;image-rendering:pixelated;border:1px solid gray"
    caption = f"Norms of the blocks: black {largest:.1e}, white {largest * 10.0**-_DECADES:.1e} and less"
    return f'<p><img alt="{caption}" style="{style}" src="data:image/png;base64,{data}"><br>{caption}</p>'


def _cheap(parts: Sequence[Part]) -> bool:
    """Whether all norms take less than a second, by sizes alone: of samples in memory of this process."""
    samples = parts[0].data
    if not isinstance(samples, Samples):
        return False
    N, network = len(samples), samples.network
    pairs = [math.prod(part.grid) for part in parts]
    each = [min(math.prod(part.block_shape), 6 * N) + network.classes for part in parts]
    work = N * (network.numel + sum(p * cost for p, cost in zip(pairs, each, strict=True)))
    return work <= _WORK and sum(pairs) <= _BLOCKS


def png(grey: Tensor) -> bytes:
    """A picture (height, width) of uint8, black to white."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = grey.shape
    lines = b"".join(b"\0" + bytes(row) for row in grey.tolist())
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
