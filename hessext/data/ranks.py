"""What the ranks of one Hessian do together.

Samples are split over the ranks of one group, classes over those of another one; on a mesh of two dimensions, both.

Every exchange begins with a header: what it is and of what, in which order, with which shapes, and which ranks have
raised an error. So an error on one rank, or a call that the others do not make, is one on all of them and names the
ranks; none waits for data that will not come. A rank that raises while blocks go round passes on what is left of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

from torch import Tensor

from hessext._progress import call, steps

from .group import ALONE, Alone, Group, LostRank, process_group
from .headers import TEXT, Error, error_of, errors_of, fingerprint

_TOLD = 6  # errors that a header has room for


class _Told(Exception):
    """Errors that all ranks of this rank's group know; `everywhere`: those of the other group, too."""

    def __init__(self, errors: list[Error], everywhere: bool) -> None:
        super().__init__(errors)
        self.errors, self.everywhere = errors, everywhere


class Visit(NamedTuple):
    """What a rank sent round, and which pairs of own samples with its samples this rank works on."""

    rank: int
    tensors: tuple[Tensor, ...]
    rows: slice  # own samples
    cols: slice  # the visitor's
    other: bool = True  # whether it is another rank


class Ranks:
    """The ranks over which samples are split, and those over which classes are."""

    def __init__(self, samples: Alone = ALONE, classes: Alone = ALONE) -> None:
        self.samples, self.classes = samples, classes
        self.signature = 0  # of what all ranks have: weights and loss
        self._operation: str | None = None
        self._arguments = 0  # their fingerprint
        self._ring: Iterator | None = None

    @classmethod
    def of(cls, group: Any) -> Ranks:
        """Those of a process group, or a mesh of one dimension, that samples are split over; None: this one alone."""
        if isinstance(group, Ranks):
            return group
        if group is None:
            return cls()
        return cls(Group(process_group("group", group)))

    def copy(self) -> Ranks:
        """The same ranks for another Hessian, in the same operation."""
        result = Ranks(self.samples, self.classes)
        result._operation = self._operation
        return result

    def same_as(self, other: Ranks) -> bool:
        """Whether samples and classes are split over the same ranks."""
        mine, others = (tuple(group.members for group in (r.samples, r.classes)) for r in (self, other))
        return mine == others or (self.alone and other.alone)

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.size == 1

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.samples.size * self.classes.size

    @property
    def first(self) -> bool:
        """Whether this is the rank that shows progress and writes files."""
        return self.samples.rank == self.classes.rank == 0

    # -------------------------------------------------------------------------------------------------- agreement

    @contextmanager
    def operation(self, name: str, arguments: tuple = ()) -> Iterator[None]:
        """What all ranks call together; an error on one of them is raised on all, with the ranks that have it."""
        if self.alone or self._operation is not None:
            yield
            return
        self._operation, self._arguments = name, 0
        try:
            self._arguments = fingerprint(arguments)
            yield
            self._meet("end")
        except _Told as told:
            self._pass_on()
            errors = told.errors if told.everywhere else self._tell(told.errors, self.samples)
            raise error_of(name, errors) from None
        except LostRank as lost:
            raise RuntimeError(f"{name}: {lost}") from lost
        except Exception as error:
            self._pass_on()
            own = [[self._number, type(error).__name__, str(error)[:TEXT]]]
            raise error_of(name, self._tell(self._tell(own, self.classes), self.samples)) from error
        finally:
            self._operation = self._ring = None

    @property
    def _number(self) -> int:
        group = self.samples if self.classes.size == 1 else self.classes
        return group.members[group.rank]

    def _header(self, step: str, same: Any, note: Any, errors: list[Error]) -> dict[str, Any]:
        call = [self._operation or step, step, same, self.signature, self._arguments]
        return {"call": call, "rank": self._number, "note": note, "errors": errors[:_TOLD]}

    def _meet(self, step: str, same: Any = None, note: Any = None, *, classes: bool = False) -> list[Any]:
        """Exchange a header; notes of the ranks of the samples, or of the classes. Raises _Told."""
        headers = self.classes.exchange(self._header(step, same, note, []))
        errors = errors_of(headers)
        if classes:
            if errors:
                raise _Told(errors, everywhere=self.samples.size == 1)
            return [header["note"] for header in headers]
        headers = self.samples.exchange(self._header(step, same, note, errors))
        if errors := errors_of(headers):
            raise _Told(errors, everywhere=True)
        return [header["note"] for header in headers]

    def _tell(self, errors: list[Error], group: Alone) -> list[Error]:
        """Meet the others of a group with errors; theirs, too, but not that they went on."""
        try:
            found = group.exchange(self._header("error", None, None, errors))
        except LostRank as lost:
            return [*errors, [self._number, "RuntimeError", str(lost)[:TEXT]]]
        return [error for header in found for error in header["errors"]]

    def agree(self, what: str, same: Any) -> None:
        """Raise an error on all ranks, over samples and classes, unless all have the same."""
        with self._within(what):
            self._meet(what, same)

    def notes(self, what: str, note: Any) -> list[Any]:
        """A few numbers or names of each rank over which samples are split, in their order."""
        with self._within(what):
            return self._meet(what, None, note)

    def class_notes(self, what: str, note: Any) -> list[Any]:
        """The same of the ranks over which classes are split."""
        with self._within(what):
            return self._meet(what, None, note, classes=True)

    def _within(self, step: str) -> Any:
        return self.operation(self._operation or step)

    # ----------------------------------------------------------------------------------------------- sums and parts

    def sum(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Sums over the ranks of the samples, in place."""
        return self._reduced(self.samples, False, tensors)

    def largest(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Largest entries over the ranks of the samples, in place."""
        return self._reduced(self.samples, True, tensors)

    def class_sum(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Sums over the ranks of the classes, in place."""
        return self._reduced(self.classes, False, tensors)

    def class_largest(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Largest entries over the ranks of the classes, in place."""
        return self._reduced(self.classes, True, tensors)

    def _reduced(self, group: Alone, largest: bool, tensors: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        if group.size > 1:
            step = "largest" if largest else "sum"
            shapes = [[list(t.shape), str(t.dtype)] for t in tensors]
            with self._within(step):
                self._meet(step, shapes, classes=group is self.classes)
                for t in tensors:
                    group.reduce(t, largest)
        return tensors[0] if len(tensors) == 1 else tensors

    def everywhere(self, t: Tensor, counts: list[int], dim: int = 0) -> Tensor:
        """Rows of all ranks of the samples, one rank after the other, of which this one has t."""
        return self._joined(self.samples, self.sum, t, counts, dim)

    def all_classes(self, t: Tensor, counts: list[int], dim: int = 0) -> Tensor:
        """The same of the ranks of the classes."""
        return self._joined(self.classes, self.class_sum, t, counts, dim)

    def _joined(self, group: Alone, add: Callable, t: Tensor, counts: list[int], dim: int) -> Tensor:
        """Zeros but for own rows, added up: rows of unequal number go as tensors of one shape."""
        if group.size == 1:
            return t
        shape = list(t.shape)
        shape[dim] = sum(counts)
        result = t.new_zeros(shape)
        result.narrow(dim, sum(counts[: group.rank]), counts[group.rank]).copy_(t)
        return add(result)

    # --------------------------------------------------------------------------------------------- pairs of samples

    def ring(self, counts: list[int], *tensors: Tensor, every: bool = False) -> Iterator[Visit]:
        """Own tensors, then those of the other ranks; the next ones travel while the last are worked on.

        Each pair of ranks meets once: own samples with a visitor's, in all or in half where both have the other one as
        a visitor; with `every`, each rank meets all others.
        """
        rank, size, n = self.samples.rank, self.samples.size, counts[self.samples.rank]
        own = Visit(rank, tensors, slice(0, n), slice(0, n), other=False)
        if size == 1:
            return iter([own])
        with self._within("ring"):
            shapes = self._meet("ring", [str(t.dtype) for t in tensors], [list(t.shape) for t in tensors])
        self._ring = self._round(own, shapes, counts, size - 1 if every else size // 2, every)
        return self._ring

    def _round(self, own: Visit, shapes: list, counts: list[int], last: int, every: bool) -> Iterator[Visit]:
        rank, size = self.samples.rank, self.samples.size
        visit = own
        for step in steps(range(last + 1)):
            transfer = None
            if step < last:
                origin = (rank - step - 1) % size
                out = [t.contiguous() for t in visit.tensors]
                into = [t.new_empty(shape) for t, shape in zip(out, shapes[origin], strict=True)]
                transfer = self.samples.transfer(out, into)
            if visit.rows.stop > visit.rows.start and visit.cols.stop > visit.cols.start:
                yield visit
            if transfer is not None:
                transfer.wait()
                visit = Visit(origin, tuple(into), *_share(rank, origin, counts, step + 1, every))
        self._ring = None

    def _pass_on(self) -> None:
        """Let what goes round go on, for the others."""
        ring, self._ring = self._ring, None
        try:
            for _ in ring or ():
                pass
        except LostRank:
            return


def _share(rank: int, visitor: int, counts: list[int], step: int, every: bool) -> tuple[slice, slice]:
    """Rows and columns of the pairs with a visitor: all, or those with half of the samples of the lower rank."""
    rows, cols = slice(0, counts[rank]), slice(0, counts[visitor])
    if every or 2 * step < len(counts):
        return rows, cols
    lower = min(rank, visitor)
    half = counts[lower] // 2
    return (slice(0, half), cols) if rank == lower else (rows, slice(half, counts[lower]))


def collective(method: Callable) -> Callable:
    """Let a method of something with `ranks` be one operation of all of them, and one call with a bar."""

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with call(method.__name__):
            if self.ranks.alone:
                return method(self, *args, **kwargs)
            # what `dense` writes to and where `to` goes may differ
            arguments = () if method.__name__ in ("dense", "to") else (args, sorted(kwargs.items()))
            with self.ranks.operation(method.__name__, arguments):
                return method(self, *args, **kwargs)

    return run


def over_ranks(function: Callable) -> Callable:
    """Let a function with an argument `group` be one operation of its ranks, and one call; it gets them as Ranks."""

    @wraps(function)
    def run(*args: Any, group: Any = None, **kwargs: Any) -> Any:
        ranks = Ranks.of(group)
        with call(function.__name__), ranks.operation(function.__name__):
            return function(*args, group=ranks, **kwargs)

    return run
