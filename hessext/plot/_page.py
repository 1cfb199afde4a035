"""The page of every picture: one width, and at most four panels in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 9.5  # inches; printed 7 inches wide, 10-point text becomes 7.4-point
COLUMNS = 4  # most panels in a row


def page(rows: int, count: int, height: float, *, layout: str = "constrained", **options: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes (rows, count), with panels about `height` inches high; options go to subplots.

    Rows of more than COLUMNS panels are broken into bands of nearly equal width, one band below the other.
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
    """Return a figure and its axes (rows, count) for square maps, with room for a colour bar in each row."""
    columns = max(2, -(-count // -(-count // COLUMNS)))
    figure, axes = page(rows, count, 0.9 * WIDTH / columns + 0.4, layout="compressed")
    figure.get_layout_engine().set(h_pad=0.1)
    return figure, axes
