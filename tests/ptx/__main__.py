"""./scripts/ptx: the table, and everything that is wrong."""

from __future__ import annotations

import argparse
import sys
import time

from . import build, report

_EVERY = "75 80 86 89 90 100 120"


def main() -> int:
    """The exit status: 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="scripts/ptx", description=__doc__)
    parser.add_argument("architectures", nargs="*", help="compute capabilities without a dot (default: 80 90)")
    parser.add_argument("--all", action="store_true", help=f"those that are built: {_EVERY}")
    arguments = parser.parse_args()
    if missing := build.missing():
        print(f"scripts/ptx: {missing}", file=sys.stderr)
        return 1
    begin = time.monotonic()
    reports = report.run_all(_EVERY.split() if arguments.all else arguments.architectures or ["80", "90"])
    print(report.HEADER, *(line for found in reports.values() for line in found.table), sep="\n")
    print(f"\n{report.LEGEND}\n")
    problems = [f"compute_{name}: {line}" for name, found in reports.items() for line in found.problems]
    print(*problems, f"{len(problems)} problems, {time.monotonic() - begin:.0f} s", sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
