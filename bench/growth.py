"""How time grows with N, d, C and m: fitted exponents and a picture."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import IO

from .cases import GROWTH, VARIED
from .run import Report

FITTED = 3  # the exponent is fitted to this many of the largest sizes, as overhead dominates at smaller ones

Curve = list[tuple[int, dict]]  # sizes in ascending order, with their stats


def curves(report: Report) -> dict[tuple[str, str], Curve]:
    """Curves of at least two sizes, by letter and method."""
    rows = [row for row in report["benchmarks"] if row["extra_info"]["about"] == "growth"]
    found: dict[tuple[str, str], Curve] = {}
    for letter in VARIED:
        for row in rows:
            if row["extra_info"]["varied"] in ("", letter):
                found.setdefault((letter, row["name"]), []).append((row["params"][letter], row["stats"]))
    ordered = {key: sorted(curve, key=lambda point: point[0]) for key, curve in found.items()}
    return {key: curve for key, curve in ordered.items() if len(curve) > 1}


def exponent(curve: Curve) -> float:
    """Slope of log median against log size by least squares."""
    points = [(math.log(size), math.log(stats["median"])) for size, stats in curve[-FITTED:]]
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def _exponents(report: Report) -> Iterator[tuple[str, str]]:
    """Yield each method with its exponents as text."""
    found = curves(report)
    for name in dict.fromkeys(name for _, name in found):
        yield name, ", ".join(f"{k} {exponent(found[k, name]):.2f}" for k in VARIED if (k, name) in found)


def lines(report: Report) -> list[str]:
    """One line per method, for the terminal."""
    return [f"growth of {name}: time ~ size^exponent: {text}" for name, text in _exponents(report)]


def sentence(report: Report) -> str:
    """The exponents of all methods as one sentence."""
    found = [f"{name} {text}" for name, text in _exponents(report)]
    if not found:
        return ""
    start = f"Fitted exponents of time over the {FITTED} largest sizes, each size varied alone around {GROWTH}: "
    return start + "; ".join(found) + "."


def draw(report: Report, file: str | os.PathLike | IO[bytes]) -> bool:
    """Write the picture: time against each size, with quartiles. Returns False if no size was varied."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator

    found = curves(report)
    letters = [letter for letter in VARIED if any(k == letter for k, _ in found)]
    if not letters:
        return False
    names = list(dict.fromkeys(name for _, name in found))
    figure = Figure(figsize=(3.3 * len(letters), 3.8), layout="constrained")
    axes = figure.subplots(1, len(letters), sharey=True, squeeze=False)[0]
    lines = {}
    for ax, letter in zip(axes, letters, strict=True):
        for k, name in enumerate(names):
            if (letter, name) not in found:
                continue
            curve = found[letter, name]
            sizes, stats = zip(*curve, strict=True)
            median = [s["median"] for s in stats]
            spread = [[s["median"] - s["q1"] for s in stats], [s["q3"] - s["median"] for s in stats]]
            style = {"fmt": "o-", "color": f"C{k}", "markersize": 3.5, "capsize": 2}
            lines[name] = ax.errorbar(sizes, median, spread, label=f"{letter}^{exponent(curve):.2f}", **style)
        ax.set(xscale="log", yscale="log", xlabel=letter)
        ticks = sorted({size for (k, _), curve in found.items() if k == letter for size, _ in curve})
        ax.set_xticks(ticks, list(map(str, ticks)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(alpha=0.3)
        ax.legend(fontsize="x-small")
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=len(lines))
    axes[0].set_ylabel("seconds")
    figure.suptitle(f"Whole Hessian around {GROWTH}, {report['settings']['dtype']}", fontsize="medium")
    figure.savefig(file, dpi=130)
    return True
