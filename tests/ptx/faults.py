"""What was found wrong, and where."""

from __future__ import annotations

from collections import Counter


class Stopped(Exception):
    """A fault after which a launch cannot go on."""


class Faults:
    """How often each fault was found: (kernel, what, instruction) -> times."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, str, str]] = Counter()
        self.stops = False  # whether any fault ends its launch
        self.kernel = self.instruction = ""  # in hand

    def add(self, what: str, times: int = 1) -> None:
        """A fault of the instruction in hand. Raises Stopped where any fault does."""
        self.found[self.kernel, what, self.instruction] += int(times)
        if self.stops:
            raise Stopped(f"{self.kernel}: {what}: {self.instruction}")

    def stop(self, what: str) -> None:
        """A fault that ends the launch: raises Stopped."""
        self.add(what)
        raise Stopped(f"{self.kernel}: {what}: {self.instruction}")

    def of(self, kernel: str) -> int:
        """Places in a kernel where something was found."""
        return sum(1 for name, *_ in self.found if name == kernel)

    def lines(self) -> list[str]:
        """One line for each."""
        return [f"{kernel}: {what} ({n} x): {where}" for (kernel, what, where), n in sorted(self.found.items())]
