"""Ranks of gloo that run all cases of one size of the world, started once: `python world.py SIZE RESULTS [NAME ...]`.

RESULTS gets, for each case, what went wrong on each rank, or None.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers import rank_cases, rank_faults  # noqa: F401  # which register their cases
from helpers.ranks import CASES


def run(rank: int, size: int, folder: Path, names: list[str]) -> None:
    """One rank: every case in its order."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    found = {}
    for name, (sizes, case) in CASES.items():
        if size not in sizes or (names and not any(name.startswith(n) for n in names)):
            continue
        start = time.perf_counter()
        try:
            case()
            error = None
        except ImportError as missing:  # of an old torch
            error = f"skipped: {missing}"
        except (Exception, pytest.fail.Exception):  # the latter is no Exception
            error = traceback.format_exc()
        found[name] = error, time.perf_counter() - start
        (folder / f"{rank}.json").write_text(json.dumps(found))  # a case may end this rank


def main() -> None:
    """Fork the ranks: each has imported what it needs, and no threads run yet."""
    size, folder = int(sys.argv[1]), Path(sys.argv[2])
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            torch.set_num_threads(1)
            try:
                run(rank, size, folder, sys.argv[3:])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
