"""Every kernel's PTX, run without a GPU: the truth is met, and nothing is found."""

from __future__ import annotations

from functools import cache

import pytest

from . import build, report

pytestmark = pytest.mark.skipif(bool(build.missing()), reason=build.missing())
ARCHITECTURES = "80", "90"


@cache
def reports():
    return report.run_all(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels(architecture):
    """Failures of cases, faults, kernels that were not run."""
    assert reports()[architecture].problems == []


def test_the_table_has_every_kernel():
    for found in reports().values():
        assert len(found.table) > 50
