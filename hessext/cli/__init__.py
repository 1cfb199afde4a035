"""The command line: `hessext info`, `check`, `approximations`, `ratios` and `figure`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec

import torch

from hessext import __version__, _core, progress

from . import _approximations, _check, _figure, _ratios
from ._options import FAILURES


def _info(_: argparse.Namespace) -> int:
    """Print versions, how the core was built, what it runs on, and which extras are there."""
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    extras = {"plot": "matplotlib", "figures": "sklearn", "cifar": "torchvision", "test": "hypothesis", "bench": "jax"}
    rows = {
        "hessext": __version__,
        "built with": _core.build,
        "instruction sets": f"{', '.join(_core.isas())} (in use: {_core.isa()})",
        "threads": torch.get_num_threads(),
        "CUDA kernels": "built" if _core.cuda else "not built",
        "GPUs": ", ".join(f"{d.name} (sm_{d.major}{d.minor})" for d in devices) or "none seen by torch",
        "Python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "extras": ", ".join(name for name, module in extras.items() if find_spec(module)) or "none",
    }
    for name, value in rows.items():
        print(f"{name:<17} {value}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hessext", description="Exact Hessian blocks from closed forms.")
    parser.add_argument("--version", action="version", version=f"hessext {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    info = commands.add_parser("info", help="versions, instruction sets, threads, CUDA, extras")
    info.set_defaults(run=_info)

    for command in (_check, _approximations, _ratios, _figure):
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 (good), 1 (a check failed), 2 (bad arguments) or 130 (Ctrl-C)."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        with progress(sys.stderr.isatty()):
            return args.run(args)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except FAILURES as error:
        print(f"hessext {args.command}: {error}", file=sys.stderr)
        return 2
