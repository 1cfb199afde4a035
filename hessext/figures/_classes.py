"""Figures 4 to 7: |H| at initialization as the number of classes grows, one sample per class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from hessext import Hessian, datasets, linear, one_hidden, plot
from hessext._random import lecun
from hessext.matrix.results import BlockRatio
from hessext.plot._page import maps
from hessext.sweeps.statistics import moments, standard_error

from ._frame import Drawing, Figure, Run

PIXELS = 520  # of a heat map's side, about


class Model(NamedTuple):
    """A model and its loss. Each of its layers has a row of heat maps."""

    network: bool
    loss: str

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of its layers."""
        return ("hidden", "output") if self.network else ("output",)

    def weights(self, run: Run, classes: int, number: int) -> list[Tensor]:
        """The weights of one draw."""
        p = run.parameters
        shapes = [(p.hidden, p.features), (classes, p.hidden)] if self.network else [(classes, p.features)]
        return lecun(*shapes, **_options(run, number))

    def hessian(self, run: Run, classes: int, number: int) -> Hessian:
        """The Hessian of one draw: at its weights, on one sample per class."""
        x, y = datasets.gaussian(classes, run.parameters.features, classes, balanced=True, **_options(run, number))
        return (one_hidden if self.network else linear)(*self.weights(run, classes, number), x, y, loss=self.loss)

    def expected(self, run: Run, classes: int, number: int) -> dict[str, BlockRatio]:
        """The theory of each layer's ratio(): for a network at the draw's weights, else a mean over weights."""
        from hessext import theory  # scipy takes a second to load

        if self.network:
            W, V = self.weights(run, classes, number)
            return theory.given_weights(W, V, classes, loss=self.loss, points=256, seed=number)._asdict()
        sizes = {"N": classes, "d": run.parameters.features}
        if self.loss == "mse":
            return {"output": theory.linear_mse(None, **sizes)}
        return {"output": theory.linear_ce(None, classes, **sizes)}


def _options(run: Run, number: int) -> dict[str, Any]:
    """Seed and dtype of a draw's random numbers."""
    return {"seed": (run.parameters.seed << 32) + number, "dtype": run.dtype}


def _numbers(model: Model, run: Run, classes: int) -> dict[str, Any]:
    """Pooled |H| of each layer in the first draw, and norms with their expectations (draws, 4) of all draws."""
    found: dict[str, Any] = {f"{layer}_norms": [] for layer in model.layers}
    for number in run.progress(range(run.parameters.draws), f"C = {classes}"):
        H, expected = model.hessian(run, classes, number), model.expected(run, classes, number)
        for layer in model.layers:
            scale = 1 / run.parameters.features if layer == "hidden" or not model.network else 1.0  # as in theory
            measured = (scale * square for square in H[layer].ratio()[:2])
            found[f"{layer}_norms"].append([*measured, *expected[layer][:2]])
            if number == 0:
                found[layer] = plot.pool(H[layer], max_pixels=PIXELS)
    return found


def _row(layer: str, classes: int, norms: np.ndarray) -> dict[str, Any]:
    """Means over draws, their standard errors, and the theory's means, as a row of the table."""
    values, deviations = moments(*norms[:, :2].T)
    columns = zip(BlockRatio._fields, values, standard_error(deviations), moments(*norms[:, 2:].T)[0], strict=True)
    row: dict[str, Any] = {"layer": layer, "classes": classes}
    for name, value, error, expected in columns:
        row |= {name: float(value), f"{name}_error": float(error), f"{name}_theory": float(expected)}
    return row


