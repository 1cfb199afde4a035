"""The finished draws, in memory and on disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from .draws import CASES, Row, Task

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

_READERS: dict[str, Callable] = dict.fromkeys(Row._fields, int)
_READERS |= dict.fromkeys(("dtype", "layer", "instruction_set", "torch_version"), str)
_READERS |= {"diagonal": float, "off_diagonal": float, "ratio": float}
_READERS |= dict.fromkeys(("expected_diagonal", "expected_off_diagonal"), lambda text: float(text) if text else None)


def _line(values: Iterable[object]) -> bytes:
    return (",".join("" if value is None else str(value) for value in values) + "\n").encode()


def _parse(line: bytes) -> Row:
    texts = line.decode().split(",")
    return Row(*(read(text) for read, text in zip(_READERS.values(), texts, strict=True)))


class Log:
    """The rows of all finished draws. With a path they are those of a CSV file, which one process at a time may open.

    Raises FileNotFoundError, IsADirectoryError, BlockingIOError; ValueError where the file holds something else.
    """

    def __init__(self, path: Path | None, example: Task) -> None:
        self.path, self.file = path, None
        self.rows: dict[tuple[Task, str], Row] = {}
        self.machines: set[tuple[str, str]] = set()  # on which the rows were computed
        if path is None:
            return
        if not path.parent.is_dir():
            raise FileNotFoundError(f"path: expected a file in a folder that exists; got {path}")
        if path.is_dir():
            raise IsADirectoryError(f"path: expected a file; got the folder {path}")
        self.file = path.open("a+b")
        try:
            self._lock()
            self._read(example)
        except BaseException:
            self.close()
            raise

    def __contains__(self, task: Task) -> bool:
        return all((task, layer) in self.rows for layer in CASES[task.case].layers)

    def add(self, rows: Iterable[Row]) -> None:
        """Add new rows; they are on disk when this returns."""
        new = {(row.task, row.layer): row for row in rows}
        new = {key: row for key, row in new.items() if key not in self.rows}  # a kill may have left one layer of two
        self._write(map(_line, new.values()))
        self.rows |= new
        self._note({row.machine for row in new.values()})

    def _note(self, machines: set[tuple[str, str]]) -> None:
        """Warn if these machines bring rows whose bits may differ from those of the others."""
        before, self.machines = self.machines, self.machines | machines
        if len(self.machines) > max(1, len(before)):
            kinds = " and of ".join(f"{isa} with torch {version}" for isa, version in sorted(self.machines))
            what = f"draws in {self.path}" if self.path else "draws"
            warnings.warn(f"{what} are of {kinds}: last bits of a draw differ between these", stacklevel=2)

    def close(self) -> None:
        """Close the file, which unlocks it."""
        if self.file is not None:
            self.file.close()

    def _write(self, lines: Iterable[bytes]) -> None:
        if self.file is not None:
            self.file.write(b"".join(lines))
            self.file.flush()
            os.fsync(self.file.fileno())

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, in any way
        except BlockingIOError:
            raise BlockingIOError(f"path: another run is writing to {self.path}") from None

    def _read(self, example: Task) -> None:
        """Read the rows of the file. What follows the last newline is cut off; every other line must be whole."""
        self.file.seek(0)
        content = self.file.read()
        *lines, torn = content.split(b"\n")
        header = _line(Row._fields)
        if not content or (content.startswith(b"case") and header.startswith(content)):  # a torn header of ours
            self.file.truncate(0)
            self._write([header])
            return
        if lines[:1] != [header.rstrip()]:
            raise ValueError(f"path: expected a file of hessext.sweep, of this version; got {self.path}")
        for number, line in enumerate(lines[1:], 2):
            try:
                row = _parse(line)
            except ValueError as error:
                raise ValueError(f"path: line {number} of {self.path} is damaged: {error}") from None
            if row.task[:3] != example[:3]:
                there, here = (f"case {case}, seed {seed}, {dtype}" for case, seed, dtype, *_ in (row.task, example))
                raise ValueError(f"path: {self.path} holds {there}; got {here}, which needs another file")
            self.rows[row.task, row.layer] = row
            self.machines.add(row.machine)
        self.file.truncate(len(content) - len(torn))
