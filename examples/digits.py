"""How block-diagonal is the Hessian of a small classifier on real data?

Takes scikit-learn's handwritten digits (1797 images of 8 x 8, 10 classes), a linear model and a network with 8 ReLU
units, cross-entropy and squared error, at torch's initialization and after a short training. Prints a table of the
blocks of every part of the Hessian, checks all of them against float64 autograd, and saves the table and pictures.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import hessext
from hessext import _files, autograd, datasets, plot

HIDDEN = 8
TITLES = {"linear": "linear model", "network": f"{HIDDEN} ReLU units"}
COLUMNS = {
    "model": 8,
    "loss": 14,
    "weights": 8,
    "part": 16,
    "blocks": 8,
    "of size": 8,
    "mean ||H_ii||^2": 16,
    "mean ||H_ij||^2": 16,
    "ratio": 9,
    "ms": 6,
    "vs autograd": 11,
}


def make_model(name: str, features: int, classes: int, dtype: torch.dtype) -> nn.Module:
    """Without biases, as in the paper; torch's own initialization."""
    torch.manual_seed(0)
    if name == "linear":
        return nn.Linear(features, classes, bias=False, dtype=dtype)
    hidden = nn.Linear(features, HIDDEN, bias=False, dtype=dtype)
    return nn.Sequential(hidden, nn.ReLU(), nn.Linear(HIDDEN, classes, bias=False, dtype=dtype))


def train(model: nn.Module, loss: str, x: Tensor, y: Tensor, steps: int) -> float:
    """Full-batch Adam; returns the accuracy on the same images."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    target = nn.functional.one_hot(y).to(x.dtype)
    for _ in range(steps):
        logits = model(x)
        error = (
            nn.functional.cross_entropy(logits, y)
            if loss == "cross_entropy"
            else (logits - target).square().sum(1).mean()
        )
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    return (model(x).argmax(1) == y).double().mean().item()


def hessian(model: nn.Module, loss: str, x: Tensor, y: Tensor) -> hessext.Hessian:
    """The Hessian at the model's weights; hessext.hessian(model, ...) would name the layers 0.weight and 2.weight."""
    if isinstance(model, nn.Linear):
        return hessext.linear(model.weight, x, y, loss=loss)
    return hessext.one_hidden(model[0].weight, model[2].weight, x, y, activation=model[1], loss=loss)


def milliseconds(call) -> float:
    """Best of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def table(H: hessext.Hessian, report: autograd.CheckReport) -> Iterator[list[str]]:
    """One row per pair of layers: mean squared norms of its blocks, time of all of them, error against autograd."""
    for row, name in enumerate(H.layers):
        for other in H.layers[row:]:
            B = H[name, other]
            if B.symmetric:
                diagonal, off_diagonal, ratio = (f"{value:.3e}" for value in B.ratio())
            else:  # no block of a cross-layer part is on the diagonal
                diagonal, off_diagonal, ratio = "-", f"{B.norms().double().square().mean():.3e}", "-"
            error = next(part.max_rel for part in report.parts if part.layers == (name, other))
            sizes = ("x".join(map(str, shape)) for shape in (B.grid, B.block_shape))
            part = name if B.symmetric else f"{name} x {other}"
            yield [part, *sizes, diagonal, off_diagonal, ratio, f"{milliseconds(B.dense):.2f}", f"{error:.1e}"]


def line(values: list[str]) -> str:
    """One line of the table."""
    return "  ".join(f"{value:<{width}}" for value, width in zip(values, COLUMNS.values(), strict=True)).rstrip()


def picture(columns: list[tuple[str, hessext.Hessian]], path: Path, max_pixels: int = 1000) -> None:
    """|H| above, the norms of its blocks below, one column for each Hessian; one scale for each row."""
    figure = Figure(figsize=(3.4 * len(columns) + 0.6, 7.4), layout="compressed")
    axes = figure.subplots(2, len(columns), squeeze=False)
    for (title, H), heat, norms in zip(columns, *axes, strict=True):
        plot.heat_map(H, ax=heat, max_pixels=max_pixels, title=title)
        plot.block_norm_map(H, ax=norms)
    for row in axes:
        plot.share_scale(row)
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=100, bbox_inches="tight")
    with Image.open(drawn) as image:  # one colour map needs few colours: half the bytes
        few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
        few.save(small, "png", optimize=True)
    _files.replace(path, small.getvalue())


def main() -> int:
    """Run everything; the exit status is 1 if a block disagrees with autograd."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[1] / "out" / "digits"
    parser.add_argument("--out", type=Path, default=default, help="folder for table and pictures (%(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="of training (%(default)s)")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="(%(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, args.dtype)
    x, y = datasets.digits(dtype=dtype)
    classes = int(y.max()) + 1
    start, passed, notes, found = time.perf_counter(), True, [], {}

    print(f"scikit-learn digits: {len(x)} images, {x.shape[1]} pixels, {classes} classes; {args.dtype}\n")
    print(line(list(COLUMNS)))
    cases = [(model, loss) for model in TITLES for loss in ("cross_entropy", "mse")]
    with (
        (args.out / "blocks.csv").open("w", newline="") as file,
        tqdm(total=3 * len(cases) + 1, unit="step", leave=False, disable=None) as bar,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, loss in cases:
            model = make_model(name, x.shape[1], classes, dtype)
            columns = []
            for weights in ("initial", "trained"):
                bar.set_description(f"{name}, {loss}, {weights}")
                if weights == "trained":
                    accuracy = train(model, loss, x, y, args.steps)
                    notes.append(f"{TITLES[name]}, {loss}: accuracy {accuracy:.1%} on the same images after training")
                H = hessian(model, loss, x, y)
                report = autograd.check(H)
                passed &= report.passed
                for row in table(H, report):
                    values = [name, loss, weights, *row]
                    bar.write(line(values), file=sys.stdout)
                    writer.writerow(values)
                    file.flush()
                found[name, loss, weights] = H
                columns.append((f"{TITLES[name]}, {loss}, {weights}", H))
                bar.update()
            picture(columns, args.out / f"{name}-{loss}.png")
            bar.update()
        chosen = [("linear", "initial"), ("network", "initial"), ("network", "trained")]
        columns = [(f"{TITLES[name]}, {weights}", found[name, "cross_entropy", weights]) for name, weights in chosen]
        picture(columns, args.out / "digits.png", max_pixels=200)
        bar.update()

    print("\nNorms are Frobenius norms, ratio = mean ||H_ij||^2 / mean ||H_ii||^2; ms: all blocks of the part.")
    print(*notes, sep="\n")
    verdict = "agree" if passed else "DO NOT AGREE"
    print(
        f"all blocks of all {len(found)} Hessians {verdict} with float64 autograd; {time.perf_counter() - start:.0f} s"
    )
    print(f"table and pictures: {args.out}")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
