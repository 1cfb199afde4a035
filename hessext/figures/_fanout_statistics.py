"""Statistics of the figure `fanout`: correlations of logarithms, and the findings as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._frame import LOSSES

Rows = Sequence[Mapping[str, Any]]

EXPLANATIONS = {  # columns of the table, and their names in sentences
    "own": "own width K_l",
    "next": "next width K_{l+1}",
    "classes": "C",
    "layers": "depth L",
    "rank": "r(S_{l+1})",
    "pair_rank": "r(S_{l+1}) over pairs",
}
_WIDTHS, _RANKS = ("own", "next", "classes", "layers"), ("rank", "pair_rank")


class Correlation(NamedTuple):
    """Correlation of log(off/diag) with the log of a column, and its jackknife error over networks."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.error:.1g}"


class Comparison(NamedTuple):
    """Hidden layers of the random networks with one loss at one moment, and the correlations of their ratios."""

    loss: str
    step: int
    trained: bool
    rows: Rows
    found: dict[str, Correlation]

    @property
    def when(self) -> str:
        """The loss and the moment in words."""
        return f"{LOSSES[self.loss]}, {f'after {self.step} steps' if self.trained else 'at initialization'}"


def compared(rows: Rows, loss: str, step: int = 0, *, trained: bool = False) -> Comparison:
    """Compare the layers whose ratio is not 0, as dead layers and single units have none. Raises ValueError."""
    wanted = {"kind": "random", "loss": loss, "data": "clustered" if trained else "gaussian", "step": step}
    kept = [row for row in rows if wanted.items() <= row.items() and row["ratio"] > 0 and row["pair_rank"] > 0]
    if not kept:
        raise ValueError("hidden: expected layers of at least 2 units, not all of them dead; got none with a ratio")
    return Comparison(loss, step, trained, kept, {name: correlation(kept, name) for name in EXPLANATIONS})


def correlation(rows: Rows, name: str, given: str | None = None) -> Correlation:
    """Correlate log(off/diag) with the log of a column, with the log of the column `given` regressed out of both."""
    network = np.array([row["network"] for row in rows])
    table = np.log([[row[name], row["ratio"], row[given] if given else 1] for row in rows]).reshape(-1, 3)

    def of(part: np.ndarray) -> float:
        known = np.stack([np.ones(len(part)), part[:, 2]], 1)
        x, y = (part[:, :2] - known @ np.linalg.lstsq(known, part[:, :2])[0]).T
        size = np.sqrt((x @ x) * (y @ y))
        return float(x @ y / size) if size > 1e-9 * len(part) else np.nan

    without = np.array([of(table[network != number]) for number in np.unique(network)])
    return Correlation(of(table), float(np.sqrt((len(without) - 1) * without.var())))


def stated(comparison: Comparison) -> Iterator[str]:
    """Yield the correlations, the strongest first, and those of the sizes after a rank is regressed out."""
    rows, found = comparison.rows, comparison.found
    order = sorted(found, key=lambda name: -abs(np.nan_to_num(found[name].value)))
    text = ", ".join(f"{EXPLANATIONS[name]} {found[name]}" for name in order)
    yield f"{comparison.when}, {len(rows)} hidden layers: log(off/diag) correlates with the log of {text}."
    for rank in _RANKS:
        rest = ", ".join(f"{EXPLANATIONS[name]} {correlation(rows, name, rank)}" for name in _WIDTHS)
        yield f"{comparison.when}: with {EXPLANATIONS[rank]} regressed out of both, there remain {rest}."
    last = [row for row in rows if row["layer"] == row["layers"] - 1]
    others = [row for row in rows if row["layer"] < row["layers"] - 1]
    if last and others:
        yield (
            f"{comparison.when}: in the {len(last)} last hidden layers, whose next layer is the output, next width "
            f"K_{{l+1}} = C has {correlation(last, 'next')}; in the {len(others)} others it has "
            f"{correlation(others, 'next')}, C {correlation(others, 'classes')} and r(S_{{l+1}}) "
            f"{correlation(others, 'rank')}."
        )
    low, middle, high = np.quantile([row["ratio"] * (row["pair_rank"] + 2) for row in rows], [0.05, 0.5, 0.95])
    yield (
        f"{comparison.when}: off/diag times (r + 2), r over pairs, is {middle:.2f} in the middle and {low:.2f} to "
        f"{high:.2f} in nine layers of ten; in the theory of initialization 1/4 to 1/2."
    )


def beside_theory(rows: Rows) -> str:
    """How the ratios of all networks under MSE at initialization compare with theory.deep_mse, as text."""
    known = [row for row in rows if "theory" in row and row["own"] > 1]
    factor = np.array([row["ratio"] / row["theory"] for row in known])
    error = np.array([np.hypot(row["ratio_error"], row["theory_error"]) for row in known])
    z = np.array([row["ratio"] - row["theory"] for row in known]) / error
    return (
        f"MSE, at initialization, {len(known)} hidden layers of all networks: measured over theory.deep_mse is "
        f"{np.median(factor):.3f} in the middle, {np.quantile(factor, 0.05):.2f} to {np.quantile(factor, 0.95):.2f} in "
        f"nine of ten; {np.mean(np.abs(z) < 2):.0%} are within two standard errors. Few draws "
        "underestimate these errors in narrow, deep networks, where rare draws hold most of the norm."
    )


def verdict(comparisons: Sequence[Comparison]) -> str:
    """What the correlations say about the conjecture, as text."""
    texts = []
    for comparison in comparisons:
        strength = {name: abs(np.nan_to_num(found.value)) for name, found in comparison.found.items()}
        best, width = max(strength, key=strength.get), max(_WIDTHS, key=strength.get)
        text = f"{comparison.when}, {EXPLANATIONS[best]} goes with the ratio most closely ({comparison.found[best]})"
        texts.append(
            text if best in _WIDTHS else f"{text}, of the sizes {EXPLANATIONS[width]} ({comparison.found[width]})"
        )
    return (
        f"Beside the conjecture: {'; '.join(texts)}. Under MSE r(S_{{l+1}}) of the last hidden layer is C: there "
        "fan-out, as the next layer's width, and rank are the same."
    )
