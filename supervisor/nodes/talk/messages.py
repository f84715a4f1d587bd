"""What the supervisors of a run tell each other, as values. Encoded as MessagePack: JSON has no infinity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from supervisor.core.model import Observation
from supervisor.core.telling.news import News
from supervisor.group.seat import Seat
from supervisor.nodes.look import Answer
from supervisor.nodes.roads import Places, Reached
from trainer.rundir.records.beats import Beat
from trainer.rundir.records.gate import Release


class Hello(msgspec.Struct, frozen=True):
    """The first words of a node, on each new link."""

    node: int | None
    """Its number, or None: the leader gives it one."""
    host: str
    address: str
    """Where its ranks can be reached."""
    nproc: int
    attempt: int | None
    """The attempt of which something may run there. None: nothing runs."""
    about: dict[str, str]
    """What must be the same on all nodes: versions, and the script."""
    who: str = ""
    """The supervisor: no other one has said that."""
    reached: Reached = Reached({})
    """How other nodes call it."""


class Welcome(msgspec.Struct, frozen=True):
    """The leader's answer."""

    node: int
    run: str
    """The run's folder, which all nodes share."""
    probe: str
    """A file there that only this leader can have made, just now."""
    nonce: str
    """Its content."""
    spec: bytes
    """run.json. It has no secrets; each node has those of its own environment."""


class Refuse(msgspec.Struct, frozen=True):
    """The leader will not have this node, and says why."""

    text: str


# ── a node to the leader ──


class Seen(msgspec.Struct, frozen=True, tag=True):
    """One look at this node's part of `attempt`. Times are of this node's clock."""

    attempt: int
    seen: Observation
    news: News
    beats: list[Beat] = []
    """For people."""


class Parked(msgspec.Struct, frozen=True, tag=True):
    """The ranks of that group wait here."""

    group: str


class GroupLost(msgspec.Struct, frozen=True, tag=True):
    """The group will not wait here any more. `unfit`: it cannot wait in restore()."""

    group: str
    why: str
    unfit: bool = False


class Gone(msgspec.Struct, frozen=True, tag=True):
    """Nothing of that attempt runs here any more."""

    attempt: int


class Asked(msgspec.Struct, frozen=True, tag=True):
    """Somebody has asked this node's supervisor to stop."""

    kind: str
    now: bool
    warned: bool


class Told(msgspec.Struct, frozen=True, tag=True):
    """An event of this node."""

    event: str
    level: str
    fields: dict[str, Any]


class Called(msgspec.Struct, frozen=True, tag=True):
    """This node has called `node`, which answers, or does not any more."""

    node: int
    why: str = ""
    """Why it does not answer, and where it was called."""
    setting: str = ""
    """Of the address that was called."""


Up = Seen | Parked | GroupLost | Gone | Asked | Told | Called | Answer


# ── the leader to a node ──


class MakeGroup(msgspec.Struct, frozen=True, tag=True):
    """Make that node's part of a group, which then waits: in restore() if it can expect a release."""

    group: str
    seat: Seat
    expected: Release | None = None


class DropGroup(msgspec.Struct, frozen=True, tag=True):
    """Nobody needs that group any more."""

    group: str


class ReleaseGroup(msgspec.Struct, frozen=True, tag=True):
    """The group becomes the attempt of `body`."""

    group: str
    seat: Seat
    body: Release


class Signal(msgspec.Struct, frozen=True, tag=True):
    """TERM or KILL for the processes of `attempt`."""

    attempt: int
    name: str
    reach: str


class State(msgspec.Struct, frozen=True, tag=True):
    """What the leader thinks of `attempt`."""

    attempt: int
    stopping: bool
    stepped: bool
    silent: dict[int, float]
    """The ranks of which samples are wanted, with their seconds of silence."""


class Dump(msgspec.Struct, frozen=True, tag=True):
    """The stacks of the ranks of `attempt` are wanted."""

    attempt: int


class Look(msgspec.Struct, frozen=True, tag=True):
    """A person wants to know where the ranks of `attempt` stand, or for what they need their `seconds`."""

    attempt: int
    ask: str
    seconds: float


class Faults(msgspec.Struct, frozen=True, tag=True):
    """The ranks of `attempt` shall look for new faults."""

    attempt: int


class CallNodes(msgspec.Struct, frozen=True, tag=True):
    """Call these nodes, and no others. `anew`: also those that have answered."""

    nodes: dict[int, Places]
    """By number: where."""
    anew: bool = False


class Over(msgspec.Struct, frozen=True, tag=True):
    """The run is over. With `keep`, the snapshots in memory stay."""

    exit_code: int
    reason: str
    keep: bool
    saved: int = -1
    """The newest step on disk. If the job is started again, the part of a later one stays in memory, too."""


Down = MakeGroup | DropGroup | ReleaseGroup | Signal | State | Dump | Look | Faults | CallNodes | Over

_ENCODER = msgspec.msgpack.Encoder()
_UP: msgspec.msgpack.Decoder[Up] = msgspec.msgpack.Decoder(Up)
_DOWN: msgspec.msgpack.Decoder[Down] = msgspec.msgpack.Decoder(Down)
M = TypeVar("M", bound=msgspec.Struct)


def encode(message: msgspec.Struct) -> bytes:
    return _ENCODER.encode(message)


def up(body: bytes) -> Up:
    """A node's message. ValueError if it is none."""
    return _UP.decode(body)


def down(body: bytes) -> Down:
    """The leader's message. ValueError if it is none."""
    return _DOWN.decode(body)


def as_(kind: type[M], body: bytes) -> M:
    """A message of that kind. ValueError if it is none."""
    return msgspec.msgpack.decode(body, type=kind)


def differs(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """What another node says of itself and is not the same here, in words; empty if nothing is."""
    pairs = {name: (ours.get(name, "none"), there) for name, there in theirs.items()}
    return ", ".join(
        f"{name} is {there} there and {here} here" for name, (here, there) in pairs.items() if here != there
    )
