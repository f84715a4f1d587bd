"""How far a run has come: a value that observations feed and events are told from. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from supervisor.core.actions import Emit


@dataclass(frozen=True, slots=True)
class Trained:
    """Ranks of an attempt have finished a step."""

    step: int
    """The highest one."""
    start: int | None
    """The step that the attempt went on from; None if nothing tells which of the run's steps it is at."""
    at: float
    """The time of the oldest beat among them."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Every method returns the progress that follows, and the events that tell of it."""

    high_step: int = -1
    """The highest step that any attempt has reached, or -1."""
    checkpoint: int = -1
    """The newest committed step that is known, or -1."""
    placed: bool = True
    """Whether the steps of the newest attempt that has trained are known as steps of the run."""
    untold: frozenset[int] = frozenset()
    """Checkpoints that were there when this supervisor came, of which no event tells."""
    unsaid: int = -1
    """A step that the last look at the disk found without its note."""
    found: frozenset[int] = frozenset()
    """Steps that are told already, as they were found on disk, or by an earlier supervisor, and whose own word may yet
    come: from the ranks that saved them, or the flush."""

    @property
    def step(self) -> int:
        """The highest step, or -1 where nothing tells which of the run's steps are done."""
        return self.high_step if self.placed else -1

    def reached(self, step: int) -> Progress:
        """A step that nobody told of was done."""
        return replace(self, high_step=max(self.high_step, step))

    def trained(self, attempt: int, by: Trained) -> tuple[Progress, list[Emit]]:
        """The attempt has come as far as that."""
        if by.start is None:
            return replace(self, placed=False), [_first_step(-1, -1, -1, by.at)]
        events = [_first_step(by.step, by.start, max(0, self.high_step - by.start), by.at)]
        if by.step < self.high_step:
            return replace(self, placed=True), events
        if attempt > 0:
            events.append(Emit("caught_up", fields={"step": by.step}, once="caught_up"))
        return replace(self, placed=True, high_step=by.step), events

    def committed(self, step: int, **about: Any) -> tuple[Progress, list[Emit]]:
        """The checkpoint of that step is durable."""
        after = replace(self, checkpoint=max(self.checkpoint, step), untold=self.untold - {step})
        return after, [Emit("checkpoint_committed", fields={"step": step, **about})]

    def made(self, step: int, **about: Any) -> tuple[Progress, list[Emit]]:
        """Who has made the checkpoint of `step` says so. They may say it late: of an older step than the newest one."""
        if step in self.found:
            return replace(self, found=self.found - {step}), []
        return self.committed(step, **about) if step >= 0 else (self, [])

    def flushed(self, outcome: Mapping[str, Any]) -> tuple[Progress, list[Emit]]:
        """A flush has ended like that: it is told as a save of the ranks' own would be."""
        if "error" in outcome:
            return self, [Emit("checkpoint_failed", "error", {"by": "flush", **outcome})]
        if outcome.get("existed"):
            return self, []
        about = {key: value for key, value in outcome.items() if key not in ("warning", "seconds", "step")}
        warning, step = outcome.get("warning"), int(outcome["step"])
        events = [Emit("warning", "warning", {"text": warning})] if warning else []
        # Nobody waited for it: its seconds are not a stall.
        after, told = self.made(step, by="flush", took_s=outcome.get("seconds"), **about)
        return after, events + told

    def scanned(self, newest: int, final: bool) -> tuple[Progress, list[Emit]]:
        """`newest` is on disk. It is told if it was there at the look before (`final`: there will be no other look):
        its rank has died between the commit and the note of it."""
        after, events = replace(self, unsaid=newest), list[Emit]()
        if newest < self.checkpoint:
            found = frozenset(step for step in self.found if step <= newest)
            return replace(after, checkpoint=newest, found=found), []
        if newest > self.checkpoint and (final or newest == self.unsaid):
            after, events = after.committed(newest)
            after = replace(after, found=after.found | {newest})
        return after, events

    def caught_up(self) -> tuple[Progress, list[Emit]]:
        """The checkpoints that neither an event nor a note has told of are told."""
        after, events = self, list[Emit]()
        for step in sorted(self.untold):
            after, told = after.committed(step)
            events += told
        return replace(after, found=after.found | self.untold), events


def begin(high_step: int, committed: Collection[int], told: Collection[int] | None = None) -> Progress:
    """Of a run with those checkpoints on disk. `told` are those that the events tell of, where a supervisor died that
    may not have told of all."""
    newest = max(committed, default=-1)
    if told is None:
        return Progress(high_step, newest)
    before, there = frozenset(told), frozenset(committed)
    return Progress(high_step, min(newest, max(before, default=-1)), untold=there - before, found=before)


def _first_step(step: int, start: int, lost: int, at: float) -> Emit:
    return Emit(
        "first_step", fields={"step": step, "from_step": start, "lost_steps": lost, "at_mono": at}, once="first_step"
    )
