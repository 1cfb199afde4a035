"""The command line: `hessext info`, `hessext check`, `hessext ratios`."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from . import Hessian, __version__, _core, autograd, linear, one_hidden, plot, sweep

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# What `hessext ratios` takes where an option is left out: the figures of the paper, or a minute's work.
PAPER_CLASSES = [2, 5, 10, 20, 50, 100, 200, 500, 1000]
FIGURES = {
    8: {"case": 2, "classes": PAPER_CLASSES, "samples": 1000, "features": 500, "hidden": 8, "draws": 1000},
    9: {"case": 4, "classes": PAPER_CLASSES, "samples": 1000, "features": 500, "hidden": 8, "draws": 1000},
    None: {"case": 2, "classes": PAPER_CLASSES[:6], "samples": 200, "features": 100, "hidden": 8, "draws": 200},
}
ROW = "{:<11} {:<13} {:<11} {:<8} {:<16} {:>8} {:>8} {:>9}  {}"


def _info(_: argparse.Namespace) -> int:
    """Print versions, how the core was built, what it runs on, and which extras are there."""
    devices = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    extras = {"plot": "matplotlib", "test": "hypothesis", "bench": "tqdm", "docs": "sklearn"}
    rows = {
        "hessext": __version__,
        "built with": _core.build,
        "instruction sets": f"{', '.join(_core.isas())} (in use: {_core.isa()})",
        "threads": torch.get_num_threads(),
        "CUDA kernels": "built" if _core.cuda else "not built",
        "GPUs": ", ".join(devices) or "none seen by torch",
        "Python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "extras": ", ".join(name for name, module in extras.items() if find_spec(module)) or "none",
    }
    for name, value in rows.items():
        print(f"{name:<17} {value}")
    return 0


def _random(model: str, loss: str, activation: str, dtype: torch.dtype, args: argparse.Namespace) -> Hessian:
    """A Hessian at a random point: x ~ N(0, 1), weights ~ N(0, 1/fan-in), biases ~ N(0, 1/4)."""
    g = torch.Generator().manual_seed(args.seed)
    N, d, m, C = args.samples, args.features, args.hidden, args.classes

    def normal(*shape: int, std: float = 1.0) -> torch.Tensor:
        return (std * torch.randn(*shape, generator=g, dtype=torch.float64)).to(args.device, dtype)

    def bias(size: int) -> torch.Tensor | None:
        return normal(size, std=0.5) if args.bias else None

    x, y = normal(N, d), torch.randint(C, (N,), generator=g).to(args.device)
    if model == "linear":
        H = linear(normal(C, d, std=d**-0.5), x, y, bias=bias(C), loss=loss)
    else:
        W, V = normal(m, d, std=d**-0.5), normal(C, m, std=m**-0.5)
        biases = {"hidden_bias": bias(m), "output_bias": bias(C)}
        H = one_hidden(W, V, x, y, **biases, activation=activation, loss=loss)
    return {"full": lambda: H, "gauss_newton": H.gauss_newton, "residual": H.residual}[args.term]()


def _check(args: argparse.Namespace) -> int:
    """Compare every block of the chosen cases with float64 autograd; 1 if any part is out of tolerance."""
    print(ROW.format("model", "loss", "activation", "dtype", "layers", "blocks", "max abs", "relative", ""))
    failed = count = 0
    for model, loss, activation, dtype in itertools.product(args.model, args.loss, args.activation, args.dtype):
        if model == "linear" and activation != args.activation[0]:
            continue  # it has none: once is enough
        H = _random(model, loss, activation, DTYPES[dtype], args)
        report = autograd.check(H, rtol=args.rtol, seed=args.seed)
        for part in report.parts:
            good = part.max_rel <= report.tolerance
            case = (model, loss, activation if model == "one_hidden" else "-", dtype, " x ".join(part.layers))
            errors = (f"{part.max_abs:.1e}", f"{part.max_rel:.1e}")
            print(ROW.format(*case, part.blocks, *errors, "ok" if good else "FAILED"), flush=True)
            failed, count = failed + (not good), count + 1
    print(f"{count - failed} of {count} parts within tolerance of float64 autograd")
    return int(failed > 0)


def _ratios(args: argparse.Namespace) -> int:
    """Sweep, print the table, write ratios.csv (as it goes), ratios.json and ratios.png."""
    chosen = {name: value for name, value in vars(args).items() if value is not None}
    preset = dict(FIGURES[args.figure])
    if "gamma" in chosen:  # in place of features, unless those are given
        del preset["samples" if "features" in chosen else "features"]
    options = preset | {name: chosen[name] for name in (*FIGURES[None], "gamma", "seed", "workers") if name in chosen}
    if options["case"] in (1, 2):
        if "hidden" in chosen:
            raise ValueError("hidden: a linear model has none; leave out --hidden, or use --case 3 or 4")
        del options["hidden"]
    out = args.out or Path("out", f"figure{args.figure}" if args.figure else f"ratios-case{options['case']}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"out: {out} is a file, expected a folder") from None
    try:
        result = sweep(**options, dtype=DTYPES[args.dtype], path=out / "ratios.csv")
    except KeyboardInterrupt as stopped:
        print(f"\nhessext ratios: {stopped}", file=sys.stderr)
        return 130
    print(result.table())
    _replace(out / "ratios.json", json.dumps(result.summary(), indent=1, allow_nan=False).encode())
    written = ["ratios.csv", "ratios.json"]
    try:
        picture = io.BytesIO()
        plot.ratios(result).savefig(picture, dpi=120, format="png")
        _replace(out / "ratios.png", picture.getvalue())
        written.append("ratios.png")
    except ImportError as error:
        print(f"no picture: {error}")
    print(f"written to {out}: {', '.join(written)}")
    return 0


def _replace(path: Path, content: bytes) -> None:
    """Write a file that is whole at any instant."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _list_of(kind: Callable[[str], float]) -> Callable[[str], object]:
    """Parser of "2,5,10"; one number alone is not a list."""

    def parse(text: str) -> object:
        numbers = [kind(part) for part in text.split(",")]
        return numbers if len(numbers) > 1 else numbers[0]

    parse.__name__ = "number or list"  # in argparse's message
    return parse


