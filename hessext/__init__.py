"""Exact Hessian blocks of linear models and one-hidden-layer networks, from closed forms."""

from . import _core, autograd, plot
from ._api import hessian, linear, one_hidden
from ._blocks import BlockMatrix
from ._hessian import Hessian
from ._norms import BlockRatio

__version__ = _core.__version__
__all__ = ["BlockMatrix", "BlockRatio", "Hessian", "autograd", "hessian", "linear", "one_hidden", "plot"]
