"""The Hessian of a trained network of exactly the paper's form: the language identifier CLD3.

pip downloads the source distribution of `gcld3` (650 kB), and `cld3.py` reads the network from its C++ source: 80
inputs, 208 ReLU units, 109 languages. The texts are those of the package's own test, in 90 languages. Prints the ratio
of off-diagonal to diagonal blocks for the trained network, for the same network at initialization, and over the number
of languages that the softmax chooses from. All is checked against float64 autograd.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from cld3 import Identifier, download, sentences, sources
from report import COLUMNS, EXPLAINED, OUT, Report, cells
from torch import Tensor

import hessext

WORDS = 8  # of a piece of text
CLASSES = (2, 5, 10, 20, 50, 109)
DRAWS = 10  # of the languages, where not all are taken
Weights = dict[str, Tensor]


def pieces(network: Identifier, texts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """(language, eight words), each text cut; pieces without a letter are left out."""
    found = []
    for language, text in texts:
        words = text.split()
        cut = (" ".join(words[at : at + WORDS]) for at in range(0, len(words), WORDS))
        found += [(language, piece) for piece in cut if network.clean(piece)]
    return found


def data(network: Identifier, texts: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """The network's inputs (N, 80) and the right answers (N,)."""
    y = torch.tensor([network.languages.index(language) for language, _ in texts])
    return network.inputs([text for _, text in texts]), y


def trained(network: Identifier) -> Weights:
    """The network's own parameters."""
    return {name: getattr(network, name) for name in ("hidden_weight", "output_weight", "hidden_bias", "output_bias")}


def initial(network: Identifier) -> Weights:
    """Parameters of the same shapes as the paper has them: W ~ N(0, 1/d), V ~ N(0, 1/m), biases 0."""
    g = torch.Generator().manual_seed(0)
    own = trained(network)
    return {
        name: torch.randn(w.shape, generator=g) / w.shape[1] ** 0.5 if w.dim() == 2 else torch.zeros_like(w)
        for name, w in own.items()
    }


def among(weights: Weights, languages: Tensor) -> Weights:
    """The network whose softmax chooses from some of the languages."""
    return {name: w[languages] if name.startswith("output") else w for name, w in weights.items()}


def over_classes(weights: Weights, x: Tensor) -> list[tuple[float, float]]:
    """Ratios of the hidden and of the output layer for each of CLASSES: ratios of means over draws of the languages.

    These layers' blocks do not depend on the labels: the ReLU has no second derivative.
    """
    g, rows, every = torch.Generator().manual_seed(1), [], CLASSES[-1]
    y = torch.zeros(len(x), dtype=torch.int64)
    for C in CLASSES:
        draws = [torch.randperm(every, generator=g)[:C] for _ in range(DRAWS if every > C else 1)]
        Hs = [hessext.one_hidden(x=x, y=y, **among(weights, languages)) for languages in draws]
        found = torch.tensor([[H[layer].ratio()[:2] for H in Hs] for layer in ("hidden", "output")]).double()
        diagonal, off_diagonal = found.mean(1).unbind(1)
        rows.append(tuple((off_diagonal / diagonal).tolist()))
    return rows


def exponent(ratios: list[float]) -> float:
    """Slope of log ratio over log C from C = 10 on, by least squares."""
    x, y = torch.tensor([(C, r) for C, r in zip(CLASSES, ratios, strict=True) if C >= 10]).double().log().T
    return ((x - x.mean()) @ (y - y.mean()) / (x - x.mean()).square().sum()).item()


def parts(name: str, H: hessext.Hessian) -> list[list[object]]:
    """One row of the table for each part of H."""
    norms = {layers: H[layers].norms().double() for layers in (("hidden",) * 2, ("output",) * 2, ("hidden", "output"))}
    squares = {layers: n.square().sum().item() * (1 + (layers[0] != layers[1])) for layers, n in norms.items()}
    rows = []
    for (row, column), square in squares.items():
        share = f"{square / sum(squares.values()):.1%}"
        if row == column:
            rows.append([name, row, *cells(H[row]), share])
        else:
            rows.append([name, f"{row} x {column}", *[None] * len(COLUMNS), share])
    return rows


def main() -> int:
    """Run everything; the exit status is 1 if a block disagrees with autograd."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=OUT, help="folder of the source distribution (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT / "language_identifier.md", help="(%(default)s)")
    args = parser.parse_args()

    report = Report("The language identifier CLD3")
    args.source.mkdir(parents=True, exist_ok=True)
    files = sources(download(args.source))
    network, whole = Identifier(files), sentences(files)
    texts = pieces(network, whole)
    right = []
    for some in (whole, texts):
        x, y = data(network, some)
        right.append(f"{int((network.logits(x).argmax(1) == y).sum())} of {len(some)}")
    report.say(
        f"{x.shape[1]} inputs, {len(network.hidden_weight)} ReLU units, {len(network.languages)} languages. The right "
        f"language is found for {right[0]} whole texts and for {right[1]} pieces of {WORDS} words. The pieces are the "
        "samples."
    )

    models = {"trained": trained(network), "initial": initial(network)}
    rows, checks = [], []
    for name, weights in models.items():
        H = hessext.one_hidden(x=x, y=y, **weights)
        rows += parts(name, H)
        checks.append(hessext.autograd.check(H, samples=8))
    report.table(["weights", "part", *COLUMNS, "share"], rows)
    report.say(f"{EXPLAINED} Share is the part's share of the squared norm of the whole Hessian.")

    found = {name: over_classes(weights, x) for name, weights in models.items()}
    report.say("Ratios of both layers where the softmax chooses from C of the languages:")
    columns = ["C", *(f"{layer}, {name}" for name in models for layer in ("hidden", "output"))]
    report.table(columns, [[C, *a, *b] for C, a, b in zip(CLASSES, *found.values(), strict=True)])
    hidden, output = ([exponent([row[k] for row in rows]) for rows in found.values()] for k in (0, 1))
    times = [a / b for a, b in zip(*(rows[-1] for rows in found.values()), strict=True)]
    report.say(
        f"At initialization the ratio falls from C = 10 on like C^{hidden[1]:.1f} in the hidden layer and like "
        f"C^{output[1]:.1f} in the output layer; the paper says C^-1 and C^-2. In the trained network it falls like "
        f"C^{hidden[0]:.1f} and C^{output[0]:.1f}. With all {CLASSES[-1]} languages it is {times[0]:.1f} and "
        f"{times[1]:.0f} times what it is at initialization: training takes away a part of the block structure."
    )

    passed, worst = all(checks), max(part.max_rel for check in checks for part in check.parts)
    blocks = sum(part.blocks for check in checks for part in check.parts)
    agree = "agree" if passed else "DO NOT AGREE"
    report.say(f"{blocks} blocks {agree} with float64 autograd; the largest relative error is {worst:.1e}.")
    report.write(args.out)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
