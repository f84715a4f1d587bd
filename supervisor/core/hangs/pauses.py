"""Tells of a rank that is silent for longer than usual: its activity, and the ranks that wait for it. Never a
verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from supervisor.core.actions import Emit
from supervisor.core.hangs.calls import call_limit
from supervisor.core.hangs.hang import Hang, meets, sampled
from supervisor.core.hangs.limits import MOVING_LIMIT, frozen_limit
from supervisor.core.hangs.motion import Kind
from supervisor.core.model import Observation
from supervisor.core.stack import Stack, named
from supervisor.core.words import EventName

TOLD_AFTER = 30.0
"""Seconds of silence."""
AGAIN_AFTER = 60.0
"""Seconds until another event may tell of the same silence."""
_WORDS = {
    Kind.MOVING: "is at work",
    Kind.PYTHON: "goes round in one function",
    Kind.BETWEEN: "stays at one line, with the GIL",
    Kind.NATIVE: "computes in one call",
    Kind.ANSWERED: "waits for something outside",
    Kind.LOCKED: "waits for a lock",
    Kind.DISK: "waits for a disk or a file server",
    Kind.WATCHED: "is looked at with a debugger",
}


@dataclass(frozen=True, slots=True)
class Told:
    kind: Kind
    at: float


def tell(known: Mapping[int, Told], hang: Hang, seen: Observation) -> tuple[dict[int, Told], list[Emit]]:
    """The silences told by now, by rank, and the new events."""
    told, events = dict(known), []
    waiting = [rank for rank, w in hang.ranks.items() if (m := sampled(w)) is not None and m.kind is Kind.MET]
    for view in seen.ranks:
        watched = hang.ranks[view.rank]
        motion, before = sampled(watched), told.get(view.rank)
        if before is not None and watched.quiet < TOLD_AFTER:
            del told[view.rank]
            text = f"rank {view.rank} goes on"
            events.append(Emit(EventName.PAUSE, fields={"rank": view.rank, "over": True, "text": text}))
        if motion is None or watched.quiet < TOLD_AFTER or (kind := motion.kind) not in _WORDS:
            continue
        if before is not None and (before.kind is kind or seen.now < before.at + AGAIN_AFTER):
            continue
        told[view.rank] = Told(kind, seen.now)
        limit = frozen_limit(kind, motion.busy, meets(hang, view.rank) and not motion.last.gpu)
        limit = call_limit(hang.pace, motion, limit)
        limit = min(limit, MOVING_LIMIT) if kind is not Kind.WATCHED else limit
        place = Stack(view.rank, motion.last.main.frames).place
        others = [rank for rank in waiting if rank != view.rank]
        text = f"rank {view.rank} {_WORDS[kind]}: {place}"
        text += f"; {named(others)} {'waits' if len(others) == 1 else 'wait'}" if others else ""
        fields = {
            "rank": view.rank,
            "over": False,
            "kind": kind.value,
            "since_mono": seen.now - watched.quiet,
            "limit_s": limit if limit != float("inf") else None,
            "text": text,
        }
        events.append(Emit(EventName.PAUSE, fields=fields))
    return told, events
