"""`hessext figure`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any

from hessext import figures
from hessext.figures import FIGURES, NAMES, Figure
from hessext.figures._parameters import PARAMETERS, completed, text_of

from ._options import FAILURES, list_of

_WIDTH = max(map(len, NAMES))


def _listing() -> str:
    """Every figure with its parameters, and what --quick makes of them."""
    lines = []
    for name, figure in FIGURES.items():
        lines.append(f"{name:<{_WIDTH}} {figure.title}\n{'':{_WIDTH}} {_options(figure.parameters())}")
        if figure.quick:
            lines.append(f"{'':{_WIDTH}} --quick: {_options(figure.quick)}")
    return "\n".join(lines)


def _options(parameters: Mapping[str, Any]) -> str:
    texts = ("" if value is None or value is False else f" {text_of(value)}" for value in parameters.values())
    return " ".join(f"--{name.replace('_', '-')}{text}" for name, text in zip(parameters, texts, strict=True))


def _one(figure: Figure, args: argparse.Namespace, parameters: dict[str, Any]) -> None:
    """Draw one figure and print what is seen."""
    print(f"{figure.stem}: {figure.title}", flush=True)
    start = time.perf_counter()
    drawing = figures.run(figure.name, out=args.out, quick=args.quick, **parameters)
    print(indent(drawing.text(), "  "))
    print(f"  {time.perf_counter() - start:.0f} s; written to {drawing.files[0].parent}: ", end="")
    print(*(path.name for path in drawing.files), sep=", ", flush=True)


def _all(args: argparse.Namespace, given: dict[str, Any]) -> int:
    """Draw every figure, each with those of the parameters that it has; 1 if one could not be drawn.

    Raises ValueError, TypeError for a bad parameter, before anything is drawn.
    """
    defaults = {name: FIGURES[name].parameters(args.quick) for name in NAMES}
    taken = {name: {key: value for key, value in given.items() if key in defaults[name]} for name in NAMES}
    for name in NAMES:
        completed(taken[name], defaults[name], f"figure {name}")  # before hours are spent on those where it is good
    missing = []
    for name in NAMES:
        try:
            _one(FIGURES[name], args, taken[name])
        except FAILURES as error:
            print(f"hessext figure {name}: {error}", file=sys.stderr)
            missing.append(name)
    print(f"{len(NAMES) - len(missing)} of {len(NAMES)} figures drawn" + f"; not {', '.join(missing)}" * bool(missing))
    return int(bool(missing))


def _figure(args: argparse.Namespace) -> int:
    """Draw the figures asked for, or list them."""
    if args.list:
        print(_listing())
        return 0
    if args.name is None:
        raise ValueError(f"NAME: expected all or one of {', '.join(NAMES)} (--list says what they are); got none")
    given = {name: value for name in PARAMETERS if (value := getattr(args, name)) is not None}
    try:
        if args.name == "all":
            return _all(args, given)
        _one(FIGURES[args.name], args, given)
    except KeyboardInterrupt as stopped:
        print(f"\nhessext figure: {str(stopped) or 'stopped; the same command continues'}", file=sys.stderr)
        return 130
    return 0


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command's parser."""
    titles = "\n".join(f"  {name:<{_WIDTH}} {figure.title}" for name, figure in FIGURES.items())
    figure = commands.add_parser(
        "figure",
        help="draw a figure of the paper: picture, numbers, caption",
        description="Draws a figure of the paper: a picture (PNG, PDF), the numbers behind it (CSV, npz) and a caption "
        "that states the setup and what is seen. What was computed before a kill is not computed again.\n\n"
        f"figures:\n{titles}\n  {'all':<{_WIDTH}} every one of them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    figure.add_argument("name", nargs="?", metavar="NAME", choices=[*NAMES, "all"], help="see above")
    figure.add_argument("--list", action="store_true", help="all figures with their parameters and defaults")
    figure.add_argument("--quick", action="store_true", help="smaller sizes: all figures in less than 10 minutes")
    figure.add_argument("--out", type=Path, metavar="DIR", help="(out/figures, or out/figures-quick)")
    group = figure.add_argument_group("parameters", "A figure has some of them, with defaults of its own: see --list.")
    for name, parameter in PARAMETERS.items():
        option = f"--{name.replace('_', '-')}"
        if parameter.kind is bool:
            group.add_argument(option, action="store_true", default=None, help=parameter.text)
        elif parameter.choices:
            group.add_argument(option, choices=parameter.choices, help=parameter.text)
        elif parameter.kind is Path:
            group.add_argument(option, type=Path, metavar="DIR", help=parameter.text)
        else:
            group.add_argument(option, type=list_of(parameter.kind), metavar="K", help=parameter.text)
    figure.set_defaults(run=_figure)
