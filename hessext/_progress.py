"""What a long call tells its user: how far it is, and how long it will take.

A public call is one bar (`call`). Its loops (`steps`) and its stages (`shares`) divide the bar in
proportion to their work; a loop within a step divides that step's share. Where nothing is shown, each of them is one
look at a context variable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from itertools import count
from typing import Any, TypeVar

import torch.distributed as dist
from tqdm import tqdm

Item = TypeVar("Item")

_DELAY = 1.0  # seconds: what is done sooner shows no bar
_FORM = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class _Display:
    """Whether calls are shown, and the one that is."""

    call: _Call | None = None


class _Call:
    """The bar of a call, and the share of it that is worked on."""

    def __init__(self, name: str) -> None:
        from tqdm.auto import tqdm  # also for notebooks; few need it

        form = {"bar_format": _FORM, "smoothing": 0, "miniters": 0}
        self._bar = tqdm(total=1.0, desc=name, delay=_DELAY, leave=False, **form)
        self.start, self.size = 0.0, 1.0

    def at(self, start: float) -> None:
        """Move the bar, which never goes back."""
        self._bar.update(max(0.0, min(start, 1.0) - self._bar.n))

    def count(self, text: str) -> None:
        """Say what is counted, where there is no share; "": nothing is."""
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(0)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


_shown: ContextVar[_Display | None] = ContextVar("hessext progress", default=None)
_NOTHING = nullcontext()


@contextmanager
def progress(enabled: bool = True) -> Iterator[None]:
    """Show a bar for every call of hessext that takes more than a second, on stderr or in a notebook.

        with hessext.progress():
            print(H["lm_head"].approximations())

    The bar follows the work where it is done in pieces (batches, samples, blocks, classes), and is gone when the call
    ends. What is one call of the compiled core, such as the dense matrix of one part of data in memory, moves it at its
    end; on a GPU it runs ahead, as nothing is waited for. It holds within this context and thread, on the first rank of
    torch.distributed alone; progress(False) is silent within another one.
    """
    before = _shown.get()
    _shown.set((before or _Display()) if shown(enabled) else None)
    try:
        yield
    finally:
        _shown.set(before)


def call(name: str) -> AbstractContextManager:
    """What runs within is one call with a bar of this name, unless it is part of another one."""
    display = _shown.get()
    return _NOTHING if display is None or display.call is not None else _opened(display, name)


@contextmanager
def _opened(display: _Display, name: str) -> Iterator[None]:
    display.call = _Call(name)
    try:
        yield
    finally:
        display.call.close()
        display.call = None


def as_call(function: Callable) -> Callable:
    """Let a function be one call with a bar of its name."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with call(function.__name__):
            return function(*args, **kwargs)

    return run


def steps(
    items: Iterable[Item],
    work: Callable[[Item], float] | None = None,
    total: float | None = None,
    unit: str = "steps",
) -> Iterable[Item]:
    """The items, each of which is one step of the call at work: `work(item)` of `total`, or one of them.

    Without a total and a length, they are counted in `unit`.
    """
    call = _at_work()
    if call is None:
        return items
    if total is None:
        total = length(items) if work is None else sum(map(work, items))
    return counted(items, unit) if total is None else _divided(call, items, work, total)


def _at_work() -> _Call | None:
    display = _shown.get()
    return None if display is None else display.call


def length(items: Iterable) -> int | None:
    """How many there are, where that is known."""
    try:
        return len(items) if isinstance(items, Sized) else None
    except TypeError:  # a DataLoader of what has no length
        return None


def counted(items: Iterable[Item], unit: str) -> Iterable[Item]:
    """The items, whose number is shown and moves no bar."""
    call = _at_work()
    return items if call is None else _counted(call, items, unit)


def _counted(call: _Call, items: Iterable[Item], unit: str) -> Iterator[Item]:
    numbers = count(1)
    try:
        for item in items:  # enumerate would keep it
            call.count(f"{next(numbers)} {unit}")
            yield item
            del item  # before the next one is made
    finally:
        call.count("")  # what comes next is something else


def _divided(call: _Call, items: Iterable[Item], work: Callable | None, total: float) -> Iterator[Item]:
    with _shares(call, total) as step:
        for item in items:
            step(1.0 if work is None else work(item))
            yield item
            del item  # before the next one is made


def shares(total: float | None) -> AbstractContextManager[Callable[[float], None]]:
    """What is called with its work, of this total, where each stage of a call begins.

    with shares(3) as begin:
        begin(1)
        ...
        begin(2)
    """
    call = _at_work()
    return nullcontext(_nothing) if call is None or total is None else _shares(call, total)


def _nothing(work: float) -> None:
    """No stage is shown."""


@contextmanager
def _shares(call: _Call, total: float) -> Iterator[Callable[[float], None]]:
    """What is called with the work of each step where that begins: the share at work becomes that step's."""
    start, size, done, now = call.start, call.size, 0.0, 0.0

    def step(work: float) -> None:
        nonlocal done, now
        done = min(1.0, done + now)
        now = work / total if total else 0.0
        call.start, call.size = start + size * done, size * min(now, 1.0 - done)
        call.at(call.start)

    try:
        yield step
        call.at(start + size)
    finally:
        call.start, call.size = start, size


@contextmanager
def bar_of(name: str | None) -> Iterator[None]:
    """Show what runs within as one call of this name; None: as it is without."""
    if name is None:
        yield
        return
    with progress(), call(name):
        yield


def inside_tqdm(items: Iterable[Item]) -> tuple[Iterable[Item], str | None]:
    """What tqdm(items), which shows one pass and no other, is a bar around, and that bar's name; else None.

    A bar that is disabled, as on what is no terminal with disable=None, has no name and shows nothing here either.
    """
    check_tqdm(items)
    if not _is_bar(items):
        return items, None
    if items.disable:
        return items.iterable, None
    items.leave = False
    items.close()
    return items.iterable, items.desc.removesuffix(": ") or "batches"


def check_tqdm(items: Any) -> None:
    """Refuse tqdm(total=...), which is around nothing."""
    if _is_bar(items) and items.iterable is None:
        raise TypeError("x: expected batches, or tqdm around them, tqdm(batches); got a tqdm around nothing")


def _is_bar(items: Any) -> bool:
    """Whether it gives what tqdm gives: a subclass may go through anything."""
    return isinstance(items, tqdm) and type(items).__iter__.__module__.partition(".")[0] == "tqdm"


def shown(wanted: bool) -> bool:
    """Whether this process tells it: of the ranks of torch.distributed, the first one alone."""
    return wanted and not (dist.is_available() and dist.is_initialized() and dist.get_rank())


def duration(seconds: float) -> str:
    """A time for people to read."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
