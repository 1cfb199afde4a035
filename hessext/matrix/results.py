"""What norms and approximations are returned as."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from hessext._text import aligned


class BlockRatio(NamedTuple):
    """Mean squared Frobenius norms of diagonal and off-diagonal blocks, and ratio = off_diagonal / diagonal."""

    diagonal: float
    off_diagonal: float
    ratio: float

    def __repr__(self) -> str:
        """Four digits of each."""
        return f"BlockRatio({', '.join(f'{name}={value:.4g}' for name, value in self._asdict().items())})"

    @classmethod
    def of(cls, diagonal: float, off_diagonal: float) -> BlockRatio:
        """Return the two and their ratio; 0 / 0 and inf / inf are nan, and x / 0 is inf."""
        diagonal, off_diagonal = float(diagonal), float(off_diagonal)
        empty = math.inf if off_diagonal else math.nan
        return cls(diagonal, off_diagonal, off_diagonal / diagonal if diagonal else empty)


class RowNorms(NamedTuple):
    """For each block row i: ||H_ii||_F, and the mean, largest and place of the largest ||H_ij||_F, j != i."""

    diagonal: Tensor
    mean: Tensor
    max: Tensor
    argmax: Tensor  # -1 where there is no other block

    @property
    def dominance(self) -> Tensor:
        """||H_ii||_F over the mean off-diagonal norm of row i, of norms and not of squares."""
        return self.diagonal / self.mean


class CurvatureParts(NamedTuple):
    """Q_n = scale (diag p - p p^T) of some samples, or diag scale without p, whose K x K entries are too many."""

    scale: Tensor  # (n,), or of binary cross-entropy (n, K)
    p: Tensor | None  # (n, K)
    top: Tensor | None  # most probable class (n,)
    rest: Tensor | None  # 1 - p[top] (n,), with all its digits


class PreconditionedSpectrum(NamedTuple):
    """Extreme eigenvalues of P^{-1/2} H P^{-1/2}, and how well their eigenvectors v are known.

    An eigenvalue lies within each residual, times the larger of |largest| and |smallest|, of the number found.
    """

    largest: float
    smallest: float  # with its sign: below 0 for an indefinite H
    condition: float  # largest / smallest; inf where smallest is not told from 0, nan where it is below 0 or H = 0
    residual_of_largest: float  # ||P^{-1/2} H P^{-1/2} v - largest v|| over the larger of |largest| and |smallest|
    residual_of_smallest: float
    damping: float  # of P = M + damping I

    @classmethod
    def of(
        cls, largest: float, smallest: float, errors: tuple[float, float], damping: float, rounding: float
    ) -> PreconditionedSpectrum:
        """Return them from residuals that are not relative, and the relative error that rounding may make."""
        size = max(abs(largest), abs(smallest))
        of_largest, of_smallest = (error / size if size else 0.0 for error in errors)
        known = max(of_smallest, rounding) * size
        condition = math.inf if abs(smallest) <= known else largest / smallest
        if smallest < -known or not size:
            condition = math.nan
        return cls(largest, smallest, condition, of_largest, of_smallest, damping)


class Approximation(NamedTuple):
    """How far an approximation M of H is from it, in Frobenius norm; nan with a note that says why it is not known."""

    name: str
    relative_error: float  # ||H - M|| / ||H||
    scaled_error: float  # the same of c M, with the best c: sqrt(1 - cosine^2)
    cosine: float  # <H, M> / (||H|| ||M||)
    numbers: int  # that M is made of
    population: float  # cosine^2 from sums over different samples alone, a rough estimate of its limit; nan: not known
    sampling_error: float  # standard error of cosine^2, for independent samples; nan: not known
    note: str = ""

    @property
    def captured(self) -> float:
        """cosine^2, the share of ||H||^2 that M captures with the best scalar."""
        return self.cosine**2


class Approximations(Sequence):
    """Rows of a table, which `print` shows; table["K-FAC"] is the row of a name, as is table["kfac"]."""

    def __init__(
        self,
        rows: list[Approximation],
        norm: float,
        term: str,
        layer: str,
        grid: tuple[int, int],
        block_shape: tuple[int, int],
        residual: bool,
    ) -> None:
        self.rows, self.norm, self.term, self.layer = tuple(rows), norm, term, layer
        self._size = f"{grid[0]} blocks of {block_shape[0]}"
        self._residual = residual  # H is not its Gauss-Newton term

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rows."""
        return tuple(row.name for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | slice | str) -> Approximation | tuple[Approximation, ...]:
        if not isinstance(key, str):
            return self.rows[key]
        found = [row for row in self.rows if row.name == key] or [row for row in self.rows if _same(row.name, key)]
        if not found:
            raise KeyError(f"expected one of {', '.join(map(repr, self.names))}; got {key!r}")
        return found[0]

    def __repr__(self) -> str:
        """The table, in text."""
        heads = ("approximation", "captured", "+-", "population", "error", "scaled error", "numbers")
        lines, notes = [heads], {}
        for row in self.rows:
            errors = row.relative_error, row.scaled_error
            least = row.scaled_error if row.note.startswith("below") else math.nan
            errors = [("< " if error == least else "") + _shown(error, ".2e") for error in errors]
            if row.note:
                notes.setdefault(row.note, []).append(row.name)
            shares = (row.captured, row.sampling_error, row.population)
            lines.append((row.name, *(_shown(share, ".4f") for share in shares), *errors, f"{row.numbers:,}"))
        title = f"{self.layer!r}, {self._size}, {self.term.replace('_', '-')}: ||H|| = {self.norm:.4g}"
        said = [f"  {', '.join(names)}: {note}" for note, names in notes.items()]
        if self._residual:
            said.append(
                "  The factors of K-FAC, E-KFAC, Shampoo and one-sided are of the Gauss-Newton term; H here has the"
            )
            said.append("  residual, too. H.gauss_newton() compares them with that term alone.")
        return "\n".join([title, *aligned(lines), *said])


def _same(name: str, key: str) -> bool:
    """Whether they differ in case, hyphens, commas and spaces alone."""
    one, other = ("".join(filter(str.isalnum, text)).lower() for text in (name, key))
    return one == other


def _shown(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
