"""The same Hessian through torch.func, slow, to check the closed forms with. No compiled code runs here."""

from ._check import check
from ._dense import hessian
from ._report import CheckReport, PartError

__all__ = ["CheckReport", "PartError", "check", "hessian"]
