"""Ranks of torch.distributed beside one process: every case in one start of ranks per world size."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from helpers import rank_cases, rank_faults  # noqa: F401  # which register their cases
from helpers.ranks import BOTH, CASES

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available() and hasattr(os, "fork")), reason="needs gloo and fork"
)
NAMES = [(size, name) for size in BOTH for name, (sizes, _) in CASES.items() if size in sizes]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What went wrong, by size of the world, rank and case."""
    results = {}
    for size in BOTH:
        folder = tmp_path_factory.mktemp(f"world{size}")
        python = [sys.executable, *(["-S"] if sys.flags.no_site else [])]
        arguments = [*python, str(Path(__file__).parent / "world.py"), str(size), str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with subprocess.Popen(arguments, env=environment, start_new_session=True) as world:
            try:
                world.wait(timeout=600)
            finally:  # the ranks, too
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(world.pid, signal.SIGKILL)
        results[size] = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
    return results


@pytest.mark.parametrize(("size", "name"), NAMES)
def test_case(found, size, name):
    errors = {rank: results[name][0] for rank, results in enumerate(found[size]) if results[name][0]}
    if any(error.startswith("skipped") for error in errors.values()):
        pytest.skip(errors[0])
    assert not errors, "\n".join(f"rank {rank}: {error}" for rank, error in errors.items())
