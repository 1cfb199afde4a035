"""How much memory is free, asked before it is taken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from . import _core

_HUGE = 8 << 20  # bytes of a tensor whose pages are worth a word with the system
_ALWAYS_FREE = 64 << 20  # bytes not worth asking the system for
_BESIDE = 1 << 30  # bytes left to what has to be there
_MEMINFO, _OWN_CGROUPS, _CGROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def require(bytes_needed: int, what: str, device: torch.device | str = "cpu") -> None:
    """Raise MemoryError if `what` needs more bytes than are free on the device."""
    if bytes_needed <= _ALWAYS_FREE:
        return
    device = torch.device(device)
    free = _free(device, bytes_needed)
    if bytes_needed > free:
        gib = 1 << 30
        needed = min(bytes_needed, 1 << 1000) / gib  # more is no float
        raise MemoryError(
            f"{what} needs {bytes_needed:,} bytes ({needed:,.1f} GiB), but {free:,} bytes "
            f"({free / gib:,.1f} GiB) are free on {device}"
        )


def spare(bytes_wanted: int, device: torch.device, processes: int = 1) -> bool:
    """Whether bytes that only save time are a quarter of what is free beyond 1 GiB, or of its share for a process."""
    if bytes_wanted <= _ALWAYS_FREE:
        return True
    share = 4 if device.type == "cuda" else 4 * processes
    return bytes_wanted * share + _BESIDE <= _free(device, bytes_wanted * share + _BESIDE)


def _free(device: torch.device, enough: int) -> int:
    return _free_on_gpu(device, enough) if device.type == "cuda" else _free_on_host()


def in_huge_pages(t: Tensor) -> Tensor:
    """Return t, whose memory is fresh, in huge pages if the system has them: filling it then waits for fewer faults."""
    if t.is_cpu and t.nbytes >= _HUGE:
        _core.advise_huge_pages(t, t.nbytes)
    return t


def _free_on_gpu(device: torch.device, enough: int) -> int:
    """What torch holds and does not use, and the rest, if that is not enough: the driver takes long to say."""
    stats = torch.cuda.memory_stats_as_nested_dict(device)  # empty before the first tensor
    held, used = (stats[f"{state}_bytes"]["all"]["current"] if stats else 0 for state in ("reserved", "allocated"))
    return held - used + (torch.cuda.mem_get_info(device)[0] if held - used < enough else 0)


def _free_on_host() -> int:
    return max(0, min((_free_in_system(), *_free_in_cgroups())))


def _free_in_system() -> int:
    try:
        return _numbers(_MEMINFO)["MemAvailable:"] * 1024
    except (OSError, KeyError):
        pass
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        try:
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            continue
    return 1 << 62  # unknown: let the allocation itself decide


def _free_in_cgroups() -> Iterator[int]:
    """Yield what each limit on this process or on a group around it leaves; the page cache counts as free."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, limit, usage, cache = _CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif controllers == "memory":  # version 1
            root, limit, usage = _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            try:
                free = int((group / limit).read_text()) - int((group / usage).read_text())
                yield free + _numbers(group / "memory.stat").get(cache, 0)
            except (OSError, ValueError):  # no limit ("max"), or the group is not mounted here
                continue


def _numbers(path: Path) -> dict[str, int]:
    """Map the first word of every line to the number after it."""
    return {line.split()[0]: int(line.split()[1]) for line in path.read_text().splitlines()}
