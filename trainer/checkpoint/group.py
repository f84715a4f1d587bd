"""How ranks agree: they exchange JSON over a gloo group of their own, and rank 0 acts for all."""

from __future__ import annotations

import atexit
import datetime
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from ..rundir.machine import shm
from .errors import CheckpointError, CheckpointMismatch, NoUsableCheckpoint, StateError
from .nodes.nodes import Nodes, numbered
from .state.tensors import view_of

T = TypeVar("T")

TIMEOUT = datetime.timedelta(minutes=30)
"""A save may take longer than the timeout of the job's own process group. That must not kill the job."""

_SHORT = 4096
"""A text of so many bytes goes with its size, in one collective."""

_RECENT: deque[list[torch.Tensor]] = deque(maxlen=8)
"""The tensors of the newest collectives."""
_LET_GO_S = 10.0
"""They take microseconds, but a busy machine may not let them run for long."""

_RAISED = {kind.__name__: kind for kind in (CheckpointError, CheckpointMismatch, NoUsableCheckpoint, StateError)}


@atexit.register
def _let_go() -> None:
    """No thread of gloo has the tensors of a collective any more, or ten seconds have passed.

    They let go of them a moment after a collective is over, for which they take the GIL, since a tensor that C++ holds
    holds its Python object (torch 2.13: `c10d::ProcessGroupGloo::runLoop`, `TensorImpl::decref_pyobject`; so that
    object has one reference more). A thread of C++ that waits for the GIL when the interpreter ends aborts the process:
    "terminate called without an active exception". Older torch asks for the GIL only if Python has let go before."""
    until = time.monotonic() + _LET_GO_S
    ours = 3  # of the list, of the loop, of the call
    while any(sys.getrefcount(tensor) > ours for tensors in _RECENT for tensor in tensors):
        if time.monotonic() > until:
            return
        time.sleep(0.0005)


class Sent(Protocol):
    """What is on its way to another rank."""

    def wait(self) -> object: ...


class Ranks:
    """A single process: rank 0 of 1. Also the base class of ranks that communicate."""

    rank = 0
    world_size = 1
    nodes = Nodes()

    def exchange(self, value: Any) -> list[Any]:
        """The `value` (JSON) of every rank, by rank; the same on every rank."""
        return [value]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag: whether any rank has set it. The answer is the same on every rank."""
        return flags

    def send(self, data: torch.Tensor, to: int, tag: int) -> Sent:
        """`data` (bytes) is on its way to the rank `to`, which takes it with the same tag. Any thread may call it."""
        raise NotImplementedError

    def take(self, data: torch.Tensor, of: int, tag: int) -> None:
        """`data` holds the next bytes that the rank `of` has sent with that tag; they are as many. Any thread may call
        it."""
        raise NotImplementedError

    def lead(self, action: Callable[[], T]) -> T:
        """Rank 0 alone runs `action`; every rank gets its result. If it raised OSError or CheckpointError, every rank
        raises CheckpointError."""
        value: T = _value(self.exchange(_done(action) if self.rank == 0 else {})[0])
        return value

    def each_node(self, action: Callable[[], T]) -> list[T]:
        """One rank of each node runs `action`; every rank gets the results, by node. If one raised OSError or
        CheckpointError, every rank raises CheckpointError."""
        if not self.nodes.several:
            return [self.lead(action)]
        leads = self.nodes.leads(self.rank)
        outcomes = self.exchange(_done(action) if leads else {})
        return [_value(outcome) for rank, outcome in enumerate(outcomes) if self.nodes.leads(rank)]


def _done(action: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": action()}
    except CheckpointError as error:
        return {"error": str(error), "kind": type(error).__name__}
    except OSError as error:
        return {"error": str(error), "kind": "CheckpointError"}


def _value(outcome: dict[str, Any]) -> Any:
    if "error" in outcome:
        raise _RAISED.get(outcome["kind"], CheckpointError)(outcome["error"])
    return outcome["value"]


class GlooRanks(Ranks):
    """The ranks of this process's default group."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        alone = os.environ.get("LOCAL_WORLD_SIZE") == str(self.world_size)
        self.nodes = Nodes((0,) * self.world_size) if alone else numbered(self.exchange(shm.whose()))

    def exchange(self, value: Any) -> list[Any]:
        # JSON, not all_gather_object: all_gather_object unpickles what other ranks send.
        text = json.dumps(value).encode()
        found = self._gathered(len(text).to_bytes(8, "little") + text[:_SHORT], 8 + _SHORT)
        sizes = [int.from_bytes(each[:8], "little") for each in found]
        if max(sizes) > _SHORT:
            found = self._gathered(bytes(8) + text, 8 + max(sizes))
        return [json.loads(each[8 : 8 + size]) for each, size in zip(found, sizes, strict=True)]

    def _gathered(self, mine: bytes, room: int) -> list[bytes]:
        """The bytes of every rank, each made up to `room` of them."""
        padded = torch.frombuffer(bytearray(mine.ljust(room, b"\0")), dtype=torch.uint8)
        texts = [torch.empty_like(padded) for _ in range(self.world_size)]
        _RECENT.append([padded, *texts])
        dist.all_gather(texts, padded, group=self._group)
        return [bytes(view_of(text)) for text in texts]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        seen = torch.tensor(flags, dtype=torch.int32)
        _RECENT.append([seen])
        dist.all_reduce(seen, dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(flag) for flag in seen.tolist())

    def send(self, data: torch.Tensor, to: int, tag: int) -> Sent:
        sent = dist.isend(data, to, group=self._group, tag=tag)
        assert sent is not None  # of a group that this rank is not in
        return sent

    def take(self, data: torch.Tensor, of: int, tag: int) -> None:
        dist.recv(data, of, group=self._group, tag=tag)


def ranks() -> Ranks:
    """The ranks of the default process group, or this process alone. CheckpointError if a group is missing."""
    if dist.is_available() and dist.is_initialized():
        return GlooRanks() if dist.get_world_size() > 1 else Ranks()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CheckpointError(
            "this is one of several ranks, but there is no process group yet: call "
            "torch.distributed.init_process_group() before making a Checkpointer"
        )
    return Ranks()


def own_rank() -> int:
    """The number of this rank, which asks no other for it: one alone may call this, also before there is a group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))
