"""Figure 1: the Hessian of a network at initialization on images, whole and layer by layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hessext import Hessian, datasets, one_hidden, plot
from hessext._random import lecun

from ._frame import LOSSES, Drawing, Figure, Run

PIXELS = 600  # of a heat map, at most about
CIFAR = {"features": 3072, "classes": 100}
SOURCES = {
    "cifar100": "CIFAR-100",
    "digits": "scikit-learn's digits, not CIFAR-100",
    "gaussian": "Gaussian data of CIFAR-100's size, not CIFAR-100",
}


def _data(run: Run) -> tuple[Tensor, Tensor, int]:
    """x, y and the number of classes."""
    p = run.parameters
    options = {"samples": p.samples, "seed": p.seed, "dtype": run.dtype}
    if p.data != "cifar100" and (p.data_folder is not None or p.download):
        raise ValueError(f"data_folder, download: expected only with --data cifar100; got --data {p.data}")
    if p.data == "gaussian":
        return *datasets.gaussian(**CIFAR, **options), CIFAR["classes"]
    if p.data == "digits":
        return *datasets.digits(**options), 10
    if p.data_folder is None:
        raise FileNotFoundError(
            "data_folder: expected the folder that holds CIFAR-100 (--data-folder DIR; --download puts it there); "
            "without CIFAR-100, --data gaussian draws data of its size and --data digits takes scikit-learn's images"
        )
    return *datasets.cifar100(p.data_folder, download=p.download, **options), CIFAR["classes"]


def _numbers(H: Hessian) -> dict[str, Any]:
    """Pooled |H| and |H_vv|, and the norms of all blocks."""
    pooled = {"hessian": plot.pool(H, max_pixels=PIXELS), "output": plot.pool(H["output"], max_pixels=PIXELS)}
    return pooled | {"norms": H.norms()}


def _draw(run: Run) -> Drawing:
    import matplotlib.figure

    p = run.parameters
    x, y, classes = _data(run)
    W, V = lecun((p.hidden, x.shape[1]), (classes, p.hidden), seed=p.seed, dtype=run.dtype)
    picture = matplotlib.figure.Figure(figsize=(16, 9.4), layout="compressed")
    picture.get_layout_engine().set(w_pad=0.12)
    source = SOURCES[p.data]
    picture.suptitle(f"{source}: {len(x)} samples, {p.hidden} hidden units, {classes} classes, at initialization")
    axes = picture.subplots(2, 3)
    rows, arrays, seen = [], {}, []
    for loss, (whole, hidden, output) in zip(run.progress(("cross_entropy", "mse")), axes, strict=True):
        name = LOSSES[loss]
        H = one_hidden(W, V, x, y, loss=loss)
        found = run.cached(loss, lambda H=H: _numbers(H), loss=loss, data_folder=None, download=None, pixels=PIXELS)
        arrays |= {f"{loss}_{part}": array for part, array in found.items()}
        norms, m = found["norms"], p.hidden
        title, options = f"{name}: |H|, {H.shape[0]:,} parameters", {"max_pixels": PIXELS}
        plot.heat_map(H, pooled=found["hessian"], ax=whole, title=title, **options)
        blocks = f"{m} x {m} blocks of {x.shape[1]}"
        plot.block_norm_map(H["hidden"], norms=norms[:m, :m], ax=hidden, title=f"{name}: hidden layer, {blocks}")
        blocks = f"{classes} x {classes} blocks of {m}"
        title = f"{name}: output layer, {blocks}"
        plot.heat_map(H["output"], pooled=found["output"], ax=output, title=title, **options)
        squares = norms.astype(float) ** 2
        cross = 2 * squares[:m, m:].sum() / squares.sum()
        for layer in H.layers:
            diagonal, off_diagonal, ratio = H[layer].ratio()
            row = {"loss": loss, "layer": layer, "blocks": H[layer].grid[0], "block_size": H[layer].block_shape[0]}
            rows.append(row | {"diagonal": diagonal, "off_diagonal": off_diagonal, "ratio": ratio})
            rows[-1]["cross_layer_share"] = cross
            seen.append(f"{name}, {layer} layer: mean ||H_ij||_F^2 / mean ||H_ii||_F^2 = {ratio:.2e}.")
        seen.append(f"{name}: the cross-layer blocks hold {cross:.2e} of ||H||_F^2.")
    return Drawing({"": picture}, seen, rows, arrays, [f"Data: {source}; x has {x.shape[1]} features."])


FIGURES = [
    Figure(
        name="1",
        title="The Hessian of a network at initialization, on images",
        paper="The Hessian of a network with 8 hidden units on 128 images of CIFAR-100 is nearly block-diagonal at "
        "initialization, under cross-entropy and under MSE: one block per hidden unit and one per class.",
        draw=_draw,
        defaults={"samples": 128, "hidden": 8, "data": "cifar100", "data_folder": None, "download": False},
        quick={"data": "gaussian"},
        reading="ReLU without biases, W ~ N(0, 1/d), V ~ N(0, 1/m); images chosen at random and standardized. --quick "
        "draws Gaussian data of the same size, unless --data says otherwise.",
    )
]
