"""The page of every picture: its width, and at most four panels beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 9.5  # inches; on the 7 inches of a printed page a letter of 10 points has 7.4
COLUMNS = 4  # panels beside each other at most


def page(rows: int, count: int, height: float, *, layout: str = "constrained", **options: Any) -> tuple[Figure, Any]:
    """A page and its axes (rows, count), panels about `height` inches high; options are those of subplots.

    More than COLUMNS panels of a row go on below all the rows, as evenly as can be.
    """
    from matplotlib.figure import Figure

    bands = -(-count // COLUMNS)
    columns = -(-count // bands)
    width = WIDTH if columns > 1 else WIDTH / 2
    figure = Figure(figsize=(width, bands * rows * height + 0.5), layout=layout)
    grid = figure.subplots(bands * rows, columns, squeeze=False, **options)
    axes = grid.reshape(bands, rows, columns).swapaxes(0, 1).reshape(rows, -1)
    for ax in axes[:, count:].flat:
        ax.remove()
    return figure, axes[:, :count]


def maps(rows: int, count: int) -> tuple[Figure, np.ndarray]:
    """A page of square maps, of which each row has a colour bar: axes (rows, count)."""
    columns = max(2, -(-count // -(-count // COLUMNS)))
    figure, axes = page(rows, count, 0.9 * WIDTH / columns + 0.4, layout="compressed")
    figure.get_layout_engine().set(h_pad=0.1)
    return figure, axes