def _seen(layer: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not any(row["off_diagonal"] for row in rows):
        yield f"{layer}: every off-diagonal block is exactly 0, at every C and in every draw."
        return
    for row in rows:
        yield (
            f"{layer}, C = {row['classes']}: mean ||H_ij||_F^2 / mean ||H_ii||_F^2 = {row['ratio']:.3g} ± "
            f"{row['ratio_error']:.1g}, theory at the same finite N and d {row['ratio_theory']:.3g}."
        )
    if len(rows) > 1:
        C = np.log([row["classes"] for row in rows])
        here, theory = (np.polyfit(C, np.log([row[name] for row in rows]), 1)[0] for name in ("ratio", "ratio_theory"))
        yield f"{layer}: the ratio goes as C^{here:.2f}, the theory at the same sizes as C^{theory:.2f}."


def _draw(model: Model, run: Run) -> Drawing:
    p, rows, arrays = run.parameters, [], {}
    units = f", $m = {p.hidden}$" if model.network else ""
    picture, axes = maps(len(model.layers), len(p.classes))
    picture.suptitle(f"{run.figure.title}: $d = {p.features}${units}, one sample per class")
    for column, classes in enumerate(run.progress(p.classes)):
        found = run.cached(f"C{classes}", lambda C=classes: _numbers(model, run, C), classes=classes, pixels=PIXELS)
        H = model.hessian(run, classes, 0)
        for ax, layer in zip(axes[:, column], model.layers, strict=True):
            arrays[f"{layer}_C{classes}"] = found[layer]
            rows.append(_row(layer, classes, found[f"{layer}_norms"]))
            (K, _), (s, _) = H[layer].grid, H[layer].block_shape
            title = f"{layer} layer, " * model.network + f"$C = {classes}$:\n{K} x {K} blocks of {s}"
            plot.heat_map(H[layer], pooled=found[layer], max_pixels=PIXELS, ax=ax, title=title)
    for row in axes:
        plot.share_scale(row)
    by_layer = {layer: [row for row in rows if row["layer"] == layer] for layer in model.layers}
    seen = [text for layer, part in by_layer.items() for text in _seen(layer, part)]
    note = f"Maps: the first draw; numbers: {p.draws} draws of data and weights, norms of d x d blocks times 1/d."
    return Drawing({"": picture}, seen, [row for part in by_layer.values() for row in part], arrays, [note])


_LINEAR = {"classes": [4, 16, 64, 256], "features": 64, "draws": 20}
_NETWORK = {**_LINEAR, "hidden": 8}
_QUICK = {"classes": [4, 16, 64], "draws": 10}
_READING = (
    "N = C samples x ~ N(0, I), one of each class; weights N(0, 1/fan-in), no biases. The numbers of classes are ours."
)


def _figure(name: str, model: Model, title: str, paper: str) -> Figure:
    defaults = _NETWORK if model.network else _LINEAR
    draw = partial(_draw, model)
    return Figure(name=name, title=title, paper=paper, draw=draw, defaults=defaults, quick=_QUICK, reading=_READING)


FIGURES = [
    _figure(
        "4",
        Model(False, "mse"),
        "|H| of linear models as C grows, MSE",
        "Equation (3): the Hessian of a linear model under MSE is block-diagonal at any C, H_ij = 0.",
    ),
    _figure(
        "5",
        Model(False, "cross_entropy"),
        "|H| of linear models as C grows, cross-entropy",
        "Equations (5), (6): the off-diagonal blocks of a linear model fade as C grows, ||H_ij||_F / ||H_ii||_F ~ "
        "1 / (C - 1); squared, as C^-2.",
    ),
    _figure(
        "6",
        Model(True, "mse"),
        "|H| of one hidden ReLU layer as C grows, MSE",
        "Equations (8)-(10): the hidden layer nears block-diagonal form as C grows, the squared ratio as C^-1; the "
        "output layer is block-diagonal at any C.",
    ),
    _figure(
        "7",
        Model(True, "cross_entropy"),
        "|H| of one hidden ReLU layer as C grows, cross-entropy",
        "Equations (14)-(17): both layers near block-diagonal form as C grows, the squared ratio of the hidden layer "
        "as C^-1, that of the output layer as C^-2.",
    ),
]
