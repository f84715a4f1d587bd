"""The briefing of an attempt: how its program resumes. It changes the command line, and tells the ranks what to hand
over."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from supervisor.core.model import Cause, Do
from supervisor.core.own_saves.resume import Offer, filled, has_placeholders
from supervisor.core.rules import action
from supervisor.run.candidates import candidates
from supervisor.run.own_saves import Journals
from supervisor.run.spec import Spec
from trainer.adapters.choice import OFF, Choice, choose, edited
from trainer.adapters.program import Program
from trainer.adapters.protocol import Adapter, Case, Checkpoint
from trainer.rundir.files.codec import read
from trainer.rundir.layout import RunDir
from trainer.rundir.records.rollback import Rollback
from trainer.rundir.records.told import Told, Trackers

ADAPTERS = "supervise.adapters"
"""The entry-point group of adapters that other people have written."""
MOST_KEPT = 5
Edit = tuple[int, int, list[str]]


@dataclass(frozen=True, slots=True)
class Situation:
    """The state of a run when its next attempt is about to be launched."""

    attempt: int
    fresh: bool = False
    """Whether the attempt begins anew: --resume never."""
    since: int = 0
    """The first attempt whose saves may be used."""
    rollback: Rollback | None = None
    resume_args: bool = True
    """Whether the attempt gets --resume-args."""
    changed: bool = False
    """Whether the program has changed."""
    hooks: tuple[str, ...] = ()
    """Adapters of other people that take part in the ranks."""
    nodes: int = 1
    """The number of nodes that take part."""


@dataclass(frozen=True, slots=True)
class Briefing:
    """The things that one attempt is told."""

    edits: tuple[Edit, ...] = ()
    """Changes of its arguments (see trainer.rundir.records.gate.Release), the last argument first."""
    told: Told = field(default_factory=Told)
    level: str = "info"
    event: dict[str, Any] | None = None
    """The fields of the event `adapter`. None if there is nothing to say."""


def brief(journals: Journals, spec: Spec, now: Situation, others: Iterable[Adapter] = ()) -> Briefing:
    """The briefing of attempt `now.attempt`. Attempt 0 is told nothing, and so is an attempt that begins anew."""
    program = known_program(journals.run)
    record = now.attempt == 0 or now.changed or not program.trained
    words = shlex.split(spec.resume_args) if now.resume_args else []
    first = len(spec.command) + spec.module
    if now.attempt == 0 or now.fresh:
        found: tuple[Checkpoint, ...] = ()
    else:
        found = candidates(journals, spec.nproc * now.nodes, now.since, now.rollback)
    newest = found[0] if found else None
    path, step = (newest.path, newest.step) if newest else ("", -1)
    guard = action(spec.policy, Cause.STARTED_OVER) is Do.STOP
    trackers = _trackers(spec, now)
    told = Told(
        hooks=now.hooks,
        record=record,
        saved=path,
        step=step,
        others=_others(found),
        guard=guard,
        trackers=trackers,
        numbers=spec.log_restarts,
        facts={} if now.attempt == 0 or now.fresh else program.facts,
    )
    if words:
        put = list(filled(words, _offer(newest) if newest else None))
        edits = () if put == words else ((first, len(words), put),)
        event = None
        if has_placeholders(words) and put:
            event = _event("--resume-args", " ".join(put), newest)
        return Briefing(edits, told, event=event)
    if now.attempt == 0 or now.fresh:
        return Briefing(told=told)
    choice = choose(Case(program, spec.command, found, spec.nproc * now.nodes), spec.adapter, others)
    if choice is None:
        return Briefing(told=told)
    told = msgspec.structs.replace(told, trainings={each.path: each.training for each in found if each.training})
    return _told(spec, choice, told)


def _others(found: tuple[Checkpoint, ...]) -> tuple[str, ...]:
    """The saves beside the newest one that are worth a second name if the program starts over. Those without a number
    in their name come first: the program will write over them."""
    numbered: dict[str, bool] = {}
    for each in found:
        numbered.setdefault(each.path, each.number >= 0)
    return tuple(sorted([*numbered][1:], key=numbered.__getitem__)[:MOST_KEPT])


def _trackers(spec: Spec, now: Situation) -> Trackers:
    if spec.adapter == OFF:
        return Trackers.OFF
    return Trackers.FIRST if now.attempt == 0 or now.fresh else Trackers.LATER


def _told(spec: Spec, choice: Choice, told: Told) -> Briefing:
    plan = choice.plan
    event = _event(choice.adapter, plan.say, plan.checkpoint)
    if plan.refused:
        event["text"] = f"adapter {choice.adapter} tells the program nothing: {plan.say}"
        return Briefing(told=told, level="warning" if told.saved else "info", event=event)
    index, words = edited(spec.command, plan)
    edits: tuple[Edit, ...] = ((index + spec.module, 0, list(words)),) if words else ()
    checkpoint = plan.checkpoint
    told = msgspec.structs.replace(told, adapter=choice.adapter, offers=plan.offers)
    if checkpoint is not None:
        told = msgspec.structs.replace(told, saved=checkpoint.path, step=checkpoint.step)
    return Briefing(edits, told, "warning" if plan.warn else "info", event)


def _event(adapter: str, say: str, checkpoint: Checkpoint | None) -> dict[str, Any]:
    step = checkpoint.step if checkpoint else -1
    at = f", saved at step {step}" if step >= 0 else ""
    path = checkpoint.path if checkpoint else ""
    text = f"told to go on by {say}{at}" if checkpoint else f"told {say}; it has saved nothing to go on from yet"
    return {"adapter": adapter, "path": path, "step": step, "text": text}


def beside(event: dict[str, Any], ours: int) -> dict[str, Any]:
    """The fields of `event`, if there is also a state of `ours` at that step: of two lines of the user's that make
    snapshots. If it is newer, the program goes on from it."""
    if ours < 0 or not 0 <= event["step"] <= ours:
        return event
    return {**event, "text": f"goes on from its snapshot of step {ours}; without that, {event['text']}"}


def _offer(checkpoint: Checkpoint) -> Offer:
    path = checkpoint.path
    folder = path
    if checkpoint.kind in ("file", "lightning"):
        folder = os.path.dirname(path)  # noqa: PTH120 (as the program spells it)
    return Offer(path, folder, checkpoint.step)


def known_program(run: RunDir) -> Program:
    """The things that earlier attempts have shown about the run's program."""
    try:
        return read(run.options, Program)
    except (OSError, ValueError):
        return Program()
