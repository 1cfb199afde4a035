"""The examples of several ranks, started by torchrun as users do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

FOLDER = Path(__file__).parent.parent.parent / "examples"
pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")


def torchrun(*arguments: str) -> str:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_samples():
    found = torchrun(str(FOLDER / "ranks_samples.py"), "--samples", "60")
    assert "trace" in found
    assert "K-FAC" in found


def test_classes():
    if not hasattr(pytest.importorskip("torch.distributed.tensor"), "DTensor"):
        pytest.skip("needs torch 2.5")
    sizes = ("--classes", "301", "--features", "16", "--samples", "40")
    assert "rows here: 151 of 301" in torchrun(str(FOLDER / "ranks_classes.py"), *sizes)
