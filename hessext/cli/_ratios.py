"""`hessext ratios`."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

from hessext import _files, plot, sweep
from hessext.figures import FIGURES
from hessext.figures._ratios import CASES

from ._options import DTYPES, list_of

# What is taken where an option is left out, as without --figure: a minute's work.
SMALL = {"case": 2, "classes": [2, 5, 10, 20, 50, 100], "samples": 200, "features": 100, "hidden": 8, "draws": 200}


def _ratios(args: argparse.Namespace) -> int:
    """Sweep, print the table, write ratios.csv (as it goes), ratios.json and ratios.png."""
    chosen = {name: value for name, value in vars(args).items() if value is not None}
    preset = dict(SMALL)
    if args.figure:
        sizes = FIGURES[str(args.figure)].defaults
        preset |= {"case": CASES[str(args.figure)]} | {name: sizes[name] for name in SMALL if name in sizes}
    if "gamma" in chosen:  # in place of features, unless those are given
        del preset["samples" if "features" in chosen else "features"]
    options = preset | {name: chosen[name] for name in (*SMALL, "gamma", "seed", "workers") if name in chosen}
    if options["case"] in (1, 2):
        if "hidden" in chosen:
            raise ValueError(
                f"hidden: expected none for a linear model (cases 3 and 4 have it); got {chosen['hidden']}"
            )
        del options["hidden"]
    out = args.out or Path("out", f"figure{args.figure}" if args.figure else f"ratios-case{options['case']}")
    _files.folder("out", out)
    try:
        result = sweep(**options, dtype=DTYPES[args.dtype], path=out / "ratios.csv")
    except KeyboardInterrupt as stopped:
        print(f"\nhessext ratios: {stopped}", file=sys.stderr)
        return 130
    print(result.table())
    _files.replace(out / "ratios.json", json.dumps(result.summary(), indent=1, allow_nan=False).encode())
    written = ["ratios.csv", "ratios.json"]
    try:
        picture = io.BytesIO()
        plot.ratios(result).savefig(picture, dpi=120, format="png")
        _files.replace(out / "ratios.png", picture.getvalue())
        written.append("ratios.png")
    except ImportError as error:
        print(f"no picture: {error}")
    print(f"written to {out}: {', '.join(written)}")
    return 0


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command's parser."""
    ratios = commands.add_parser(
        "ratios",
        help="mean squared block norms and their ratio over random draws, against C, N, d, m or gamma",
        description="Draws models at initialization and Gaussian data, and compares mean ||H_ii||_F^2, mean "
        "||H_ij||_F^2 and their ratio with the theory. One of the sizes may be a list such as 2,5,10. Draws go to "
        "ratios.csv one by one; the same command continues a run that was cut off, also with more draws or sizes.",
    )
    ratios.add_argument("--figure", type=int, choices=[*map(int, CASES)], help="of the paper: sets the options below")
    ratios.add_argument("--case", type=int, choices=range(1, 5), help="1, 2: linear, 3, 4: network; MSE, cross-entropy")
    for name, what in (("classes", "C"), ("samples", "N"), ("features", "d"), ("hidden", "m, cases 3 and 4")):
        default = str(SMALL[name]).strip("[]").replace(" ", "")
        ratios.add_argument(f"--{name}", type=list_of(int), metavar="K", help=f"{what} ({default})")
    ratios.add_argument("--gamma", type=list_of(float), metavar="G", help="d/N, instead of --features or --samples")
    ratios.add_argument("--draws", type=int, metavar="K", help=f"of each point ({SMALL['draws']})")
    ratios.add_argument("--seed", type=int, metavar="K", help="of all draws (0)")
    ratios.add_argument("--dtype", choices=list(DTYPES), default="float32", help="(float32)")
    ratios.add_argument("--workers", type=int, metavar="K", help="processes (cores)")
    ratios.add_argument("--out", type=Path, metavar="DIR", help="(out/ratios-case2, out/figure8 and so on)")
    ratios.set_defaults(run=_ratios)
