"""`hessext approximations`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hessext import Approximations, Hessian, _checks, _files
from hessext._progress import call, steps
from hessext._text import aligned
from hessext.sweeps.draws import CASES, Point, Task, draw
from hessext.sweeps.statistics import captured
from hessext.sweeps.sweep import points_of

from ._options import DTYPES, TERMS, list_of, of_term

# What is taken of a random model where an option is left out: less than a minute's work.
SMALL = {"classes": [10, 100, 1000], "samples": 500, "features": 100, "hidden": None}
RANDOM = SMALL | {"loss": "cross_entropy", "activation": "relu", "draws": 3, "seed": 0, "dtype": "float32"}
_LETTERS = {"classes": "C", "samples": "N", "features": "d", "hidden": "m"}

Rows = list[dict[str, Any]]


def _approximations(args: argparse.Namespace) -> int:
    """Print the tables of a random or of a saved Hessian; with --out write them to approximations.csv."""
    if args.out is not None:
        _files.folder("out", args.out)
    given = {name: value for name in RANDOM if (value := getattr(args, name)) is not None}
    try:
        rows = _random(args, **RANDOM | given) if args.saved is None else _saved(args, given)
    except KeyboardInterrupt:
        print("\nhessext approximations: stopped", file=sys.stderr)
        return 130
    if args.out is not None:
        _files.replace(args.out / "approximations.csv", _files.csv_of(rows))
        print(f"written to {args.out}: approximations.csv")
    return 0


def _tables(H: Hessian, args: argparse.Namespace) -> Iterator[tuple[str, Approximations]]:
    """Of each layer, its weights and its bias together, or of the one asked for."""
    H = of_term(H, args.term)
    parts = [name.rpartition(".") for name in H.layers]  # of a model these are parameters
    whole = dict.fromkeys(first if last in ("weight", "bias") else first + dot + last for first, dot, last in parts)
    names = whole if args.layer is None else [args.layer]
    for name in names:
        try:
            B = H[name]
        except KeyError as error:
            raise ValueError(f"layer: {error.args[0]}") from None
        yield name, B.approximations(largest=args.largest)


def _rows(layer: str, table: Approximations, **about: Any) -> Iterator[dict[str, Any]]:
    for row in table:
        numbers = row._asdict()
        yield {"layer": layer, **about, "approximation": numbers.pop("name"), "captured": row.captured, **numbers}


# ------------------------------------------------------------------------------------------------- a saved Hessian


def _saved(args: argparse.Namespace, given: dict[str, Any]) -> Rows:
    """Print every layer's table as soon as it is there."""
    if given or args.tables:
        name = next(iter(given), "tables")
        raise ValueError(f"{name}: expected none with a saved Hessian, only with random models")
    rows: Rows = []
    for layer, table in _tables(_loaded(args.saved), args):
        print(table, end="\n\n", flush=True)
        rows += _rows(layer, table)
    return rows


def _loaded(path: Path) -> Hessian:
    """Raises ValueError for what is no Hessian, OSError, MemoryError."""
    expected = "saved: expected a file that torch.save(H, path) has written"
    if not path.is_file():
        raise FileNotFoundError(f"{expected}; there is none at {path}")
    try:
        found = torch.load(path, map_location=None if torch.cuda.is_available() else "cpu", weights_only=False)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a pickle may raise anything
        why = str(error).partition("\n")[0]
        raise ValueError(f"{expected}; {path} cannot be loaded: {type(error).__name__}: {why}") from None
    if not isinstance(found, Hessian):
        raise ValueError(f"{expected}, with H a hessext.Hessian; {path} holds a {type(found).__name__}")
    return found


# --------------------------------------------------------------------------------------------------- random models


