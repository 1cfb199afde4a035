"""The more classes, the more block-diagonal: a linear model's softmax Hessian at initialization, as one picture.

    pip install '.[plot]'; python examples/many_classes.py

Left: Frobenius norms of all blocks at 50 classes. Middle: mean squared norms of off-diagonal over diagonal blocks
beside the theory at the same N and d, Theorem 1. Right: the share of ||H||^2 that three structures capture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from report import ROOT

import hessext

SAMPLES, FEATURES, CLASSES = 500, 250, (2, 5, 10, 20, 50, 100, 200, 500, 1000)
SHOWN = {"block-diagonal": ("#0072b2", "o"), "K-FAC": ("#d55e00", "s"), "diagonal": ("#009e73", "^")}


def model(classes: int, seed: int) -> hessext.BlockMatrix:
    """A linear model at initialization with Gaussian data."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(classes, FEATURES, generator=g) / FEATURES**0.5
    return hessext.linear(W, torch.randn(SAMPLES, FEATURES, generator=g))["output"]


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10, help="models of each number of classes (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "many_classes.png", help="(%(default)s)")
    args = parser.parse_args()

    ratios, shares = [], {name: [] for name in SHOWN}
    for C in CLASSES:
        drawn = [model(C, seed) for seed in range(args.draws)]
        found = [B.ratio() for B in drawn]
        ratios.append(sum(r.off_diagonal for r in found) / sum(r.diagonal for r in found))
        tables = [B.approximations() for B in drawn]
        for name, values in shares.items():
            values.append(sum(table[name].captured for table in tables) / len(tables))
        print(
            f"C = {C}: ratio {ratios[-1]:.3g}, " + ", ".join(f"{k} {v[-1]:.3f}" for k, v in shares.items()), flush=True
        )
    expected = [hessext.theory.linear_ce(None, C, N=SAMPLES, d=FEATURES).ratio for C in CLASSES]

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    norms = model(50, 0).norms().numpy()
    shown = left.imshow(norms / norms.max(), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(shown, ax=left, label="block norm over the largest", shrink=0.9)
    left.set(title="block norms at C = 50", xlabel="class j", ylabel="class i")
    middle.loglog(CLASSES, expected, color="0.3", label="theory at the same N and d")
    middle.loglog(CLASSES, ratios, "o", color="#0072b2", label=f"mean of {args.draws} models")
    middle.set(title="off-diagonal over diagonal", xlabel="classes C", ylabel="ratio of mean squared norms")
    middle.legend(frameon=False)
    for name, (color, marker) in SHOWN.items():
        right.semilogx(CLASSES, shares[name], marker=marker, color=color, label=name)
    right.set(title="share of ||H||² captured", xlabel="classes C", ylim=(0, 1.02))
    right.legend(frameon=False, loc="lower right")
    for axes in (middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=130)
    print(args.out)


if __name__ == "__main__":
    main()
