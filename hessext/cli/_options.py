"""What several commands' options have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from hessext import Hessian

FAILURES = (ValueError, TypeError, ImportError, MemoryError, OSError)  # said in a line, without a traceback
DTYPES = {"float32": torch.float32, "float64": torch.float64}
TERMS = ("full", "gauss_newton", "residual")


def list_of(kind: Callable[[str], float]) -> Callable[[str], object]:
    """Parser of "2,5,10"; one number alone is not a list."""

    def parse(text: str) -> object:
        numbers = [kind(part) for part in text.split(",")]
        return numbers if len(numbers) > 1 else numbers[0]

    parse.__name__ = "number or list"  # in argparse's message
    return parse


def of_term(H: Hessian, term: str) -> Hessian:
    """The full Hessian as it is, or one of its terms."""
    return H if term == "full" else getattr(H, term)()


def size(text: str) -> int:
    """Parse an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def device(text: str) -> torch.device:
    """Parse a device that torch can use."""
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"torch cannot use {text!r}: {str(error).splitlines()[0]}") from None
