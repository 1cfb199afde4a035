"""Shared memory of the blocks of a launch: bounds, what has been written, races, bank conflicts.

Accesses of two threads to one word, one of them a write, are in order only if a barrier of the block lies between
them, or a __syncwarp where both are of one warp.
"""

from __future__ import annotations

import numpy as np

from .faults import Faults
from .memory import EXISTS, WRITTEN, Bytes

BASE = 1 << 12  # address of the dynamic shared memory
_NOBODY, _SEVERAL = -1, -2


class Shared:
    """`size` bytes for each of `blocks`, `threads` threads each. Threads and warps are numbered through all blocks."""

    def __init__(self, blocks: int, threads: int, size: int, faults: Faults) -> None:
        self._size, self._stride = size, -(-size // 16) * 16
        self._threads, self._faults = threads, faults
        state = np.zeros((blocks, self._stride), np.uint8)
        state[:, :size] = EXISTS
        self._bytes = Bytes(np.full(blocks * self._stride, 0xFF, np.uint8), state.reshape(-1))
        words = blocks * self._stride // 4 + 1
        self._writer = np.full(words, _NOBODY)
        self._written = np.full((2, words), -1)  # at which barrier of the block, at which __syncwarp
        self._reader, self._reading_warp = np.full(words, _NOBODY), np.full(words, _NOBODY)
        self._read = np.full((2, words), -1)
        self.barriers = np.zeros(blocks, np.int64)
        self.warp_barriers = np.zeros(blocks * threads // 32, np.int64)

    def _offsets(self, threads: np.ndarray, addresses: np.ndarray, size: int) -> np.ndarray:
        """In all blocks' memory; outside of it where an address is outside of its block's."""
        offsets = addresses - BASE
        inside = (offsets >= 0) & (offsets + size <= self._size)
        return np.where(inside, offsets + threads // self._threads * self._stride, -1 << 20)

    def _words(self, threads: np.ndarray, offsets: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(threads, words) that an access touches."""
        inside = offsets >= 0
        if not inside.all():
            threads, offsets = threads[inside], offsets[inside]
        return [(threads, offsets // 4 + extra) for extra in range(max(1, size // 4))]

    def read(self, threads: np.ndarray, addresses: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Elements at addresses of each thread's block."""
        offsets = self._offsets(threads, addresses, dtype.itemsize)
        for readers, words in self._words(threads, offsets, dtype.itemsize):
            self._reads(readers, words)
        return self._bytes.read(offsets, dtype, self._faults)

    def write(self, threads: np.ndarray, addresses: np.ndarray, values: np.ndarray, arrived: bool = True) -> None:
        """Writes them; not `arrived`: they are on their way (cp.async), and whoever reads them reads rubbish."""
        size = values.dtype.itemsize
        offsets = self._offsets(threads, addresses, size)
        for writers, words in self._words(threads, offsets, size):
            self._writes(writers, words)
        self._bytes.write(offsets, values, self._faults, EXISTS | WRITTEN if arrived else EXISTS)

    def _unordered(self, threads: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Whether the last write of a word is another thread's, with nothing that puts them in order."""
        writer, warps = self._writer[words], threads // 32
        now = self._written[0, words] == self.barriers[threads // self._threads]
        same_warp = (writer // 32 != warps) | (self._written[1, words] == self.warp_barriers[warps])
        return (writer != _NOBODY) & now & (writer != threads) & same_warp

    def _reads(self, threads: np.ndarray, words: np.ndarray) -> None:
        races = self._unordered(threads, words)
        if races.any():
            self._faults.add("race: read after write", np.count_nonzero(races))
        warps = threads // 32
        barriers, warp_barriers = self.barriers[threads // self._threads], self.warp_barriers[warps]
        earlier = self._read[0, words] == barriers  # since the same barrier of the block
        by_others = earlier & (self._reading_warp[words] != warps)
        both = earlier & (self._read[1, words] == warp_barriers) & (self._reader[words] != threads)
        self._reading_warp[words] = np.where(by_others, _SEVERAL, warps)
        self._reader[words] = np.where(both, _SEVERAL, threads)
        # lanes that read one word together
        self._reader[words[self._reader[words] != threads]] = _SEVERAL
        self._reading_warp[words[self._reading_warp[words] != warps]] = _SEVERAL
        self._read[0, words], self._read[1, words] = barriers, warp_barriers

    def _writes(self, threads: np.ndarray, words: np.ndarray) -> None:
        races = self._unordered(threads, words)
        if races.any():
            self._faults.add("race: write after write", np.count_nonzero(races))
        warps = threads // 32
        now = self._read[0, words] == self.barriers[threads // self._threads]
        lanes = (self._reader[words] != threads) & (self._read[1, words] == self.warp_barriers[warps])
        races = now & ((self._reading_warp[words] != warps) | lanes)
        if races.any():
            self._faults.add("race: write after read", np.count_nonzero(races))
        self._writer[words] = threads
        lost = self._writer[words] != threads
        if lost.any():
            self._faults.add("race: several lanes write one word", np.count_nonzero(lost))
        self._written[0, words] = self.barriers[threads // self._threads]
        self._written[1, words] = self.warp_barriers[warps]


def wavefronts(threads: np.ndarray, addresses: np.ndarray, size: int) -> tuple[int, int]:
    """How often the 32 banks are accessed, and how often they must be, for `size` bytes of each thread of warps."""
    lanes = 32 * 4 // max(size, 4)  # that are served together
    group = threads // 32 * 32 + threads % 32 // lanes
    words = (addresses // 4)[:, None] + np.arange(max(1, size // 4))
    keys = np.unique(np.stack([np.repeat(group, words.shape[1]), words.reshape(-1)]), axis=1)
    banks = keys[0] * 32 + keys[1] % 32
    places, counts = np.unique(banks, return_counts=True)
    groups, first = np.unique(places // 32, return_index=True)
    return int(np.maximum.reduceat(counts, first).sum()), len(groups)
