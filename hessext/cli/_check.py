"""`hessext check`."""

from __future__ import annotations

import argparse
import itertools

import torch

from hessext import Hessian, autograd, linear, one_hidden

from ._options import DTYPES, TERMS, device, of_term, size

ROW = "{:<11} {:<13} {:<11} {:<8} {:<16} {:>8} {:>8} {:>9}  {}"


def _random(model: str, loss: str, activation: str, dtype: torch.dtype, args: argparse.Namespace) -> Hessian:
    """A Hessian at a random point: x ~ N(0, 1), weights ~ N(0, 1/fan-in), biases ~ N(0, 1/4)."""
    g = torch.Generator().manual_seed(args.seed)
    N, d, m, C = args.samples, args.features, args.hidden, args.classes
    labels, C = (2, 1) if loss == "binary_cross_entropy" else (C, C)

    def normal(*shape: int, std: float = 1.0) -> torch.Tensor:
        return (std * torch.randn(*shape, generator=g, dtype=torch.float64)).to(args.device, dtype)

    def bias(size: int) -> torch.Tensor | None:
        return normal(size, std=0.5) if args.bias else None

    x, y = normal(N, d), torch.randint(labels, (N,), generator=g).to(args.device)
    if model == "linear":
        H = linear(normal(C, d, std=d**-0.5), x, y, bias=bias(C), loss=loss)
    else:
        W, V = normal(m, d, std=d**-0.5), normal(C, m, std=m**-0.5)
        biases = {"hidden_bias": bias(m), "output_bias": bias(C)}
        H = one_hidden(W, V, x, y, **biases, activation=activation, loss=loss)
    return of_term(H, args.term)


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


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command's parser."""
    check = commands.add_parser(
        "check",
        help="compare all blocks with float64 autograd",
        description="Compares all blocks of random models with float64 autograd. 'max abs' is the largest error of an "
        "entry, 'relative' is ||difference||_F / ||truth||_F of a pair of layers. Exits with 1 if a part fails.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    several = {"nargs": "+", "metavar": "NAME"}
    models, losses = ["linear", "one_hidden"], ["cross_entropy", "mse", "binary_cross_entropy"]
    check.add_argument("--model", **several, choices=models, default=models, help=" or ".join(models))
    check.add_argument("--loss", **several, choices=losses, default=losses[:2], help=" or ".join(losses))
    check.add_argument("--activation", **several, default=["relu", "gelu"], help="names as in hessext.one_hidden")
    check.add_argument("--dtype", **several, choices=list(DTYPES), default=list(DTYPES), help=" or ".join(DTYPES))
    check.add_argument("--term", choices=TERMS, default="full", help="of the Hessian")
    check.add_argument("--bias", action=argparse.BooleanOptionalAction, default=True, help="models with biases")
    for name, value, what in (
        ("samples", 64, "N"),
        ("features", 12, "d"),
        ("hidden", 6, "m, hidden units"),
        ("classes", 5, "C"),
    ):
        check.add_argument(f"--{name}", type=size, default=value, metavar="K", help=what)
    check.add_argument("--seed", type=int, default=0, metavar="K", help="of the random model")
    check.add_argument("--rtol", type=float, metavar="R", help="instead of 1e-6 (float32) and 1e-12 (float64)")
    check.add_argument("--device", type=device, default="cpu", help="where hessext computes: cpu, cuda, cuda:1")
    check.set_defaults(run=_check)
