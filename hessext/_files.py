"""Files that are whole at any instant."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def replace(path: Path, content: bytes) -> None:
    """Write a file; whoever looks, also after a kill, finds the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def csv_of(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A table as CSV; a column for each name that a row has."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def path_of(name: str, path: str | os.PathLike) -> Path:
    """Return a path. Raises TypeError, ValueError, naming the argument, for what is none."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{name}: expected a path; got {path!r}")
    if "\0" in os.fspath(path):
        raise ValueError(f"{name}: expected a path without null characters; got {path!r}")
    return Path(path)


def folder(name: str, path: str | os.PathLike) -> Path:
    """Return the folder, made if need be. Raises ValueError, naming the argument, where it is a file."""
    path = path_of(name, path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{name}: expected a folder; got {path}, which is a file or in one") from None
    return path
