"""Seeded random numbers."""

from __future__ import annotations

import hashlib

import torch

from ._checks import count


def generator(stream: str, seed: int) -> torch.Generator:
    """Random numbers of a stream's own: one seed must not make weights of the very numbers that the data are made of.

    Nor of those of torch.manual_seed(seed), which may be the user's weights.
    """
    digest = hashlib.blake2b(f"{stream} {count('seed', seed, None)}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))  # of a seed it takes 32 bits


def lecun(*shapes: tuple[int, int], seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Weights at initialization: N(0, 1 / fan-in) of each shape (out, in), drawn in float32 for either dtype."""
    g = generator("weights", seed)
    return [(torch.randn(*shape, generator=g) / shape[1] ** 0.5).to(dtype) for shape in shapes]
