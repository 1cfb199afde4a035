"""The slow truth: the same Hessian through torch.func, used to check the closed forms. No compiled code runs here."""

from ._check import check
from ._report import CheckReport, PartError
from ._truth import hessian

__all__ = ["CheckReport", "PartError", "check", "hessian"]
