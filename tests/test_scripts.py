"""Scripts that need a machine of another kind, with stand-ins for its commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def stand_in(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_registers_are_those_of_the_core_that_is_used(tmp_path):
    """It is in no folder of the sources where the package is installed as editable."""
    core = tmp_path / "elsewhere" / "_core.so"
    python = stand_in(tmp_path, "python", f'[ "$1" != -c ] || echo {core}')
    stand_in(tmp_path, "cuobjdump", 'echo "$@"')
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(python)}
    command = [str(ROOT / "scripts" / "gpu"), str(tmp_path / "out"), "registers"]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=60)
    assert (tmp_path / "out" / "registers.txt").read_text() == f"--dump-resource-usage {core}\n"


def test_ptx_says_what_is_missing(tmp_path):
    """Without nvcc, and without a wheel that has one."""
    environment = {
        **os.environ,
        "PATH": str(tmp_path),
        "PYTHONPATH": f"{ROOT / 'tests'}:{os.environ.get('PYTHONPATH', '')}",
    }
    code = "import sysconfig; sysconfig.get_path = lambda *_: '/nowhere'; from ptx import build; print(build.missing())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, cwd=ROOT)
    assert done.stdout == "nvcc is not found.\n", done.stderr
