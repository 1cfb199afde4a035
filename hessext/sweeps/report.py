"""The result of a sweep: means with their errors beside the theory, decay exponents, and both as text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from hessext.matrix.results import BlockRatio

from .draws import CASES, Point, Row
from .statistics import moments, slope, standard_error

QUANTITIES = BlockRatio._fields
# Exponents of C with which the quantities decay or grow as C -> inf, for squared norms; None where a quantity is 0.
PAPER_RATES = {
    (1, "output"): (0, None, None),
    (2, "output"): (-2, -4, -2),
    (3, "hidden"): (2, 1, -1),
    (3, "output"): (0, None, None),
    (4, "hidden"): (0, -1, -1),
    (4, "output"): (-2, -4, -2),
}
_ROUNDING = {"float32": 1e-6, "float64": 1e-12}  # bound on the relative rounding error of a measured norm
_FITTED = 10  # exponents are fitted to the points within this factor of the largest, as rates are those of the limit


class PointEstimate(NamedTuple):
    """Mean over draws of one quantity of one layer at one point, its standard error, and the theory.

    z = (mean - theory) / error, where the error is that of the difference and includes float rounding. If the draws
    vary by no more than rounding, z is 0 for a mean that is off by no more than rounding, and nan for any other. The
    ratio is the ratio of the means, and its error is to first order. In case 4 the theory is the mean over draws of the
    expectation at their weights, theory_error is its error, and z is of the paired differences; in the other cases
    theory_error is 0.
    """

    layer: str
    quantity: str
    point: Point
    draws: int
    mean: float
    error: float
    theory: float
    theory_error: float
    z: float


class Exponent(NamedTuple):
    """Slope of log mean against log size over the last points, with weights 1/error^2, and its standard error.

    theory: the slope of the theory at the same points and weights. paper: the exponent as C -> inf; None if another
    size is swept.
    """

    layer: str
    quantity: str
    points: int
    value: float
    error: float
    theory: float
    paper: int | None


@dataclass(frozen=True)
class Sweep:
    """Result of hessext.sweep: `rows` has the draws, `estimates` and `exponents` the statistics, `table()` the text."""

    case: int
    swept: str
    points: tuple[Point, ...]
    draws: int
    seed: int
    dtype: str
    rows: tuple[Row, ...]

    @cached_property
    def estimates(self) -> tuple[PointEstimate, ...]:
        """One for each layer, quantity and point, in this order."""
        found = [[self._estimate(layer, point) for point in self.points] for layer in CASES[self.case].layers]
        return tuple(at_point[q] for layer in found for q in range(len(QUANTITIES)) for at_point in layer)

    @cached_property
    def exponents(self) -> tuple[Exponent, ...]:
        """One for each layer and quantity, except for quantities that are 0 or have a single point."""
        return tuple(e for layer, quantity, part in self.parts() if (e := self._exponent(layer, quantity, part)))

    @property
    def worst(self) -> PointEstimate:
        """The estimate farthest from theory in standard errors; nan counts as the farthest."""
        return max(self.estimates, key=lambda e: (math.isnan(e.z), abs(e.z)))

    def parts(self) -> Iterator[tuple[str, str, list[PointEstimate]]]:
        """Yield each layer, each quantity, and its estimates, one per point."""
        for layer in CASES[self.case].layers:
            for quantity in QUANTITIES:
                yield layer, quantity, [e for e in self.estimates if (e.layer, e.quantity) == (layer, quantity)]

    def size(self, point: Point) -> float:
        """The swept size at a point."""
        return getattr(point, self.swept)

    # ------------------------------------------------------------------------------------------------ statistics

    @cached_property
    def _by_point(self) -> dict[tuple[str, Point], np.ndarray]:
        """Measured diagonal and off-diagonal, expected diagonal and off-diagonal, (draws, 4)."""
        found: dict[tuple[str, Point], list] = {}
        for row in self.rows:
            values = row.diagonal, row.off_diagonal, row.expected_diagonal, row.expected_off_diagonal
            found.setdefault((row.layer, row.task.point), []).append(values)
        return {key: np.array(values, dtype=float) for key, values in found.items()}

    def _estimate(self, layer: str, point: Point) -> list[PointEstimate]:
        draws = self._by_point[layer, point]
        values, deviations = moments(*draws[:, :2].T)
        if CASES[self.case].paired:
            theory, expected = moments(*draws[:, 2:].T)
        else:
            theory, expected = np.array(_theory(self.case, layer, point)), np.zeros_like(deviations)
        rounding = _ROUNDING[self.dtype] * np.abs(theory)
        difference = values - theory
        spread = standard_error(deviations - expected)
        z = np.where(np.abs(difference) <= rounding, 0.0, math.nan)
        np.divide(difference, np.hypot(spread, rounding), out=z, where=spread > rounding)
        columns = zip(QUANTITIES, values, standard_error(deviations), theory, standard_error(expected), z, strict=True)
        return [PointEstimate(layer, name, point, len(draws), *map(float, numbers)) for name, *numbers in columns]

    def _exponent(self, layer: str, quantity: str, part: list[PointEstimate]) -> Exponent | None:
        sizes = np.array([self.size(e.point) for e in part])
        mean, error, theory = (np.array([getattr(e, name) for e in part]) for name in ("mean", "error", "theory"))
        used = (sizes >= sizes[-1] / _FITTED) & (mean > 0) & (theory > 0)
        if used.sum() < 2:
            return None
        sizes, mean, error, theory = (v[used] for v in (sizes, mean, error, theory))
        relative = np.hypot(error / mean, _ROUNDING[self.dtype])
        value, value_error = slope(np.log(sizes), np.log(mean), relative)
        expected, _ = slope(np.log(sizes), np.log(theory), relative)
        paper = PAPER_RATES[self.case, layer][QUANTITIES.index(quantity)] if self.swept == "classes" else None
        return Exponent(layer, quantity, len(sizes), value, value_error, expected, paper)

    # ------------------------------------------------------------------------------------------------------ text

    @property
    def title(self) -> str:
        """The case, the sizes that are not swept, the draws and the seed."""
        first = self.points[0]
        fixed = {
            name: size
            for name, size in first._asdict().items()
            if name != self.swept and size and all(size == getattr(point, name) for point in self.points)
        }
        if self.swept in ("samples", "features") and not {"samples", "features"} & fixed.keys():
            fixed["gamma"] = f"{first.gamma:.4g}"
        sizes = ", ".join(f"{name} {size}" for name, size in fixed.items())
        return (
            f"Case {self.case}, {CASES[self.case].title}: {sizes}; {self.draws} draws, seed {self.seed}, {self.dtype}"
        )

    @property
    def chance(self) -> float:
        """Probability of a largest |z| above this one, if the theory is exact and the means that vary are independent.

        It is that of Student's t. Ratios are not counted, as they are functions of the means. It is nan if a z is nan.
        """
        from scipy.stats import t  # a second to load

        one = 2 * t.sf(abs(self.worst.z), self.draws - 1)
        means = sum(e.quantity != "ratio" and e.z != 0 for e in self.estimates)
        return 1.0 if one == 1 else float(-math.expm1(means * math.log1p(-one)))

    def __repr__(self) -> str:
        return f"<{self.title}; largest |z| {abs(self.worst.z):.1f}; see .table()>"

    def table(self) -> str:
        """All estimates, the exponents and the largest |z|, as text."""
        exponents = {(e.layer, e.quantity): e for e in self.exponents}
        paired = CASES[self.case].paired
        lines = [self.title]
        for layer, quantity, part in self.parts():
            name = f"{layer}: {describe(self.case, layer, quantity)}"
            if not any(e.mean or e.theory for e in part):
                lines += ["", f"{name}: 0 in every draw, as in theory"]
                continue
            heads = f"{self.swept:>10}  {'mean':>12} ± {'se':<8}  {'theory':>12}{' ± se      ' * paired}  {'z':>5}"
            lines += ["", name, heads]
            for e in part:
                theory = f"{e.theory:>12.6g}" + f" ± {e.theory_error:<8.1e}" * paired
                size = self.size(e.point)
                z = f"{e.z:>+5.1f}".replace("+nan", " nan")
                lines.append(f"{size:>10.6g}  {e.mean:>12.6g} ± {e.error:<8.1e}  {theory}  {z}")
            if fit := exponents.get((layer, quantity)):
                paper = "" if fit.paper is None else f", paper as C -> inf {fit.paper}"
                value, theory = (round(rate, 4) + 0.0 for rate in (fit.value, fit.theory))  # no -0
                slopes = f"exponent {value:.4f} ± {fit.error:.4f}, theory at these points {theory:.4f}{paper}"
                lines.append(f"{slopes} (the last {fit.points} points)")
        if paired:
            lines += [
                "",
                "theory: mean of the draws' expectations at their weights; z: of the differences, draw by draw",
            ]
        note = f"by chance alone a larger one in about {self.chance:.0%} of runs"
        if math.isnan(self.worst.z):
            note = "of a mean that is nan, or whose draws do not vary yet differ from theory"
        lines += ["", f"largest |z|: {abs(self.worst.z):.1f} ({note})"]
        return "\n".join(lines)

    def summary(self) -> dict[str, Any]:
        """Settings, estimates and exponents, ready for JSON: a number that is not finite becomes None."""
        settings = {name: getattr(self, name) for name in ("case", "swept", "draws", "seed", "dtype")}
        return settings | {
            "largest_abs_z": _finite(abs(self.worst.z)),
            "chance_of_larger": _finite(self.chance),
            "estimates": [e.point._asdict() | _plain(e) for e in self.estimates],
            "exponents": [_plain(e) for e in self.exponents],
        }


def _plain(record: NamedTuple) -> dict[str, Any]:
    return {name: _finite(value) for name, value in record._asdict().items() if name != "point"}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe(case: int, layer: str, quantity: str, tex: bool = False) -> str:
    """The quantity as a formula, in text or in TeX."""
    if quantity == "ratio":
        return "ratio of the two means"
    block = "ii" if quantity == "diagonal" else "ij"
    scale = "/d" if layer == "hidden" or not CASES[case].network else ""
    return rf"mean $\|H_{{{block}}}\|_F^2{scale}$" if tex else f"mean ||H_{block}||_F^2{scale}"


def _theory(case: int, layer: str, point: Point) -> BlockRatio:
    """Expectation over weights and data at finite N and d."""
    from hessext import theory  # scipy takes a second to load

    C, N, d, m = point
    if case == 1:
        return theory.linear_mse(None, N=N, d=d)
    if case == 2:
        return theory.linear_ce(None, C, N=N, d=d)
    return theory.hidden_mse(None, m, C, N=N, d=d) if layer == "hidden" else theory.output_mse(m, N=N, d=d)


def limit(case: int, layer: str, point: Point) -> BlockRatio:
    """The constants of the paper's C^rate, with the exponents of PAPER_RATES: first N, d -> inf at gamma, then C."""
    from hessext import theory

    gamma, m = point.gamma, point.hidden
    if case == 1:
        return theory.linear_mse(gamma)
    if case == 2:
        return theory.linear_ce_limit(gamma)
    if case == 3:
        return theory.hidden_mse_limit(gamma, m) if layer == "hidden" else theory.output_mse(m)
    return theory.hidden_ce_limit(gamma, m) if layer == "hidden" else theory.output_ce_limit(m)
