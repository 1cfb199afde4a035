"""What ranks tell one another before they exchange anything, and what comes of it: agreement, or one error for all."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor

TEXT = 400  # characters of an error that other ranks see
_TYPES = (ValueError, TypeError, IndexError, KeyError, MemoryError, RuntimeError, torch.linalg.LinAlgError)

Error = list  # [rank, name of the type, text]


def errors_of(headers: list[dict[str, Any]]) -> list[Error]:
    """What ranks have raised, or else on what they disagree."""
    errors = [error for header in headers for error in header["errors"]]
    if errors or all(header["call"] == headers[0]["call"] for header in headers):
        return errors
    operations = {header["call"][0] for header in headers}
    found: dict[str, list[int]] = {}
    for header in headers:
        operation, step, same, *_ = header["call"]
        text = operation if len(operations) > 1 else f"{step} of {same}" if same else step
        found.setdefault(text, []).append(header["rank"])
    what = "; ".join(f"{_named(ranks)}: {text}" for text, ranks in found.items())
    if len(found) == 1:
        one_hessian = len({header["call"][3] for header in headers}) == 1
        other = "other weights, biases or losses, or another Hessian"
        if one_hessian:
            apart = len({header["call"][5] for header in headers}) > 1
            other = "other numbers of exchanges before it" if apart else "other arguments"
        what = f"{_named(found.popitem()[1])}: {other}"
    return [[-1, "RuntimeError", f"expected the same call on all ranks of the group; got {what}"[: 2 * TEXT]]]


def error_of(operation: str, errors: list[Error]) -> Exception:
    """One error for all ranks, of the type of the first one."""
    found: dict[str, set[int]] = {}
    for rank, _, text in errors:
        found.setdefault(text, set()).add(rank)
    parts = [text if -1 in ranks else f"{_named(sorted(ranks))}: {text}" for text, ranks in found.items()]
    kind = next((e for e in _TYPES if e.__name__ == errors[0][1]), RuntimeError)
    return kind(f"{operation}: {'; '.join(parts)}")


def _named(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def fingerprint(value: Any) -> int:
    """A number of arguments, which ranks must have in common."""
    if hasattr(value, "placements"):  # a DTensor, of which each rank has its own
        return zlib.crc32(str((value.shape, value.placements)).encode())
    if isinstance(value, Tensor):
        return checksum(value if value.element_size() > 1 else value.long())
    if isinstance(value, dict):
        value = sorted(value.items())
    if isinstance(value, list | tuple):
        return zlib.crc32(str([fingerprint(one) for one in value]).encode())
    simple = value is None or isinstance(value, str | int | float)
    return zlib.crc32(repr(value if simple else type(value).__name__).encode())


def checksum(*tensors: Tensor | None) -> int:
    """A number of the bits of tensors, the same wherever they are."""
    result = 0
    for t in tensors:
        if t is None:
            continue
        flat = t.detach().reshape(-1)
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
        if not flat.numel() * flat.element_size() % 8 and not flat.storage_offset() * flat.element_size() % 8:
            bits = torch.int64
        for k, some in enumerate(flat.view(bits).split(1 << 21)):
            place = torch.arange(1, len(some) + 1, device=some.device)
            result = (result * 1000003 + place.mul_(some).sum().item() + k) % (1 << 62)
    return result