def _random(
    args: argparse.Namespace, loss: str, activation: str, draws: int, seed: int, dtype: str, **sizes: Any
) -> Rows:
    """Print for each layer the shares captured, a column for each size."""
    network = sizes["hidden"] is not None
    if not network and args.activation is not None:
        raise ValueError(f"activation: expected none for a linear model (--hidden makes a network); got {activation}")
    case = next(number for number, case in CASES.items() if (case.network, case.loss) == (network, loss))
    swept, points = points_of(network, **sizes, gamma=None)
    draws, seed = _checks.count("draws", draws, 1), _checks.count("seed", seed, None)
    tasks = [Task(case, seed, dtype, point, number) for point in points for number in range(draws)]
    found: dict[str, dict[Point, list[Approximations]]] = {}
    rows: Rows = []
    with call("draws"):
        for task in steps(tasks, lambda task: task.point.classes):
            for layer, table in _tables(draw(task, activation)[0], args):
                found.setdefault(layer, {}).setdefault(task.point, []).append(table)
                rows += _rows(layer, table, **task.point._asdict(), draw=task.draw)
    fixed = ", ".join(f"{name} {size}" for name, size in points[0]._asdict().items() if size and name != swept)
    title = CASES[case].title.replace("ReLU", "ReLU" if activation == "relu" else activation)
    several = f"{draws} draws" if draws > 1 else "one draw"
    print(f"{title[0].upper()}{title[1:]}: {fixed}; {several}, seed {seed}, {dtype}")
    over = "the draws" if draws > 1 else "draws of the samples"
    print(f"Share of ||H||_F^2 captured, {args.term.replace('_', '-')}, ± standard error over {over}")
    for layer, columns in found.items():
        heads = [f"{_LETTERS[swept]} = {getattr(point, swept)}" for point in columns]
        print("", *_compact(f"{layer} layer", heads, list(columns.values())), sep="\n")
    if args.tables:
        for layer, columns in found.items():
            for point, (first, *_) in columns.items():
                print(f"\n{_LETTERS[swept]} = {getattr(point, swept)}, {layer} layer, first draw:", first, sep="\n")
    return rows


def _compact(title: str, heads: Sequence[str], columns: Sequence[Sequence[Approximations]]) -> Iterator[str]:
    """A line for each approximation, a column for each size; below, why a share is not known."""
    lines, notes = [[title, *heads]], {}
    for name in columns[0][0].names:
        lines.append([name])
        for head, tables in zip(heads, columns, strict=True):
            share, error = captured([table[name] for table in tables])
            text = f"{share:.4f}" + (f" ± {error:.4f}" if math.isfinite(error) else "")
            lines[-1].append("-" if math.isnan(share) else text)
            if math.isnan(share):
                why = next(note for table in tables if (note := table[name].note))
                notes.setdefault((head, why), []).append(name)
    yield from aligned(lines)
    for (head, why), names in notes.items():
        yield f"  {head}: {', '.join(names)}: {why}"


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command's parser."""
    command = commands.add_parser(
        "approximations",
        help="what diagonals, K-FAC, Shampoo and others capture of each layer's Hessian, against C, N, d or m",
        description="Share of a layer's ||H||_F^2 that structured approximations capture with the best scalar: the "
        "diagonal, its blocks, Adam-mini, K-FAC, E-KFAC, Shampoo, one-sided, the nearest Kronecker product. Of models "
        "at initialization on Gaussian data, as in `hessext ratios`, one size of which may be a list such as "
        "10,100,1000; or of a saved Hessian.",
    )
    command.add_argument(
        "saved",
        nargs="?",
        type=Path,
        metavar="SAVED",
        help="file that torch.save(H, path) has written. It is a pickle, which can run any code when it is loaded: "
        "take only files that you trust",
    )
    command.add_argument("--layer", metavar="NAME", help="one layer alone (all)")
    command.add_argument("--term", choices=TERMS, default="full", help="of the Hessian (full)")
    command.add_argument(
        "--largest",
        type=int,
        default=2048,
        metavar="K",
        help="side of the largest matrix whose eigenvectors are formed, for E-KFAC and Shampoo (2048)",
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="also write approximations.csv there")
    group = command.add_argument_group("random models")
    for name, what in (("classes", "C"), ("samples", "N"), ("features", "d"), ("hidden", "m: one hidden layer")):
        default = "a linear model" if SMALL[name] is None else str(SMALL[name]).strip("[]").replace(" ", "")
        group.add_argument(f"--{name}", type=list_of(int), metavar="K", help=f"{what} ({default})")
    losses = dict.fromkeys(case.loss for case in CASES.values())
    group.add_argument("--loss", choices=losses, help=f"({RANDOM['loss']})")
    group.add_argument("--activation", metavar="NAME", help="as in hessext.one_hidden (relu)")
    group.add_argument("--draws", type=int, metavar="K", help=f"of each size ({RANDOM['draws']})")
    group.add_argument("--seed", type=int, metavar="K", help="of all draws (0)")
    group.add_argument("--dtype", choices=list(DTYPES), help="(float32)")
    group.add_argument("--tables", action="store_true", help="also print the whole table of each layer's first draw")
    command.set_defaults(run=_approximations)
