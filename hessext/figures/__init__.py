"""The figures of the paper (arXiv 2505.02809) and of its conjecture, one call each: run(name). Needs matplotlib."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hessext import _files, plot

from . import (
    _approximations,
    _classes,
    _clustered,
    _collobert,
    _fanout,
    _forces,
    _initialization,
    _ratios,
    _snapshots,
    _spectra,
)
from ._frame import Drawing, Figure, Run
from ._parameters import completed

_MODULES = (
    _approximations,
    _classes,
    _clustered,
    _collobert,
    _fanout,
    _forces,
    _initialization,
    _ratios,
    _snapshots,
    _spectra,
)
_ALL = {figure.name: figure for module in _MODULES for figure in module.FIGURES}
NAMES = tuple(sorted(_ALL, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name)))
FIGURES = {name: _ALL[name] for name in NAMES}


def run(
    name: str | int,
    *,
    out: str | os.PathLike | None = None,
    quick: bool = False,
    progress: bool = True,
    **parameters: Any,
) -> Drawing:
    """Draw a figure and write its pictures, numbers and caption. Steps whose results are on disk are not repeated.

    Args:
        name: one of NAMES.
        out: folder, created if it is missing. None: out/figures, or out/figures-quick.
        quick: smaller sizes, which take from less than a minute to a few minutes.
        progress: report progress on stderr.
        parameters: in place of FIGURES[name].defaults (or .quick), e.g. classes=[2, 10], seed=1, dtype="float64".

    Returns:
        The drawing: its pictures, findings and numbers, and the files written.

    Raises:
        ValueError, TypeError: an unknown name, or a bad parameter. ImportError: matplotlib, scikit-learn or torchvision
            is missing. FileNotFoundError: the data are missing. MemoryError.
    """
    if str(name) not in FIGURES:
        raise ValueError(f"name: expected one of {', '.join(NAMES)}; got {name!r}")
    plot.check_matplotlib()
    figure = FIGURES[str(name)]
    settings = completed(parameters, figure.parameters(quick), f"figure {figure.name}")
    folder = _files.folder("out", out or Path("out", "figures-quick" if quick else "figures"))
    this = Run(figure, settings, folder, quick, progress)
    return this.save(figure.draw(this))


__all__ = ["FIGURES", "NAMES", "Drawing", "Figure", "Run", "run"]
