"""What an example says: sentences and tables, printed as they come and kept as one Markdown file."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import hessext
from hessext import _files

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "real"
COLUMNS = ("blocks", "of size", "diagonal", "off-diagonal", "ratio", "dominance")
EXPLAINED = (
    "Diagonal and off-diagonal are means of squared Frobenius norms of blocks, and ratio is theirs. Dominance is the "
    "norm of a diagonal block over the mean norm of the others in its row, here the median over rows that are not 0."
)


def cells(B: hessext.BlockMatrix) -> list[object]:
    """What COLUMNS say of a layer."""
    return [B.grid[0], B.block_shape[0], *cells_of_norms(B.norms())]


def cells_of_norms(norms: torch.Tensor) -> list[float]:
    """Ratio and dominance of the norms of all blocks of a layer, which are then computed once for both."""
    own, others = norms.diagonal().to(torch.float64, copy=True), norms.to(torch.float64, copy=True).fill_diagonal_(0)
    count = max(1, len(norms) - 1)
    diagonal, off_diagonal = own.square().mean().item(), others.square().mean().item() * len(norms) / count
    dominance = own / (others.sum(1) / count)
    return [*hessext.BlockRatio.of(diagonal, off_diagonal), dominance.nanmedian().item()]


def peak() -> float:
    """GiB that the process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "linux" else 30))


class Report:
    """Prints, and writes all of it to a file in the end."""

    def __init__(self, title: str) -> None:
        self._start, self._text = time.perf_counter(), ""
        self.say(f"# {title}")

    def say(self, text: str) -> None:
        """A paragraph."""
        self._add(text + "\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; floats with three digits, None as a dash."""
        lines = [list(columns), *([_cell(value) for value in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
        self._add("".join(f"| {' | '.join(line)} |\n" for line in padded))

    def write(self, path: Path) -> None:
        """Say what it ran on and how long it took, and write the file."""
        seconds, threads = time.perf_counter() - self._start, torch.get_num_threads()
        self.say(
            f"{seconds:.0f} s in all on {threads} thread{'s' * (threads > 1)}, {peak():.1f} GiB at most; "
            f"hessext {hessext.__version__}, torch {torch.__version__}."
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        _files.replace(path, self._text.encode())
        print(f"written to {path}")

    def _add(self, text: str) -> None:
        print(text, flush=True)
        self._text += ("\n" if self._text else "") + text


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.2e}"
    return str(value)
