"""Tells each attempt how its program resumes, and records that as an event."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Mapping, Sized
from typing import Any

from supervisor.core.model import Rollback
from supervisor.core.own_saves.resume import are_in_doubt
from supervisor.run.briefing import ADAPTERS, Briefing, Situation, beside, brief
from supervisor.run.events import EventLog
from supervisor.run.own_saves import Journals, newest_whole
from supervisor.run.spec import Spec
from trainer.adapters.choice import OFF
from trainer.adapters.protocol import Adapter
from trainer.rundir.records import rollback as rollbacks


class Briefer:
    """The briefings of one run's attempts."""

    def __init__(self, journals: Journals, spec: Spec, log: EventLog, since: int) -> None:
        self._journals, self._spec, self._log = journals, spec, log
        self._since = since
        self._others: dict[str, Adapter] | None = None
        self._gave = False
        """Whether the newest attempt has got --resume-args."""
        self._doubted = False
        """Whether it may have failed because of them."""

    def use(self, spec: Spec) -> None:
        """Later attempts are as `spec` asks."""
        self._spec = spec

    def hear(self, event: str, fields: Mapping[str, Any]) -> None:
        """Takes an event about the attempt that is over, before it is told."""
        if event == "relaunch_scheduled" and self._gave:
            words, saved = shlex.split(self._spec.resume_args), newest_whole(self._journals) is not None
            self._doubted = are_in_doubt(words, saved, bool(fields.get("startup_failures")))

    def brief(
        self,
        number: int,
        resume: str,
        rollback: Rollback | None,
        changed: bool,
        checkpoint: int,
        ours: int,
        nodes: Sized,
    ) -> tuple[bool, Briefing]:
        """Whether the attempt gets --resume-args (as a relaunch), and its briefing. Both are told as events.
        `checkpoint`: the newest checkpoint of ours, or -1. `ours`: the newest state of ours, in memory too. `nodes`
        take part in it; none: there is one."""
        if resume == "never":
            self._since = number
        relaunch = checkpoint >= 0 or (number > 0 and resume != "never")
        without, self._doubted = self._doubted, False
        order = rollbacks.Rollback(rollback.attempt, rollback.before, rollback.skip_to) if rollback else None
        others = self._adapters()
        hooks = tuple(value for value, adapter in others.items() if getattr(adapter, "hooks", None))
        now = Situation(
            number, resume == "never", self._since, order, relaunch and not without, changed, hooks, len(nodes) or 1
        )
        briefing = brief(self._journals, self._spec, now, others.values())
        if without:
            said = "nothing was saved, and the attempt with them reached no step: the next one is tried without them"
            self._log.emit("adapter", "warning", adapter="--resume-args", text=f"{self._spec.resume_args}: {said}")
        if briefing.event is not None:
            self._log.emit("adapter", briefing.level, **beside(briefing.event, ours))
        self._gave = relaunch and not without
        return self._gave, briefing

    def _adapters(self) -> dict[str, Adapter]:
        """The adapters that other people have installed, by entry point. An adapter that cannot be loaded is left out,
        with a warning."""
        if self._others is None:
            self._others = {}
            points = importlib.metadata.entry_points(group=ADAPTERS) if self._spec.adapter != OFF else ()
            for point in points:
                try:
                    self._others[point.value] = point.load()
                except Exception as error:  # anybody's code
                    text = f"the adapter {point.name} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
                    self._log.emit("warning", "warning", text=text)
        return self._others
