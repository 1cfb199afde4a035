"""Layers in the middle of a convolutional network, before and after training, at several widths.

A small network on scikit-learn's handwritten digits: a convolution, then linear layers fc1, fc2 and fc3 with ReLU
between them. `hessext.layer` gives the exact Hessian of each linear layer with all other parameters held fixed. Prints
the ratio of off-diagonal to diagonal blocks of every layer; all are checked against autograd on a sample of rows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from report import COLUMNS, EXPLAINED, OUT, Report, cells
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hessext

LAYERS = ("fc1", "fc2", "fc3")


class Network(nn.Module):
    """8 x 8 images, 8 channels, and three linear layers of which two have this width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, 3, padding=1)
        self.fc1, self.fc2, self.fc3 = nn.Linear(128, width), nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 8, 8)."""
        z = nn.functional.max_pool2d(torch.relu(self.convolution(images)), 2).flatten(1)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(z)))))


def train(model: nn.Module, data: TensorDataset, epochs: int) -> None:
    """Adam on batches of 64."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loader = DataLoader(data, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(0))
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


def span(rows: list[list[object]], weights: str, names: tuple[str, ...]) -> str:
    """Smallest and largest ratio of some layers."""
    found = [row[3 + COLUMNS.index("ratio")] for row in rows if row[1] == weights and row[2] in names]
    return f"{min(found):.3g} to {max(found):.3g}"


def main() -> int:
    """Run everything; the exit status is 1 if a block disagrees with autograd."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64, 256], help="of fc1 and fc2 (16 64 256)")
    parser.add_argument("--epochs", type=int, default=20, help="of training (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT / "digits_cnn.md", help="(%(default)s)")
    args = parser.parse_args()

    report = Report("A convolutional network on handwritten digits")
    x, y = hessext.datasets.digits()
    images, known = x.view(-1, 1, 8, 8), 1000
    data, held_out = TensorDataset(images[:known], y[:known]), (images[known:], y[known:])
    rows, checks, accuracies = [], [], []
    for width in args.widths:
        torch.manual_seed(0)
        model = Network(width)
        for weights in ("initial", "trained"):
            if weights == "trained":
                train(model.train(), data, args.epochs)
                accuracies.append((model(held_out[0]).argmax(1) == held_out[1]).double().mean().item())
            H = hessext.layer(model.eval(), LAYERS, DataLoader(data, batch_size=250))
            rows += [[width, weights, name, *cells(H[name])] for name in LAYERS]
            checks.append(hessext.autograd.check(H, max_bytes=1 << 22, samples=2))
    report.say(
        f"The Hessians are those of the mean cross-entropy of {known} images. After training, "
        f"{', '.join(f'{a:.1%}' for a in accuracies)} of {len(held_out[1])} other images are recognized."
    )
    report.table(["width", "weights", "layer", *COLUMNS], rows)
    report.say(EXPLAINED)
    middle, last = [{w: span(rows, w, names) for w in ("initial", "trained")} for names in (LAYERS[:2], LAYERS[2:])]
    report.say(
        f"Over widths {args.widths[0]} to {args.widths[-1]} the ratio of fc1 and fc2 is {middle['initial']} at "
        f"initialization and {middle['trained']} after training. That of fc3, whose rows are the classes, is "
        f"{last['initial']} and {last['trained']}; (C - 1)^-2 is {9**-2:.3g}. The layer's own width does little, and "
        "training takes a part of the block structure away."
    )
    passed, worst = all(checks), max(check.max_rel for check in checks)
    report.say(
        f"Rows of all layers {'agree' if passed else 'DO NOT AGREE'} with float64 autograd; "
        f"the largest relative error is {worst:.1e}."
    )
    report.write(args.out)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
