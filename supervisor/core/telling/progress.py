"""The progress of a run: a value that is fed with observations, and that gives events. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from supervisor.core.actions import Emit


@dataclass(frozen=True, slots=True)
class Trained:
    """The ranks of an attempt have finished a step."""

    step: int
    """The highest step."""
    start: int | None
    """The step that the attempt went on from. None if nothing tells which of the run's steps it has reached."""
    at: float
    """The time of the oldest beat that tells of that step."""
    loss: float | None = None
    """The last loss that the program has told, of the lowest rank that tells one; with its step. For people."""
    loss_step: int | None = None
    lr: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress. Every method returns the next progress; most return events that tell it too."""

    high_step: int = -1
    """The highest step that any attempt has reached, or -1."""
    checkpoint: int = -1
    """The newest committed step that is known, or -1."""
    placed: bool = True
    """Whether the steps of the newest attempt that has trained are known as steps of the run."""
    untold: frozenset[int] = frozenset()
    """Checkpoints that existed when this supervisor began, and that no event has told."""
    unsaid: int = -1
    """The step that the last look at the disk found, if no note has told it."""
    found: frozenset[int] = frozenset()
    """Steps that are told already, because they were found on disk or an earlier supervisor told them. The ranks that
    saved them, or the flush, may still tell them. That is then not told again."""

    @property
    def step(self) -> int:
        """The highest step. -1 if nothing tells which of the run's steps are done."""
        return self.high_step if self.placed else -1

    def reached(self, step: int) -> Progress:
        """The progress after a step that was done without being told."""
        return replace(self, high_step=max(self.high_step, step))

    def trained(self, attempt: int, by: Trained) -> tuple[Progress, list[Emit]]:
        """The progress after the attempt has come that far."""
        if by.start is None:
            return replace(self, placed=False), [_first_step(-1, -1, -1, by.at)]
        events = [_first_step(by.step, by.start, max(0, self.high_step - by.start), by.at)]
        if by.step < self.high_step:
            return replace(self, placed=True), events
        if attempt > 0:
            events.append(Emit("caught_up", fields={"step": by.step}, once="caught_up"))
        return replace(self, placed=True, high_step=by.step), events

    def committed(self, step: int, **about: Any) -> tuple[Progress, list[Emit]]:
        """The progress after the checkpoint of that step became durable."""
        after = replace(self, checkpoint=max(self.checkpoint, step), untold=self.untold - {step})
        return after, [Emit("checkpoint_committed", fields={"step": step, **about})]

    def made(self, step: int, **about: Any) -> tuple[Progress, list[Emit]]:
        """The maker of the checkpoint of `step` tells it. It may be late: a newer checkpoint may exist by then."""
        if step in self.found:
            return replace(self, found=self.found - {step}), []
        return self.committed(step, **about) if step >= 0 else (self, [])

    def flushed(self, outcome: Mapping[str, Any]) -> tuple[Progress, list[Emit]]:
        """The progress after a flush. A flush is told like a save by the ranks."""
        if "error" in outcome:
            return self, [Emit("checkpoint_failed", "error", {"by": "flush", **outcome})]
        if outcome.get("existed"):
            return self, []
        about = {key: value for key, value in outcome.items() if key not in ("warning", "seconds", "step")}
        warning, step = outcome.get("warning"), int(outcome["step"])
        events = [Emit("warning", "warning", {"text": warning})] if warning else []
        # No rank waited for the flush. So its seconds are not a stall.
        after, told = self.made(step, by="flush", took_s=outcome.get("seconds"), **about)
        return after, events + told

    def scanned(self, newest: int, final: bool) -> tuple[Progress, list[Emit]]:
        """The progress after `newest` was found on disk. The step is told if the last look found it too, or if there
        will be no other look (`final`). In that case its rank has died between the commit and its note."""
        after, events = replace(self, unsaid=newest), list[Emit]()
        if newest < self.checkpoint:
            found = frozenset(step for step in self.found if step <= newest)
            return replace(after, checkpoint=newest, found=found), []
        if newest > self.checkpoint and (final or newest == self.unsaid):
            after, events = after.committed(newest)
            after = replace(after, found=after.found | {newest})
        return after, events

    def caught_up(self) -> tuple[Progress, list[Emit]]:
        """Tells the checkpoints that neither an event nor a note has told."""
        after, events = self, list[Emit]()
        for step in sorted(self.untold):
            after, told = after.committed(step)
            events += told
        return replace(after, found=after.found | self.untold), events


def begin(high_step: int, committed: Collection[int], told: Collection[int] | None = None) -> Progress:
    """The progress of a run with these checkpoints on disk. `told`: the steps that the events tell. It is given if a
    supervisor died, which may not have told all."""
    newest = max(committed, default=-1)
    if told is None:
        return Progress(high_step, newest)
    before, there = frozenset(told), frozenset(committed)
    return Progress(high_step, min(newest, max(before, default=-1)), untold=there - before, found=before)


def _first_step(step: int, start: int, lost: int, at: float) -> Emit:
    return Emit(
        "first_step", fields={"step": step, "from_step": start, "lost_steps": lost, "at_mono": at}, once="first_step"
    )
