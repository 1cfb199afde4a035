"""The slow truth: the same Hessian through torch.func, used to check the closed forms. No compiled code runs here."""

from ._check import check
from ._dense import hessian
from ._report import CheckReport, PartError

__all__ = ["CheckReport", "PartError", "check", "hessian"]
