"""The figure `fanout`: does a layer's fan-out decide how block-diagonal it is, or does what follows it?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from hessext.matrix.results import BlockRatio
from hessext.sweeps.statistics import moments, standard_error

from ._fanout_networks import Shape, initial, shapes, trained, training_steps
from ._fanout_pictures import along_training, by_shape, scatter
from ._fanout_statistics import beside_theory, compared, stated, verdict
from ._frame import LOSSES, Drawing, Figure, Run

_LOSSES = ("mse", "cross_entropy")


def _initial(run: Run, shape: Shape, loss: str) -> dict[str, Any]:
    """The numbers of a network at initialization: all draws, and under MSE the theory's ratios with their errors."""
    from hessext import theory  # scipy takes a second to load

    found: dict[str, Any] = {"measured": initial(run, shape, loss)}
    if loss == "mse":
        expected = theory.deep_mse(None, shape.widths, N=run.parameters.samples, d=run.parameters.features)
        found["theory"] = [(layer.value.ratio, layer.error.ratio) for layer in expected[:-1]]
    return found


def _sizes(shape: Shape, layer: int, ranks: Iterable[float]) -> dict[str, Any]:
    """The quantities that may explain a hidden layer's ratio."""
    widths, (rank, pair_rank) = shape.widths, map(float, ranks)
    sizes = {"layer": layer + 1, "layers": len(widths), "own": widths[layer], "next": widths[layer + 1]}
    return sizes | {"classes": widths[-1], "rank": rank, "pair_rank": pair_rank}


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    """Yield a row for each hidden layer of each network with each loss, at initialization and along training."""
    tasks = [(number, shape, loss) for number, shape in enumerate(shapes(run)) for loss in _LOSSES]
    general = dict.fromkeys(("networks", "layers", "hidden", "classes"))  # a cached step depends only on its shape
    for number, shape, loss in run.timed(tasks, "networks", sample=4):
        about = {"network": number, "kind": shape.kind, "widths": "-".join(map(str, shape.widths)), "loss": loss}
        key = {**general, "shape": shape.widths}
        fixed = {"steps": None, "learning_rate": None}
        found = run.cached(f"initial-{loss}", lambda s=shape, o=loss: _initial(run, s, o), **key, **fixed)
        for layer, draws in enumerate(found["measured"].swapaxes(0, 1)):
            values, deviations = moments(*draws[:, :2].T)
            row = {**about, "data": "gaussian", "step": 0, **_sizes(shape, layer, draws[:, 2:].mean(0))}
            for name, value, error in zip(BlockRatio._fields, values, standard_error(deviations), strict=True):
                row |= {name: float(value), f"{name}_error": float(error)}
            if loss == "mse":
                row |= dict(zip(("theory", "theory_error"), found["theory"][layer].tolist(), strict=True))
            yield row
        if shape.kind != "random":
            continue
        found = run.cached(f"trained-{loss}", lambda s=shape, o=loss: trained(run, s, o), **key, draws=None)
        for at, step in enumerate(training_steps(run.parameters.steps)):
            progress = {name: float(found[name][at]) for name in ("training_loss", "accuracy")}
            for layer, (on, off, *ranks) in enumerate(found["measured"][at]):
                row = {**about, "data": "clustered", "step": step, **_sizes(shape, layer, ranks)}
                yield row | BlockRatio.of(on, off)._asdict() | progress


def _draw(run: Run) -> Drawing:
    rows, last = list(_rows(run)), run.parameters.steps
    at_first = [compared(rows, loss) for loss in _LOSSES]
    along = [[compared(rows, loss, step, trained=True) for step in training_steps(last)] for loss in _LOSSES]
    at_last = [comparisons[-1] for comparisons in along]
    seen = [text for comparison in (*at_first, *at_last) for text in stated(comparison)]
    notes = []
    for loss in _LOSSES:
        ends = [row for row in rows if row["loss"] == loss and row["step"] == last and row["layer"] == 1]
        notes.append(f"{LOSSES[loss]}: mean accuracy after training {np.mean([row['accuracy'] for row in ends]):.0%}.")
    initial_mse = [row for row in rows if row["loss"] == "mse" and row["data"] == "gaussian"]
    pictures = {
        "": scatter([at_first, at_last]),
        "shapes": by_shape(initial_mse),
        "training": along_training(along),
    }
    return Drawing(pictures, [*seen, beside_theory(initial_mse), verdict([*at_first, *at_last])], rows, notes=notes)


FIGURES = [
    Figure(
        name="fanout",
        title="Off/diagonal of each layer of deep ReLU networks: fan-out, or the rank of what follows",
        paper="Appendix A conjectures that in deeper models the block-diagonal form is driven by the number of output "
        "neurons of each layer, its fan-out.",
        draw=_draw,
        defaults={
            "layers": [2, 3, 4, 5, 6],
            "hidden": [8, 16, 32, 64],
            "classes": [2, 5, 10, 30, 100, 300, 1000],
            "networks": 40,
            "samples": 128,
            "features": 64,
            "draws": 30,
            "steps": 300,
            "learning_rate": 1e-3,
        },
        quick={
            "layers": [2, 3, 4],
            "hidden": [8, 16, 32],
            "classes": [2, 10, 100],
            "networks": 20,
            "draws": 5,
            "steps": 100,
        },
        reading="Fan-out is read as the layer's own width K_l, or as the next one's, K_{l+1}. Random networks have a "
        "depth, widths and a number of classes that are drawn independently of each other. Other networks have the "
        "largest width in all hidden layers, or in all but one. ReLU without biases, weights N(0, 1/fan-in). At "
        "initialization x ~ N(0, I), labels are random, and every draw has its own weights and data; bars are standard "
        "errors. Training is Adam on all samples at once, on clustered data of norm sqrt(d), one draw of each random "
        "network. r(S) = (E tr S_n)^2 / E||S_n||_F^2, with S_n the curvature at the next layer's outputs. The rank "
        "over pairs, sum tr S_n tr S_n' (a_n . a_n')^2 / sum <S_n, S_n'> (a_n . a_n')^2, weighs samples as the layer's "
        "blocks do. Correlations are over the hidden layers of random networks, and their errors come from leaving out "
        "one network at a time. The output layer is left out: (9) and (17) hold for it.",
    )
]
