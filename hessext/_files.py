"""Files that are whole at any instant."""

from __future__ import annotations

import os
from pathlib import Path


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
