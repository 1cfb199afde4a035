"""The ranks of one process group, and what they exchange; `ALONE` is one rank without a group."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

_HEADER = 4096  # bytes
_PATIENCE = 3.0  # seconds in which ranks that have lost another one tell the store so, where all had come
_exchanges: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # headers that were exchanged in each group


class LostRank(RuntimeError):
    """An exchange did not come about: a rank is dead or late, and the group is no longer of use."""


class Alone:
    """One rank, whose sums are its own."""

    rank, size, members = 0, 1, (0,)

    def exchange(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        """Headers of all ranks."""
        return [header]

    def reduce(self, t: Tensor, largest: bool = False) -> None:
        """Make t the sum over all ranks, or the largest entries, in place."""

    def transfer(self, out: list[Tensor], into: list[Tensor]) -> NoReturn:
        """There is no other rank."""
        raise AssertionError


ALONE = Alone()


class Group(Alone):
    """The ranks of a process group, in its order."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.members = tuple(dist.get_process_group_ranks(group))
        backends = dict(part.split(":") for part in dist.get_backend_config(group).split(","))
        self._kinds = {kind for kind, backend in backends.items() if kind == "cpu" or backend != "gloo"}
        # 2.4 has no such method: it then is not known which rank is missing
        self._store = group.get_group_store() if hasattr(group, "get_group_store") else None
        self._own = torch.device("cpu") if "cpu" in self._kinds else torch.device("cuda", torch.cuda.current_device())

    def __reduce__(self) -> tuple:
        """Pickle the default group, for the same rank of as many. Raises TypeError for another one."""
        if self.members != tuple(range(dist.get_world_size())):
            raise TypeError("group: expected the default group of torch.distributed; another one cannot be pickled")
        return _default, (self.rank, self.size)

    def exchange(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        """Headers of all ranks. Raises LostRank."""
        self._arrive()
        header["call"].append(_exchanges[self._group])
        text = json.dumps(header).encode()
        if len(text) > _HEADER:
            raise ValueError(f"expected a header of at most {_HEADER} bytes; got {len(text)}")
        own = torch.frombuffer(bytearray(text.ljust(_HEADER)), dtype=torch.uint8).to(self._own)
        found = [torch.empty_like(own) for _ in self.members]
        with self._kept_alive():
            dist.all_gather(found, own, group=self._group)
            return [json.loads(bytes(t.tolist()).decode()) for t in found]

    def reduce(self, t: Tensor, largest: bool = False) -> None:
        """Make t the sum over all ranks, or the largest entries, in place."""
        wire = self._on_wire(t)
        with self._kept_alive():
            dist.all_reduce(wire, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=self._group)
        if wire is not t:
            t.copy_(wire)

    def transfer(self, out: list[Tensor], into: list[Tensor]) -> Transfer:
        """Begin to send tensors to the next rank and to receive such from the one before."""
        right, left = (self.members[(self.rank + step) % self.size] for step in (1, -1))
        sent = [self._on_wire(t) for t in out]
        received = [t if t.device.type in self._kinds else t.to(self._own) for t in into]
        operations = [dist.P2POp(dist.isend, t, right, self._group) for t in sent]
        operations += [dist.P2POp(dist.irecv, t, left, self._group) for t in received]
        with self._kept_alive():
            return Transfer(self, dist.batch_isend_irecv(operations), into, received, sent)

    def _on_wire(self, t: Tensor) -> Tensor:
        """A contiguous tensor on a device that the group serves: gloo has no GPU's memory."""
        return (t if t.device.type in self._kinds else t.to(self._own)).contiguous()

    @contextmanager
    def _kept_alive(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            cause = str(error).split("\n")[0][:300]
            raise LostRank(f"an exchange with the other ranks failed: {cause}; {self._missing()}") from error

    def _arrive(self) -> None:
        """Tell the group's store that this rank has come to its next exchange: what it knows when one fails."""
        _exchanges[self._group] = _exchanges.get(self._group, 0) + 1
        if self._store is not None:
            with self._kept_alive():
                self._store.set(f"hessext/{self.rank}", str(_exchanges[self._group]))

    def _missing(self) -> str:
        """Who has not come to where this rank is, or has not lost another one since, as far as the store knows."""
        store, here = self._store, _exchanges.get(self._group, 0)
        unknown = f"the group's store, which rank {self.members[0]} may keep, does not say with which"
        if store is None:
            return unknown
        try:
            store.set(f"hessext/lost/{here}/{self.rank}", "")
            missing = {rank for rank in range(self.size) if self._came_to(rank) < here}
            if not missing:
                missing, end = set(range(self.size)), time.monotonic() + _PATIENCE
                while missing and time.monotonic() < end:
                    missing = {rank for rank in missing if not store.check([f"hessext/lost/{here}/{rank}"])}
                    time.sleep(0.05)
        except RuntimeError:
            return unknown
        names = [str(self.members[rank]) for rank in sorted(missing)]
        if not names:
            return "all ranks are alive and have lost one another"
        return f"rank{'s' * (len(names) > 1)} {', '.join(names)}: dead or late"

    def _came_to(self, rank: int) -> int:
        """The exchange that a rank has come to last."""
        key = f"hessext/{rank}"
        return int(self._store.get(key)) if self._store.check([key]) else 0


def _default(rank: int, size: int) -> Group:
    """The default group, where it is that of a pickle. Raises RuntimeError."""
    now = (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    if now != (rank, size):
        raise RuntimeError(f"expected rank {rank} of {size}, which pickled its samples; got rank {now[0]} of {now[1]}")
    return Group(dist.group.WORLD)


class Transfer:
    """Tensors on their way."""

    def __init__(self, group: Group, works: list, into: list[Tensor], received: list[Tensor], sent: list) -> None:
        self._group, self._works, self._into, self._received, self._sent = group, works, into, received, sent

    def wait(self) -> None:
        """Wait until the tensors are there. Raises LostRank."""
        with self._group._kept_alive():
            for work in self._works:
                work.wait()
        for t, wire in zip(self._into, self._received, strict=True):
            if wire is not t:
                t.copy_(wire)
        self._sent = None


def process_group(name: str, group: Any) -> dist.ProcessGroup:
    """Return the process group of a group or of a mesh of one dimension. Raises TypeError, ValueError."""
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(f"{name}: expected a process group; torch.distributed.init_process_group was not called")
    if hasattr(group, "get_group") and hasattr(group, "ndim"):  # a DeviceMesh
        if group.ndim != 1:
            raise ValueError(f"{name}: expected a group or a mesh of one dimension; got one of {group.ndim}")
        group = group.get_group()
    if group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"{name}: expected a group that this rank is in; got one of other ranks")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"{name}: expected a torch.distributed process group; got {type(group).__name__}")
    return group
