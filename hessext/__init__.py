"""Exact Hessian blocks of feed-forward networks and of single layers of any network, from closed forms."""

import torch  # noqa: F401  # first: the core takes the OpenMP runtime (libgomp.so.1) that torch has loaded

try:
    from . import _core
except ImportError as error:
    raise ImportError(
        f"hessext's compiled core cannot be loaded from {__path__[0]} ({error}). If this is the source tree: run from "
        "another folder to use an installed hessext, or compile it here with `pip install -e .` or `./scripts/env`."
    ) from error

from importlib import import_module

from . import _saved, autograd, datasets, plot
from ._api import feed_forward, hessian, linear, one_hidden
from ._layer import head, layer
from ._progress import progress
from .matrix.block_matrix import BlockMatrix
from .matrix.hessian import Hessian
from .matrix.kronecker import NearestKronecker
from .matrix.results import Approximation, Approximations, BlockRatio, CurvatureParts, PreconditionedSpectrum, RowNorms
from .model.loss_arguments import UnnormalizedCrossEntropyLoss
from .sweeps.sweep import sweep

__version__ = _core.__version__
_saved.allow()


def __getattr__(name: str) -> object:
    if name in ("figures", "theory"):  # theory imports scipy, which takes a second
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})


__all__ = [
    "Approximation",
    "Approximations",
    "BlockMatrix",
    "BlockRatio",
    "CurvatureParts",
    "Hessian",
    "NearestKronecker",
    "PreconditionedSpectrum",
    "RowNorms",
    "UnnormalizedCrossEntropyLoss",
    "autograd",
    "datasets",
    "feed_forward",
    "figures",
    "head",
    "hessian",
    "layer",
    "linear",
    "one_hidden",
    "plot",
    "progress",
    "sweep",
    "theory",
]