def _size(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def _device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"torch cannot use {text!r}: {str(error).splitlines()[0]}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hessext", description="Exact Hessian blocks from closed forms.")
    parser.add_argument("--version", action="version", version=f"hessext {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    info = commands.add_parser("info", help="versions, instruction sets, threads, CUDA, extras")
    info.set_defaults(run=_info)

    check = commands.add_parser(
        "check",
        help="compare all blocks with float64 autograd",
        description="Compares all blocks of random models with float64 autograd. 'max abs' is the largest error of an "
        "entry, 'relative' is ||difference||_F / ||truth||_F of a pair of layers. Exits with 1 if a part fails.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    several = {"nargs": "+", "metavar": "NAME"}
    models, losses = ["linear", "one_hidden"], ["cross_entropy", "mse"]
    check.add_argument("--model", **several, choices=models, default=models, help=" or ".join(models))
    check.add_argument("--loss", **several, choices=losses, default=losses, help=" or ".join(losses))
    check.add_argument("--activation", **several, default=["relu", "gelu"], help="names as in hessext.one_hidden")
    check.add_argument("--dtype", **several, choices=list(DTYPES), default=list(DTYPES), help=" or ".join(DTYPES))
    terms = ["full", "gauss_newton", "residual"]
    check.add_argument("--term", choices=terms, default="full", help="of the Hessian")
    check.add_argument("--bias", action=argparse.BooleanOptionalAction, default=True, help="models with biases")
    for name, value, what in (
        ("samples", 64, "N"),
        ("features", 12, "d"),
        ("hidden", 6, "m, hidden units"),
        ("classes", 5, "C"),
    ):
        check.add_argument(f"--{name}", type=_size, default=value, metavar="K", help=what)
    check.add_argument("--seed", type=int, default=0, metavar="K", help="of the random model")
    check.add_argument("--rtol", type=float, metavar="R", help="instead of 1e-6 (float32) and 1e-12 (float64)")
    check.add_argument("--device", type=_device, default="cpu", help="where hessext computes: cpu, cuda, cuda:1")
    check.set_defaults(run=_check)

    ratios = commands.add_parser(
        "ratios",
        help="mean squared block norms and their ratio over random draws, against C, N, d, m or gamma",
        description="Draws models at initialization and Gaussian data, and compares mean ||H_ii||_F^2, mean "
        "||H_ij||_F^2 and their ratio with the theory. One of the sizes may be a list such as 2,5,10. Draws go to "
        "ratios.csv one by one; the same command continues a run that was cut off, also with more draws or sizes.",
    )
    ratios.add_argument("--figure", type=int, choices=[8, 9], help="of the paper: sets the options below")
    ratios.add_argument("--case", type=int, choices=range(1, 5), help="1, 2: linear, 3, 4: network; MSE, cross-entropy")
    small = FIGURES[None]
    for name, what in (("classes", "C"), ("samples", "N"), ("features", "d"), ("hidden", "m, cases 3 and 4")):
        default = str(small[name]).strip("[]").replace(" ", "")
        ratios.add_argument(f"--{name}", type=_list_of(int), metavar="K", help=f"{what} ({default})")
    ratios.add_argument("--gamma", type=_list_of(float), metavar="G", help="d/N, instead of --features or --samples")
    ratios.add_argument("--draws", type=int, metavar="K", help=f"of each point ({small['draws']})")
    ratios.add_argument("--seed", type=int, metavar="K", help="of all draws (0)")
    ratios.add_argument("--dtype", choices=list(DTYPES), default="float32", help="(float32)")
    ratios.add_argument("--workers", type=int, metavar="K", help="processes (cores)")
    ratios.add_argument("--out", type=Path, metavar="DIR", help="(out/ratios-case2, out/figure8 and so on)")
    ratios.set_defaults(run=_ratios)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 (good), 1 (a check failed), 2 (bad arguments) or 130 (Ctrl-C)."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, MemoryError, OSError) as error:
        print(f"hessext {args.command}: {error}", file=sys.stderr)
        return 2
