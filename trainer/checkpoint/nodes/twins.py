"""What each rank alone has (generators, its place in the data: about 10 KB) is kept on other nodes too.

    rank 2, node 1                                    its twin on node 0
    snapshot of step k committed  ── own part ──>     committed there, as a file of rank 2

Of sharded state it is the whole file: what each rank has is there only. With more than two nodes it goes to the next
node of a ring.

So each of two keepers has a file of every rank: its own ranks' shares make up the whole replicated state, and
the others' files hold what only they have. A snapshot is whole there once all of these have arrived. A thread of each
rank sends and takes them beside training, in the order of the snapshots; each rank sends one message for each, also for
one that it has left out.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..group import Ranks
from ..memory.segment import Buffer, Segment

_TAG = 0x7A11
_HEAD = 5
_BYTE = torch.uint8
Bytes = bytes | bytearray | memoryview
_CHUNK = 4 << 20
_REST_S = 0.1
"""After each chunk the network and the cores rest for as long as it took, up to so many seconds."""
_LATE_S = 1.0
"""Seconds for which a part waits for a buffer."""
_BEHIND = 2
"""With so many parts on their way, the next snapshot is left out."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a rank sends of its snapshot of `step`: a file in two pieces, and its sidecar. Nothing if it was left out.
    The second piece lies in the buffer of the snapshot, which is not written over while two parts are on their way."""

    step: int
    pin: bool = False
    first: Bytes = b""
    second: Bytes = b""
    sidecar: Bytes = b""


class Twins:
    """The thread of one rank. `kept` are the files of the ranks of other nodes that this rank keeps; nobody else uses
    them. `problem` says why it has ended."""

    def __init__(self, ranks: Ranks, to: Sequence[int], kept: Mapping[int, Segment], pins: bool) -> None:
        """`to`: the ranks of other nodes that keep what this one has. `pins`: whether flushes are made on this node."""
        self.problem: str | None = None
        self._ranks, self._kept, self._pins = ranks, kept, pins
        self._to = tuple(to)
        self._parts: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        self._sent = 0
        self._done = 0
        self.moving_s = 0.0
        """Seconds for which the newest parts that this rank keeps were on the network, without rests."""
        self._thread = threading.Thread(target=self._serve, name="twins", daemon=True)
        self._thread.start()

    @property
    def sends(self) -> bool:
        return bool(self._to)

    @property
    def behind(self) -> bool:
        """Whether this rank's parts take longer than its steps."""
        return self._sent - self._done >= _BEHIND

    @property
    def under_way(self) -> bool:
        """Whether a part of this rank, or one for it, has not arrived yet."""
        return self._done < self._sent and self.problem is None

    def has(self, step: int) -> bool:
        """Whether this rank keeps what it should of the snapshot of `step`."""
        return all(segment.has(step) for segment in self._kept.values())

    def take_back(self, step: int) -> None:
        """What this rank keeps of the snapshot of `step` does not count. Nothing is under way."""
        for segment in self._kept.values():
            segment.take_back(step)

    def pass_on(self, part: Part) -> None:
        """`part` will be sent. Every rank calls it once for every snapshot that is due."""
        self._sent += 1
        self._parts.put(part)

    def settle(self, seconds: float) -> bool:
        """Whether all parts so far, of this rank and for it, have arrived. It waits for them so long."""
        until = time.monotonic() + seconds
        while self.under_way and time.monotonic() < until:
            time.sleep(0.001)
        return self._done >= self._sent

    def close(self, seconds: float = 10.0) -> None:
        """No part is on its way any more, unless another rank stands still for so long."""
        self.settle(seconds)
        self._parts.put(None)
        self._thread.join(1.0)
        if not self._thread.is_alive():
            for segment in self._kept.values():
                segment.close()

    def _serve(self) -> None:
        try:
            while (part := self._parts.get()) is not None:
                self._exchange(part)
                self._done += 1
        except Exception as error:
            # Any: a rank that is gone, memory that is full. Training must learn of it at its next step.
            self.problem = f"no snapshots: what each rank has of its own does not reach the other node ({error})"

    def _exchange(self, part: Part) -> None:
        pieces = [part.first, part.second, part.sidecar]
        head = torch.tensor([part.step, part.pin, *map(len, pieces)])
        bodies = [head]
        for piece in filter(len, pieces):
            bodies += torch.frombuffer(_writable(piece), dtype=_BYTE).tensor_split(_cuts(len(piece)))
        sent = [self._ranks.send(body, rank, _TAG) for rank in self._to for body in bodies]
        self.moving_s = sum(self._keep(rank, segment) for rank, segment in self._kept.items())
        for one in sent:
            one.wait()

    def _keep(self, rank: int, segment: Segment) -> float:
        """The next part of `rank` is taken. For how many seconds its content was on the network."""
        head = torch.zeros(_HEAD, dtype=torch.int64)
        self._ranks.take(head, rank, _TAG)
        step, pin, *sizes = head.tolist()
        size, buffer, moving_s = sum(sizes), None, 0.0
        if size:
            buffer = self._buffer(segment, size, step if pin and self._pins else None)
        # Without a buffer it is taken all the same: the next part comes after it.
        body = torch.empty(size, dtype=torch.uint8) if buffer is None else torch.frombuffer(buffer.memory, dtype=_BYTE)
        at = 0
        for length in filter(None, sizes):
            for part in body[at : at + length].tensor_split(_cuts(length)):
                began = time.monotonic()
                self._ranks.take(part, rank, _TAG)
                took = time.monotonic() - began
                moving_s += took
                if len(part) == _CHUNK:
                    time.sleep(min(_REST_S, took))
            at += length
        if buffer is None:
            segment.skip(step)
        else:
            segment.commit(buffer, step, size - sizes[2], sizes[2])
        return moving_s

    def _buffer(self, segment: Segment, size: int, pin: int | None) -> Buffer | None:
        until = time.monotonic() + _LATE_S
        while (buffer := segment.begin(size, pin)) is None and time.monotonic() < until:
            time.sleep(0.001)
        return buffer


def _cuts(size: int) -> tuple[int, ...]:
    """Where a piece of that size is cut: many bytes must not fill the network that training needs."""
    return tuple(range(_CHUNK, size, _CHUNK))


def _writable(piece: Bytes) -> bytearray | memoryview:
    """`piece`; torch warns of memory that it must not change."""
    return bytearray(piece) if isinstance(piece, bytes) else piece
