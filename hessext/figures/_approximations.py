"""The figure `approximations`: what structured approximations capture of each layer, before and along training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, product
from typing import TYPE_CHECKING, Any

import numpy as np

from hessext import Approximation, Hessian
from hessext.plot._page import page
from hessext.sweeps import draws
from hessext.sweeps.statistics import captured

from ._frame import COLORS, LOSSES, Drawing, Figure, Run
from ._training import QUICK, READING, Task, trained

if TYPE_CHECKING:
    import matplotlib.figure
    from matplotlib.axes import Axes

_CASES = {"cross_entropy": 4, "mse": 3}  # cases of hessext.sweep
_LAYERS = ("hidden", "output")
_SETTINGS = {"initialization": "at initialization", "gaussian": "Gaussian data", "digits": "digits"}
_DIGITS = {"samples": 1797, "features": 64, "classes": 10}
_MOMENTS = 10  # of a training at which approximations are measured
_KINDS = {  # color, marker, line; approximations by Kronecker factors are dashed and hollow
    "block-diagonal": (COLORS[0], "o", "-"),
    "input-column blocks": (COLORS[1], "s", "-"),
    "diagonal": (COLORS[2], "^", "-"),
    "Adam-mini": (COLORS[3], "D", "-"),
    "K-FAC": (COLORS[0], "v", "--"),
    "E-KFAC": (COLORS[1], "P", "--"),
    "Shampoo": (COLORS[2], "X", "--"),
    "Shampoo, squared factors": (COLORS[3], "<", "--"),
    "one-sided": ("#000000", ">", "--"),
    "nearest Kronecker": ("#E69F00", "h", "--"),
}

Rows = Sequence[Mapping[str, Any]]


def _shares(hessians: Iterable[Hessian]) -> dict[str, Any]:
    """(approximations, 3) of each layer: share captured, its standard error, share by pairs of different samples alone.

    Of several draws they are means over the draws.
    """
    tables = [[H[layer].approximations() for layer in _LAYERS] for H in hessians]
    return {
        layer: [_numbers([table[name] for table in several]) for name in _KINDS]
        for layer, several in zip(_LAYERS, zip(*tables, strict=True), strict=True)
    }


def _numbers(rows: Sequence[Approximation]) -> tuple[float, float, float]:
    return *captured(rows), float(np.mean([row.population for row in rows]))


def _initial(run: Run, loss: str, classes: int) -> dict[str, Any]:
    p = run.parameters
    point = draws.Point(classes, p.samples, p.features, p.hidden)
    tasks = (draws.Task(_CASES[loss], p.seed, p.dtype, point, number) for number in range(p.draws))
    return _shares(draws.draw(task)[0] for task in tasks)


def _task(run: Run, setting: str, loss: str) -> Task:
    if setting == "gaussian":
        return Task.of(run, loss, classes=run.parameters.classes[-1])
    sizes = _DIGITS | {"samples": min(run.parameters.samples, _DIGITS["samples"])}
    return Task.of(run, loss, source="digits", **sizes)


def _steps(steps: Iterable[int]) -> list[int]:
    """Some of the steps whose weights are kept, equidistant in number, the first and the last among them."""
    kept = np.array(sorted(steps))
    return kept[np.unique(np.linspace(0, len(kept) - 1, _MOMENTS).round().astype(int))].tolist()


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    """Yield a row for each approximation, layer and loss: at initialization for each C, then along training."""
    p, fixed = run.parameters, {"steps": None, "learning_rate": None}
    tasks = [_task(run, setting, loss) for setting in ("gaussian", "digits") for loss in _CASES]
    tasks[-1].data()  # needs scikit-learn: better missed now than after the first half
    points = [(loss, classes) for loss in _CASES for classes in p.classes]
    for loss, C in run.timed(points, "initialization", sample=len(p.classes)):
        about = {"setting": "initialization", "loss": loss, "classes": C, "step": 0}
        found = run.cached(f"initial-{loss}", lambda o=loss, C=C: _initial(run, o, C), classes=C, **fixed)
        yield from _of_layers(about, found)
    networks = [trained(run, task) for task in tasks]
    moments = [(network, step) for network in networks for step in _steps(network.weights)]
    for network, step in run.timed(moments, "along training", sample=_MOMENTS):
        task = network.task
        about = {"setting": task.source, "loss": task.loss, "classes": task.classes, "step": step}
        found = run.cached(
            f"{task.source}-{task.loss}-step{step}",
            lambda network=network, step=step: _shares([network.hessian(step)]),
            **task._asdict() | {"draws": None},
        )
        yield from _of_layers(about | {"training_loss": float(network.losses[step])}, found)


def _of_layers(about: Mapping[str, Any], found: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    for layer in _LAYERS:
        for name, (share, error, population) in zip(_KINDS, found[layer].tolist(), strict=True):
            known = {"captured": share, "captured_error": error, "population": population}
            known = {key: None if math.isnan(value) else value for key, value in known.items()}
            yield {**about, "layer": layer, "approximation": name, **known}


# --------------------------------------------------------------------------------------------------------- pictures


def _picture(run: Run, loss: str, rows: Rows) -> matplotlib.figure.Figure:
    """Draw a row of panels for each layer: over C at initialization, and along training on both data sets."""
    p = run.parameters
    picture, axes = page(len(_LAYERS), len(_SETTINGS), 3.35, sharex="col", sharey=True)
    for layer, line in zip(_LAYERS, axes, strict=True):
        for setting, ax in zip(_SETTINGS, line, strict=True):
            part = [row for row in rows if (row["loss"], row["layer"], row["setting"]) == (loss, layer, setting)]
            _panel(ax, part, "classes" if setting == "initialization" else "step")
        line[0].set_ylabel(f"{layer} layer\nshare of $\\|H\\|_F^2$ captured")
    digits = min(p.samples, _DIGITS["samples"])
    titles = (
        f"Gaussian data, at initialization\n$N = {p.samples}$, $d = {p.features}$, $m = {p.hidden}$",
        f"Gaussian data, $C = {p.classes[-1]}$, trained\n$N = {p.samples}$, $d = {p.features}$, $m = {p.hidden}$",
        f"digits, $C = 10$, trained\n$N = {digits}$, $d = 64$, $m = {p.hidden}$",
    )
    for ax, below, title in zip(*axes, titles, strict=True):
        ax.set_title(title, fontsize="medium")
        below.set_xlabel("$C$" if below is axes[-1, 0] else "step of training")
    picture.suptitle(f"{LOSSES[loss]}: what approximations of a layer's Hessian capture")
    picture.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return picture


def _panel(ax: Axes, rows: Rows, over: str) -> None:
    for name, (color, marker, line) in _KINDS.items():
        part = [row for row in rows if row["approximation"] == name]
        x, y, error = (
            [math.nan if row[key] is None else row[key] for row in part] for key in (over, "captured", "captured_error")
        )
        style = {"markersize": 4.5, "markerfacecolor": color if line == "-" else "white", "linewidth": 1.2}
        ax.errorbar(x, y, error, fmt=marker + line, color=color, elinewidth=0.8, capsize=1.5, label=name, **style)
    if over == "classes":
        sizes = sorted({row["classes"] for row in rows})
        ax.set_xscale("log")
        ax.set_xticks(sizes, map(str, sizes))
    else:
        steps = sorted({row["step"] for row in rows})
        ax.set_xscale("symlog", linthresh=steps[1])
        decades = (10**k for k in range(1, len(str(steps[-1]))))
        ax.set_xticks([0, *(step for step in decades if step > steps[1])])
        ax.set_xlim(-0.3 * steps[1], 1.5 * steps[-1])
    ax.minorticks_off()
    ax.set_ylim(0, 1.03)
    ax.grid(alpha=0.3)


# ------------------------------------------------------------------------------------------------------------- seen


def _panels(rows: Rows, loss: str, layer: str) -> dict[str, list[Rows]]:
    """Of each setting the rows at its first and at its last point: C at initialization, else the step."""
    found = {}
    for setting in _SETTINGS:
        part = [row for row in rows if (row["loss"], row["layer"], row["setting"]) == (loss, layer, setting)]
        over = "classes" if setting == "initialization" else "step"
        found[setting] = [[row for row in part if row[over] == end(row[over] for row in part)] for end in (min, max)]
    return found


def _tables(rows: Rows) -> Iterator[tuple[str, list[list[str]]]]:
    """Of each layer, with each loss: the share of every structure at the first and at the last point of each panel."""
    for loss, layer in product(_CASES, _LAYERS):
        panels = _panels(rows, loss, layer)
        sizes = " to ".join(str(part[0]["classes"]) for part in panels["initialization"])
        lines = [["", f"C = {sizes}", "training, Gaussian", "training, digits"]]
        for name in _KINDS:
            ends = [[_share(part, name) for part in panel] for panel in panels.values()]
            lines.append([name, *(" to ".join(f"{share:.3f}" for share in shares) for shares in ends)])
        yield f"{LOSSES[loss]}, {layer} layer: share of ||H||_F^2 captured, first to last", lines


def _share(rows: Rows, name: str) -> float:
    (share,) = (row["captured"] for row in rows if row["approximation"] == name)
    return math.nan if share is None else share


def _most(rows: Rows) -> str:
    """Whose share is the largest, to three digits, and what it is."""
    shares = {name: float(np.nan_to_num(_share(rows, name))) for name in _KINDS}
    best = max(shares.values())
    names = [name for name, share in shares.items() if share > best - 5e-4]
    first = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} other{'s' * (len(names) > 2)}"
    return f"{first} ({best:.3f})"


def _seen(rows: Rows) -> Iterator[str]:
    """Of each layer, with each loss: what captures most at both ends of C and after both trainings."""
    for loss, layer in product(_CASES, _LAYERS):
        panels = _panels(rows, loss, layer)
        ends = [f"{_most(part)} at C = {part[0]['classes']}" for part in panels["initialization"]]
        trained = [f"{_most(panels[setting][1])} on {_SETTINGS[setting]}" for setting in ("gaussian", "digits")]
        yield (
            f"{LOSSES[loss]}, {layer} layer: most is captured at initialization by {', '.join(ends)}; after training "
            f"by {', '.join(trained)}."
        )


def _draw(run: Run) -> Drawing:
    rows = list(_rows(run))
    pictures = {"" if loss == "cross_entropy" else loss: _picture(run, loss, rows) for loss in _CASES}
    notes = []
    for (setting, loss), part in groupby(rows, key=lambda row: (row["setting"], row["loss"])):
        if setting != "initialization":
            first, *_, last = part
            losses = f"{first['training_loss']:.3g} to {last['training_loss']:.3g}"
            notes.append(f"{LOSSES[loss]}, {_SETTINGS[setting]}: the loss falls from {losses}.")
    return Drawing(pictures, list(_seen(rows)), rows, tables=dict(_tables(rows)), notes=notes)


FIGURES = [
    Figure(
        name="approximations",
        title="What structured approximations capture of each layer's Hessian, at initialization and along training",
        paper="H_ww and H_vv are block-diagonal from initialization to the end (Finding 1), and the more so the more "
        "classes there are (Theorems 1 and 2). It does not say what other structures capture.",
        draw=_draw,
        defaults={"hidden": 8, **QUICK, "classes": [2, 5, 10, 20, 50, 100], "draws": 3},
        quick={"classes": [2, 10, 30], "samples": 300, "features": 30, "steps": 500},
        reading=READING + " Captured is cos^2, the share of ||H||_F^2 with the best scalar; the structures and their "
        "factors are those of BlockMatrix.approximations. They are made of different numbers of entries. Pairs of "
        "different samples alone (population in the CSV) give what more samples would tend to, at weights that do "
        "not depend on them (not so after training). The training on Gaussian data has the largest C, and by "
        "default N / C and d / C of Section 3.1; its sizes are a fifth of the paper's. Digits are scikit-learn's, N "
        "of them. Bars: at initialization standard errors over draws of weights and data, along training the "
        "sampling error at these weights.",
    )
]
