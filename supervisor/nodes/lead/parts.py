"""The parts of worker groups on other nodes: ordered, parked, released or dropped, each group as one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

import msgspec

from supervisor.group.seat import Seat
from supervisor.nodes.talk import messages as says
from supervisor.process.loopback import reserved
from supervisor.run.spec import Spec
from trainer.rundir.records.gate import Release

Links = Callable[[tuple[int, ...]], tuple[int, ...]]
"""The numbers of the links to these nodes, now."""


class Parts:
    """The groups over several nodes that the leader has ordered."""

    def __init__(self, spec: Spec, address: str, send: Callable[[int, msgspec.Struct], None]) -> None:
        self.due: tuple[int, ...] = ()
        """The nodes of the attempt that begins; empty while none does."""
        self.wanted: tuple[int, ...] = ()
        """The nodes of the next attempt, if nothing changes."""
        self._nproc, self._address, self._send = spec.nproc, address, send
        self._groups: dict[str, Part] = {}
        self._count = 0

    def order(self, nodes: tuple[int, ...], links: Links, expected: Release | None = None) -> tuple[Seat, Part]:
        """Each of `nodes` but the first, which is this one, makes its part of a new group. OSError if there is no port
        for the ranks to meet at."""
        self._count += 1
        sizes = (self._nproc,) * len(nodes)
        port = reserved(self._address) if len(nodes) > 1 else None
        seat = Seat(sizes, 0, self._address, port.getsockname()[1]) if port is not None else Seat(sizes)
        part = Part(f"{self._count:04d}", nodes, seat, port, self, links)
        self._groups[part.name] = part
        for index, node in enumerate(nodes[1:], 1):
            self._send(node, says.MakeGroup(part.name, replace(seat, node=index), expected))
        return seat, part

    def parked(self, node: int, group: str) -> None:
        """The ranks of that group on `node` wait."""
        if group in self._groups:
            self._groups[group].here.add(node)

    def lost(self, group: str, why: str, unfit: bool = False) -> None:
        """The group cannot be used any more. `unfit`: it cannot wait in restore()."""
        if group in self._groups:
            self._groups[group].why, self._groups[group].unfit = why, unfit

    def forget(self, group: str) -> None:
        self._groups.pop(group, None)

    def send(self, node: int, message: msgspec.Struct) -> None:
        self._send(node, message)


class Part:
    """The parts of one group on all nodes but this one."""

    def __init__(
        self, name: str, nodes: tuple[int, ...], seat: Seat, port: socket.socket | None, parts: Parts, links: Links
    ) -> None:
        """`port` keeps the ranks' port from other programs until their launcher listens there."""
        self.name, self.nodes = name, nodes
        self.here: set[int] = set()
        """The nodes where its ranks wait."""
        self.why, self.unfit = "", False
        self._seat, self._port, self._parts, self._links = seat, port, parts, links
        self._began = links(nodes)
        self._open = True

    @property
    def parked(self) -> bool:
        return self.here >= set(self.nodes[1:])

    @property
    def lost(self) -> str:
        if self._links(self.nodes) != self._began:
            return "a node has come or gone"
        if (self._parts.due or self._parts.wanted or self.nodes) != self.nodes:
            return "the next attempt has other nodes"
        return self.why

    def release(self, body: Release) -> None:
        for index, node in enumerate(self.nodes[1:], 1):
            self._parts.send(node, says.ReleaseGroup(self.name, replace(self._seat, node=index), body))
        self._end()

    def drop(self) -> None:
        if self._open:
            for node in self.nodes[1:]:
                self._parts.send(node, says.DropGroup(self.name))
            self._end()

    def _end(self) -> None:
        self._open = False
        self._parts.forget(self.name)
        if self._port is not None:
            self._port.close()
            self._port = None
