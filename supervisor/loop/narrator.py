"""Tells the events of a run for the core and the loop, none of them twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from supervisor.attempt.attempt import Attempt
from supervisor.core.actions import Emit, End, Reach
from supervisor.core.diagnosis.diagnose import where
from supervisor.core.own_saves.saves import Save, Saves
from supervisor.core.program import Change, sentence
from supervisor.core.stack import Stacks, summary
from supervisor.core.telling.news import Note
from supervisor.core.telling.progress import Progress
from supervisor.run.events import EventLog
from trainer.rundir.records.faults import Fault

_SAVES_EVERY = 30.0
"""Seconds between two events about the script's own saves: it may make one every step."""


class Narrator:
    """Knows which events were told, by this supervisor or by a dead one."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._said: set[str] = set()
        self._known: set[int] = set()
        """The pids of ranks that an earlier supervisor has told."""
        self._heard: set[float] = set()
        """The times of the notes that an earlier supervisor has told."""
        self._save: Save | None = None
        self._save_at = float("-inf")
        self._awaits_stacks = False

    def new_attempt(self, number: int) -> None:
        """Events that are told once an attempt may be told again."""
        self._log.attempt = number
        self._said.clear()
        self._heard.clear()
        self._known.clear()
        self._awaits_stacks = False

    def go_on(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Events of the adopted attempt that are in `events` are not told again."""
        for event in events:
            # An event that is told once in an attempt has its name as key. Other keys belong to the present state.
            self._said.add(event["msg"])
            if event["msg"] == "rank_joined":
                self._known.add(event["pid"])
            if isinstance(event.get("noted_mono"), float):
                self._heard.add(event["noted_mono"])

    def fresh(self, notes: Iterable[Note]) -> list[Note]:
        """The notes that no earlier supervisor has told."""
        return [(rank, note) for rank, note in notes if note.get("mono") not in self._heard]

    def tell(self, events: Iterable[Emit]) -> None:
        """Tells the new ones of `events`."""
        for event in events:
            fields = event.fields
            joined_before = event.event == "rank_joined" and fields["pid"] in self._known
            if event.once in self._said or joined_before:
                continue
            if event.once:
                self._said.add(event.once)
            self._log.emit(event.event, event.level, **fields)

    def warn(self, text: str, level: str = "warning", once: str = "", **about: Any) -> None:
        """Tells the text as a warning."""
        self.tell([Emit("warning", level, {**about, "text": text}, once)])

    def program_changed(self, found: tuple[Change, ...]) -> None:
        """Tells that the program has changed since the last attempt."""
        if found:
            text = sentence(self._log.attempt, self._log.attempt - 1, found)
            self._log.emit("program_changed", "warning", files=[asdict(change) for change in found], text=text)

    def started(self, attempt: Attempt, nproc: int, checkpoint: int, **about: Any) -> None:
        """Tells that the attempt has a launcher, and more `about` it."""
        fields: dict[str, Any] = {
            "launcher_pid": attempt.launcher_pid,
            "kind": attempt.kind,
            "nproc": nproc,
            "checkpoint_step": checkpoint,
            "wanted_mono": attempt.wanted,
            **about,
        }
        self._log.emit("attempt_started", **fields)

    def sent(self, name: str, reach: Reach, processes: int) -> None:
        """Tells that the signal went to so many processes of the attempt, the first time."""
        fields = {"signal": f"SIG{name}", "to": reach.value, "processes": processes}
        self.tell([Emit("signal_sent", fields=fields, once=f"signal {name}")])

    def ended(self, end: End, progress: Progress) -> None:
        """Tells that the run is over."""
        fields = {"exit_code": end.exit_code, "state": end.state, "step": progress.step}
        fields |= {"checkpoint_step": progress.checkpoint, "reason": end.reason}
        self.tell([Emit("run_ended", "info" if end.exit_code == 0 else "error", fields)])

    def saves(self, saves: Saves, now: float, final: bool) -> None:
        """Tells the script's newest save from time to time. At the end it tells the attempt's last save, and the torn
        files."""
        newest = saves.newest
        if newest is not None and newest != self._save and (final or now >= self._save_at + _SAVES_EVERY):
            self._save, self._save_at = newest, now
            about: dict[str, Any] = {"path": newest.path, "step": newest.step, "rank": newest.rank}
            about |= {"bytes": newest.size, "took_s": round(newest.took, 6), "noted_mono": newest.at}
            self._log.emit("script_saved", **about)
        if final:
            for save in saves.cut():
                what = f"{save.path} {where(save.step, True)}"
                text = f"rank {save.rank} was saving {what} when the attempt ended: it is torn"
                if save.beside and save.within is None:
                    fields = {"path": save.path, "step": save.step, "rank": save.rank}
                    fields["text"] = "what was there before is whole"
                    self.tell([Emit("save_undone", fields=fields, once=f"undone {save.path}")])
                elif save.within is None:
                    self.warn(text, once=f"torn {save.path}")

    def faults(self, armed: Iterable[Fault], fired: Iterable[Mapping[str, Any]]) -> None:
        """Tells the requested faults, and those that have struck."""
        for fault in armed:
            self._log.emit("fault_armed", number=fault.number, spec=fault.text)
        for body in fired:
            fields = {key: body[key] for key in ("spec", "fault", "rank", "step") if key in body}
            self._log.emit("fault_injected", "warning", injected=True, fired_mono=body.get("mono"), **fields)

    def removed_from_memory(self, segment: Path, several: bool) -> None:
        """Tells that somebody else has removed the snapshots that a restart needs. `several`: another node may have
        them."""
        where = "another node's, or from the disk" if several else "the disk"
        self.warn(f"another program has removed this run's snapshots from {segment.parent}: it goes on from {where}")

    def only_in_memory(self, step: int, segment: Path, part: bool) -> None:
        """Tells that the newest step is safe only until the machine stops; `part`: until one of several does."""
        if part:
            self.warn(
                f"step {step}, or the one before, is in the memory of the nodes alone, each of which has a part of it "
                f"({segment}): started again on the same ones the run goes on from there, on others from the newest "
                "checkpoint"
            )
            return
        text = (
            f"step {step} could not be saved; it is in memory only, in {segment}, until the machine stops: make room, "
        )
        text += "then save it with supervise gc --yes, or go on from it with supervise resume"
        self.warn(text, "error")

    def dumped(self, found: Stacks | None, more: bool) -> None:
        """The stacks of the ranks here, if there are ranks, were kept. `more`: those of all nodes come later."""
        self._awaits_stacks = True
        self.stacks(None if more else found)

    def stacks(self, found: Stacks | None) -> None:
        """Tells the places of the ranks, in groups, if that was awaited."""
        if found is None or not self._awaits_stacks:
            return
        self._awaits_stacks = False
        ranks = sorted(stack.rank for stack in found.stacks if stack.frames and stack.child is None)
        missing = sorted(stack.rank for stack in found.stacks if not stack.frames and stack.child is None)
        self._log.emit("stacks_dumped", ranks=ranks, missing=missing, groups=summary(found.stacks))
