"""Tells a run's events: what is new in an attempt's beats, its ranks' notes, and the checkpoints on disk."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from supervisor.attempt.attempt import Attempt
from supervisor.attempt.watch import Watch
from supervisor.core.diagnosis.diagnose import where
from supervisor.core.program import Change, sentence
from supervisor.core.saves import Save, Saves
from supervisor.core.stack import Stacks, summary
from supervisor.run.events import EventLog
from trainer.rundir.layout import RunDir, committed_steps, newest_checkpoint
from trainer.rundir.records.faults import Fault

_SCAN_EVERY = 0.5
_SAVES_EVERY = 30.0
"""Seconds between two events about the script's own saves: it may make one every step."""
_ONCE = {"group_ready": "ready", "resumed": "resumed", "first_step": "first", "caught_up": "caught up"}
_ONCE |= {"group_gone": "gone"}
"""Events that are told once an attempt, with the key under which once() knows them."""


class Narrator:
    """Knows what has been told, and so what is news."""

    def __init__(self, run: RunDir, log: EventLog, high_step: int, told: Collection[int] | None = None) -> None:
        """`told` are the checkpoints that the events tell of, where a supervisor died that may not have told of all."""
        self.checkpoint = newest_checkpoint(run.checkpoints)
        """The newest committed step, or -1."""
        self._untold: set[int] = set()
        if told is not None:
            self.checkpoint = min(self.checkpoint, max(told, default=-1))
            self._untold = set(committed_steps(run.checkpoints)) - set(told)
        self.high_step = high_step
        """The highest step that any attempt has reached, or -1."""
        self.flushes_due: list[tuple[int, int | None]] = []
        """(step, checkpoints to keep) of the snapshots that the ranks want flushed."""
        self._stalls: dict[int, float] = {}
        """By step to be flushed: for how long training was held up before."""
        self.placed = True
        """Whether the steps of the newest attempt that has trained are known as steps of the run."""
        self._save: Save | None = None
        self._save_at = float("-inf")
        self._run, self._log = run, log
        self._said: set[str] = set()
        self._known: set[int] = set()
        """Pids of ranks of which an earlier supervisor has told."""
        self._heard: set[float] = set()
        """When those notes were made that an earlier supervisor has told of."""
        self._unsaid = -1
        """A step that the last scan found without its note."""
        self._found: set[int] = set(told or ())
        """Steps that are told already, as a scan found them, or by an earlier supervisor, and whose own word may yet
        come: from the ranks that saved them, or the flush."""
        self._scanned_at = float("-inf")

    def new_attempt(self, number: int) -> None:
        """What is told once an attempt may be told again."""
        self._log.attempt = number
        self._said.clear()
        self._heard.clear()
        self._known.clear()

    def program_changed(self, found: tuple[Change, ...]) -> None:
        """That the attempt runs another program than the one before is told."""
        if found:
            text = sentence(self._log.attempt, self._log.attempt - 1, found)
            self._log.emit("program_changed", "warning", files=[asdict(change) for change in found], text=text)

    def started(self, attempt: Attempt, nproc: int) -> None:
        """That the attempt has a launcher is told."""
        fields: dict[str, Any] = {
            "launcher_pid": attempt.launcher_pid,
            "kind": attempt.kind,
            "nproc": nproc,
            "checkpoint_step": self.checkpoint,
            "wanted_mono": attempt.wanted,
        }
        self._log.emit("attempt_started", **fields)

    def go_on(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Nothing that `events` tell already, of the attempt that goes on, is told again."""
        for event in events:
            if (key := _ONCE.get(event["msg"])) is not None:
                self._said.add(key)
            if event["msg"] == "rank_joined":
                self._known.add(event["pid"])
            if isinstance(event.get("noted_mono"), float):
                self._heard.add(event["noted_mono"])

    def once(self, key: str, event: str, **fields: Any) -> None:
        """The event is told once an attempt under `key`."""
        if key not in self._said:
            self._said.add(key)
            self._log.emit(event, **fields)

    def tell(self, watch: Watch, nproc: int) -> None:
        """What the ranks have done and noted since the last call is told."""
        if len(watch.seen_ranks) == nproc:
            self.once("ready", "group_ready", pids=[watch.seen_ranks[rank] for rank in sorted(watch.seen_ranks)])
        for rank in watch.replaced:
            text = f"rank {rank} has become another program (exec): its end is seen; its steps and hangs no longer are"
            self.once(f"replaced {rank}", "warning", level="warning", rank=rank, text=text)
        while watch.joined:
            rank, pid = watch.joined.pop(0)
            if pid not in self._known:
                self._log.emit("rank_joined", rank=rank, pid=pid)
        self.hear(watch.notes())
        steps = watch.steps()
        trained = [beat for beat in watch.beats if beat.rank in steps]
        if not trained:
            return
        step, start = max(steps.values()), watch.from_step()
        at = min(beat.at for beat in trained)
        self.placed = start is not None
        if start is None:
            self.once("first", "first_step", step=-1, from_step=-1, lost_steps=-1, at_mono=at)
            return
        lost = max(0, self.high_step - start)
        self.once("first", "first_step", step=step, from_step=start, lost_steps=lost, at_mono=at)
        if step >= self.high_step:
            if self._log.attempt > 0:
                self.once("caught up", "caught_up", step=step)
            self.high_step = step

    def tell_saves(self, saves: Saves, now: float, final: bool) -> None:
        """The newest save of the script's own is told now and then, and the last of an attempt; and what it left torn."""
        newest = saves.newest
        if newest is not None and newest != self._save and (final or now >= self._save_at + _SAVES_EVERY):
            self._save, self._save_at = newest, now
            about: dict[str, Any] = {"path": newest.path, "step": newest.step, "rank": newest.rank}
            about |= {"bytes": newest.size, "took_s": round(newest.took, 6), "noted_mono": newest.at}
            self._log.emit("script_saved", **about)
        if final:
            for save in saves.cut():
                text = f"rank {save.rank} was saving {save.path} {where(save.step, True)} when the attempt ended: it is torn"
                if not save.beside and save.within is None:
                    self.once(f"torn {save.path}", "warning", level="warning", text=text)

    def hear(self, notes: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """What is new in the ranks' `notes` is told."""
        for rank, note in notes:
            if note.get("mono") not in self._heard:
                self._tell_note(rank, note)

    def flushed(self, outcome: dict[str, Any]) -> None:
        """How a flush ended is told, as a save of the ranks' own would be."""
        if stall_s := self._stalls.pop(outcome.get("step", -1), 0.0):
            outcome = {**outcome, "stall_s": stall_s}
        if "error" in outcome:
            self._log.emit("checkpoint_failed", "error", by="flush", **outcome)
        elif not outcome.get("existed"):
            if warning := outcome.pop("warning", None):
                self._log.emit("warning", "warning", text=warning)
            # Nobody waited for it: its seconds are not a stall.
            took, step = outcome.pop("seconds", None), int(outcome.pop("step"))
            self._heard_of(step, by="flush", took_s=took, **outcome)

    def faults(self, armed: Iterable[Fault], fired: Iterable[Mapping[str, Any]]) -> None:
        """The faults that were asked for, and those that have struck, are told."""
        for fault in armed:
            self._log.emit("fault_armed", number=fault.number, spec=fault.text)
        for body in fired:
            fields = {key: body[key] for key in ("spec", "fault", "rank", "step") if key in body}
            self._log.emit("fault_injected", "warning", injected=True, fired_mono=body.get("mono"), **fields)

    def catch_up(self) -> None:
        """The checkpoints that were there already, and neither an event nor a note has told of, are told."""
        for step in sorted(self._untold):
            self._committed(step)
            self._found.add(step)

    def _heard_of(self, step: int, **fields: Any) -> None:
        """Who has made the checkpoint of `step` says so. They may say it late: of an older step than the newest one."""
        if step in self._found:
            self._found.discard(step)
        elif step >= 0:
            self._committed(step, **fields)

    def _committed(self, step: int, **fields: Any) -> None:
        self.checkpoint = max(self.checkpoint, step)
        self._untold.discard(step)
        self._log.emit("checkpoint_committed", step=step, **fields)

    def removed_from_memory(self, segment: Path) -> None:
        """That somebody else has removed what a restart would have gone on from is told."""
        text = f"another program has removed this run's snapshots from {segment.parent}: it goes on from the disk"
        self._log.emit("warning", "warning", text=text)

    def only_in_memory(self, step: int, segment: Path) -> None:
        """That the newest step is safe until the machine stops, and no longer, is told."""
        text = (
            f"step {step} could not be saved; it is in memory only, in {segment}, until the machine stops: make room, "
        )
        text += "then save it with supervise gc --yes, or go on from it with supervise resume"
        self._log.emit("warning", "error", text=text)

    def stacks(self, found: Stacks) -> None:
        """Where the ranks stand is told, in groups."""
        ranks = sorted(stack.rank for stack in found.stacks if stack.frames and stack.child is None)
        missing = sorted(stack.rank for stack in found.stacks if not stack.frames and stack.child is None)
        self._log.emit("stacks_dumped", ranks=ranks, missing=missing, groups=summary(found.stacks))

    def scan(self, now: float, final: bool) -> None:
        """The newest checkpoint on disk is known, also when its rank died between the commit and the note of it."""
        if now < self._scanned_at + _SCAN_EVERY and not final:
            return
        self._scanned_at = now
        newest = newest_checkpoint(self._run.checkpoints)
        if newest < self.checkpoint:
            self.checkpoint, self._found = newest, {step for step in self._found if step <= newest}
        if newest > self.checkpoint and (final or newest == self._unsaid):
            self._committed(newest)
            self._found.add(newest)
        self._unsaid = newest

    def _tell_note(self, rank: int, note: dict[str, Any]) -> None:
        kind = note.pop("kind")
        note["noted_mono"] = note.pop("mono", None)
        match kind:
            case "resumed":
                self.once("resumed", "resumed", rank=rank, **note)
            case "data_skipped":
                self._log.emit("data_skipped", "warning", rank=rank, **note)
            case "checkpoint_saved":
                self._heard_of(int(note.pop("step", -1)), **note)
            case "flush_due":
                self.flushes_due.append((int(note["step"]), note.get("keep")))
                if isinstance(stall_s := note.get("stall_s"), int | float):
                    self._stalls[int(note["step"])] = stall_s
            case "checkpoint_failed":
                self._log.emit("checkpoint_failed", "error", rank=rank, **note)
            case "checkpoint_bad":
                self._log.emit("checkpoint_quarantined", "error", rank=rank, **note)
            case "warning":
                self._log.emit("warning", "warning", rank=rank, **note)
            case _:
                pass
