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


def folder(name: str, path: str | os.PathLike) -> Path:
    """Return the folder, made if need be. Raises ValueError, naming the argument, where it is a file."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{name}: {path} is a file, expected a folder") from None
    return path
