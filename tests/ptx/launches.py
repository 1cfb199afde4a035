"""Launches as the host code of csrc/cuda makes them, executed from PTX.

A `Device` stands in for the compiled core that `hessext._ops` calls: tensors on the CPU are taken for a GPU's. Which
kernels are launched, with what grid, memory and arguments, the core's own host code says, compiled by `build`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from hessext import _ops

from . import machine
from .faults import Faults
from .memory import Memory
from .parse import Kernel, short


class Address:
    """A tensor of the device, as the core asks for it."""

    def __init__(self, address: int) -> None:
        self._address = address

    def data_ptr(self) -> int:
        """Of its first element."""
        return self._address


class Device:
    """Runs the kernels of one architecture."""

    def __init__(self, host: ModuleType, kernels: dict[str, Kernel], architecture: str = "90") -> None:
        self.programs = {name: machine.Program(kernel) for name, kernel in kernels.items()}
        self.faults = Faults()
        # Every kernel is to be run: a device that uses tensor cores for both types, where the code has them.
        self._host, self._architecture = host, 90 if int(architecture) >= 80 else int(architecture)

    def __getattr__(self, operation: str) -> Callable:
        """An operation of the core: its tensors become memory of the device for one call."""
        call = getattr(self._host, operation)

        def run(*arguments: Any) -> Any:
            self._memory = Memory(self.faults)
            stream = self._host.Stream(0, 0, self._memory.allocate)
            return call(*(self._on_device(a) for a in arguments[:-1]), stream)

        return run

    def _on_device(self, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return Address(self._memory.address(argument))
        if isinstance(argument, dict):
            return {name: self._on_device(value) for name, value in argument.items()}
        if isinstance(argument, tuple):  # a NamedTuple
            return type(argument)(*map(self._on_device, argument))
        return argument

    def _launch(self, kernel: str, blocks: int, threads: int, shared: int, arguments: list[bytes]) -> None:
        name = short(kernel)
        if name not in self.programs:
            self.faults.kernel = name
            self.faults.stop("launched, but not in the PTX")
        machine.launch(self.programs[name], blocks, threads, shared, arguments, self._memory, self.faults)

    @contextmanager
    def in_use(self, tensor_cores: bool = True, limits: tuple[int, int, int] = (0, 0, 0)) -> Iterator[None]:
        """Meanwhile `hessext` computes here; limits are those of csrc/cuda/launch.h, 0 for the usual ones."""
        before = _ops._who
        self._host.set_launcher(self._launch)
        self._host.set_architecture(self._architecture)
        self._host.set_tensor_cores(tensor_cores)
        self._host.set_limits(*limits)
        _ops._who = lambda t: (self, None)
        torch.use_deterministic_algorithms(True, warn_only=True)  # fills memory that nobody has written
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
            _ops._who = before
            self._host.set_launcher(None)
