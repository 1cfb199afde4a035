"""Memory that knows what exists, what has been written, and by whom.

Addresses of global memory are not this process's: buffer k begins at (k + 1) 2^36, so that an access beyond the end of
one never reaches another, and host code that reads device memory crashes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from .faults import Faults

EXISTS, WRITTEN = 1, 2
BUFFER_BITS = 36
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_EVERY = {size: int.from_bytes(b"\x01" * size, "little") for size in _UNSIGNED}


class Bytes:
    """Data and, of each byte, whether it exists and has been written."""

    def __init__(self, data: np.ndarray, state: np.ndarray) -> None:
        self._data, self._state = data, state
        self._views: dict[np.dtype, tuple[np.ndarray, np.ndarray]] = {}

    def _as(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        if dtype not in self._views:
            whole = len(self._data) // dtype.itemsize * dtype.itemsize
            views = self._data[:whole].view(dtype), self._state[:whole].view(_UNSIGNED[dtype.itemsize])
            self._views[dtype] = views
        return self._views[dtype]

    def _places(self, offsets: np.ndarray, dtype: np.dtype, faults: Faults) -> tuple[np.ndarray, np.ndarray, int]:
        """Number of each element, its state (0 where it does not exist), and the state of one that exists."""
        _, state = self._as(dtype)
        if (offsets % dtype.itemsize).any():
            faults.add("misaligned", np.count_nonzero(offsets % dtype.itemsize))
        places = offsets // dtype.itemsize
        inside = (places >= 0) & (places < len(state))
        if inside.all():
            states = state[places]
        else:
            places = np.where(inside, places, 0)
            states = np.where(inside, state[places], 0) if len(state) else np.zeros(len(places), state.dtype)
        exists = _EVERY[dtype.itemsize]
        outside = np.count_nonzero((states & exists) != exists)
        if outside:
            faults.add("out of bounds", outside)
        return places, states, exists

    def read(self, offsets: np.ndarray, dtype: np.dtype, faults: Faults) -> np.ndarray:
        """Elements at byte offsets; 0 outside."""
        places, states, exists = self._places(offsets, dtype, faults)
        unwritten = np.count_nonzero(((states & exists) == exists) & (states != 3 * exists))
        if unwritten:
            faults.add("reads what nobody has written", unwritten)
        data, _ = self._as(dtype)
        return data[places] if len(data) else np.zeros(len(places), dtype)

    def write(self, offsets: np.ndarray, values: np.ndarray, faults: Faults, state: int = EXISTS | WRITTEN) -> None:
        """Leaves elements in this state; none outside."""
        places, states, exists = self._places(offsets, values.dtype, faults)
        inside = (states & exists) == exists
        if not inside.all():
            places, values = places[inside], values[inside]
        data, marks = self._as(values.dtype)
        data[places] = values
        marks[places] = state * exists


class Buffer(Bytes):
    """A tensor's storage, or workspace. Within a launch what one thread has written belongs to it."""

    def __init__(self, data: np.ndarray, state: np.ndarray) -> None:
        super().__init__(data, state)
        self._writer = np.zeros(-(-len(data) // 4) + 2, np.int64)  # of each word: launch 2^32 + thread

    def read_by(self, threads: np.ndarray, offsets: np.ndarray, dtype: np.dtype, faults: Faults) -> np.ndarray:
        """`read`, by threads of one launch, numbered launch 2^32 + thread."""
        writers = self._writer[np.clip(offsets >> 2, 0, len(self._writer) - 1)]
        others = ((writers >> 32) == (threads >> 32)) & (writers != threads)
        if others.any():
            faults.add("reads what another thread of the launch writes", np.count_nonzero(others))
        return self.read(offsets, dtype, faults)

    def write_by(self, threads: np.ndarray, offsets: np.ndarray, values: np.ndarray, faults: Faults) -> None:
        """`write`, by such threads; a second one may only write the same value."""
        words = np.clip(offsets >> 2, 0, len(self._writer) - 1)
        writers = self._writer[words]
        others = ((writers >> 32) == (threads >> 32)) & (writers != threads)
        if others.any():
            before = self.read(offsets[others], values.dtype, faults)
            unsigned = _UNSIGNED[values.dtype.itemsize]
            differ = np.count_nonzero(before.view(unsigned) != values[others].view(unsigned))
            if differ:
                faults.add("writes what another thread of the launch has written", differ)
        self.write(offsets, values, faults)
        self._writer[words] = threads
        if (self._writer[words] != threads).any():  # the last of several lanes has won
            lost = self._writer[words] != threads
            if (self.read(offsets[lost], values.dtype, faults) != values[lost]).any():
                faults.add("several lanes write one place", np.count_nonzero(lost))


class Memory:
    """The global memory of one call: the tensors that it is given, and workspace."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._buffers: list[Buffer] = []
        self._of_storage: dict[int, int] = {}
        self._states: list[np.ndarray] = []
        self.launches = 0

    def _new(self, data: np.ndarray) -> int:
        self._states.append(np.zeros(len(data), np.uint8))
        self._buffers.append(Buffer(data, self._states[-1]))
        return len(self._buffers) - 1

    def allocate(self, size: int) -> int:
        """Address of new memory, which nobody has written."""
        number = self._new(np.full(-(-size // 16) * 16, 0xFF, np.uint8))
        self._states[number][:size] = EXISTS
        return (number + 1) << BUFFER_BITS

    def address(self, tensor: torch.Tensor) -> int:
        """Of a tensor's first element. Its own elements exist and nothing else; where torch fills new memory
        (`use_deterministic_algorithms`), elements that hold what it fills with have not been written.
        """
        if not tensor.numel():
            return 0
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._of_storage:
            data = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
            self._of_storage[storage.data_ptr()] = self._new(data)
        number = self._of_storage[storage.data_ptr()]
        size = tensor.element_size()
        filled = tensor.isnan() if tensor.is_floating_point() else tensor == torch.iinfo(tensor.dtype).max
        state = self._states[number].view(_UNSIGNED[size])[tensor.storage_offset() :]
        mine = np.lib.stride_tricks.as_strided(state, tensor.shape, [s * size for s in tensor.stride()])
        mine |= np.where(filled.numpy(), EXISTS * _EVERY[size], (EXISTS | WRITTEN) * _EVERY[size]).astype(state.dtype)
        return ((number + 1) << BUFFER_BITS) + tensor.storage_offset() * size

    def _parts(self, addresses: np.ndarray) -> Iterator[tuple[Buffer | None, np.ndarray | slice, np.ndarray]]:
        """(buffer, which accesses, their offsets) for each buffer that is accessed; None where there is none."""
        numbers = (addresses >> BUFFER_BITS) - 1
        groups = [numbers[0]] if (numbers == numbers[0]).all() else np.unique(numbers)
        for number in groups:
            which = slice(None) if len(groups) == 1 else numbers == number
            known = 0 <= number < len(self._buffers)
            if not known:
                self._faults.add("out of bounds: no buffer is there", np.count_nonzero(numbers == number))
            yield self._buffers[number] if known else None, which, addresses[which] & ((1 << BUFFER_BITS) - 1)

    def read(self, threads: np.ndarray, addresses: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Elements at addresses, by threads numbered as in `Buffer.read_by`."""
        values = np.zeros(len(addresses), dtype)
        for buffer, which, offsets in self._parts(addresses):
            if buffer:
                values[which] = buffer.read_by(threads[which], offsets, dtype, self._faults)
        return values

    def write(self, threads: np.ndarray, addresses: np.ndarray, values: np.ndarray) -> None:
        """The same way round."""
        for buffer, which, offsets in self._parts(addresses):
            if buffer:
                buffer.write_by(threads[which], offsets, values[which], self._faults)
