"""Figure 1: the Hessian of a network at initialization on images, whole and layer by layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hessext import Hessian, datasets, one_hidden, plot
from hessext._random import lecun
from hessext.plot._page import maps

from ._frame import LOSSES, Drawing, Figure, Run

PIXELS = 600  # of a heat map's side, about
_SHOWN = ("cross_entropy", "mse")
CIFAR = {"features": 3072, "classes": 100}
SOURCES = {
    "cifar100": "CIFAR-100",
    "digits": "scikit-learn's digits, not CIFAR-100",
    "gaussian": "Gaussian data of CIFAR-100's size, not CIFAR-100",
}


def _data(run: Run) -> tuple[Tensor, Tensor, int]:
    """Return x, y and the number of classes."""
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
    """Pooled |H|, and the norms of all blocks."""
    return {"hessian": plot.pool(H, max_pixels=PIXELS), "norms": H.norms()}


def _draw(run: Run) -> Drawing:
    p = run.parameters
    x, y, classes = _data(run)
    W, V = lecun((p.hidden, x.shape[1]), (classes, p.hidden), seed=p.seed, dtype=run.dtype)
    picture, axes = maps(len(_SHOWN), 3)
    source = SOURCES[p.data]
    picture.suptitle(f"{source}: {len(x)} samples, {p.hidden} hidden units, {classes} classes, at initialization")
    rows, arrays, seen = [], {}, []
    for loss, (whole, hidden, output) in zip(run.progress(_SHOWN), axes, strict=True):
        name = LOSSES[loss]
        H = one_hidden(W, V, x, y, loss=loss)
        found = run.cached(loss, lambda H=H: _numbers(H), loss=loss, data_folder=None, download=None, pixels=PIXELS)
        arrays |= {f"{loss}_{part}": array for part, array in found.items()}
        norms, m = found["norms"], p.hidden
        title = f"{name}, all of H:\n{H.shape[0]:,} parameters"
        plot.heat_map(H, pooled=found["hessian"], max_pixels=PIXELS, ax=whole, title=title)
        for layer, ax, part in (("hidden", hidden, norms[:m, :m]), ("output", output, norms[m:, m:])):
            (K, _), (size, _) = H[layer].grid, H[layer].block_shape
            title = f"{name}, {layer} layer:\n{K} x {K} blocks of {size}"
            plot.block_norm_map(H[layer], norms=part, ax=ax, title=title)
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
