"""The work of a node that follows: its limb, led by the messages of the leader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from supervisor.attempt.attempt import Attempt
from supervisor.attempt.watch import Watch
from supervisor.core import machine
from supervisor.core.actions import Reach
from supervisor.core.machine import Mode
from supervisor.core.model import Observation
from supervisor.core.poll_interval import CALM, URGENT, poll_interval
from supervisor.core.telling.news import News
from supervisor.group.seat import Seat
from supervisor.nodes.follow.ordered import Ordered
from supervisor.nodes.limb import Limb
from supervisor.nodes.talk import messages as says
from supervisor.process.reaper import Reaper
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir
from trainer.rundir.records.gate import Release
from trainer.rundir.variables import MARK

_FRESH_EVERY = 0.15
"""Seconds between two looks that go with a beat, which wakes nobody."""


class Duty:
    """This node's part of the attempts of a run. `busy`: something of an attempt may run here."""

    def __init__(
        self,
        run: RunDir,
        spec: Spec,
        environ: Mapping[str, str],
        reaper: Reaper,
        tell: Callable[[msgspec.Struct], object],
        variables: Mapping[str, str],
        helpers: set[int],
    ) -> None:
        """`spec` is that of this node: with its mark and its address. Its ranks get the `variables`, too. `helpers` are
        processes of ours that belong to no attempt."""
        self.helpers = helpers
        self.run, self.spec = run, spec
        self._variables = dict(variables)
        self.limb = Limb(run, spec, environ, lambda: helpers)
        self.groups = Ordered(spec, run, environ, tell)
        self.limb.groups = self.groups
        self.busy = False
        self._reaper = reaper
        self._mode, self._stepped, self._silent = Mode.BACKOFF, False, dict[int, float]()
        self._launched_at = 0.0
        self._killed_at: float | None = None
        self._asked = set[tuple[str, Reach]]()
        """The signals that the attempt was sent, but for a KILL. A leader that does not know repeats them."""
        self._freed = False
        self._fresh_at = float("-inf")
        self._told: Any = None
        self.newest: says.Seen | None = None
        """The newest look, for the next beat."""
        self._notes: News = News()

    # ── what the leader says ────────────────────────────────────────────────────────────────────────────────────────

    def launch(self, group: str, seat: Seat, body: Release, now: float) -> bool:
        """The group becomes an attempt. False if the order is of another time."""
        if self.busy or body.attempt <= self.limb.number:
            return False
        env = {**body.env, **self._variables, MARK: f"{self.spec.mark}.{body.attempt}"}
        own = msgspec.structs.replace(body, env=env)
        self.limb.leave(now)
        self.groups.release(group, seat)
        self.limb.attempt = Attempt(self.run, self.spec, body.attempt, lambda: own, self._reaper, now)
        self.busy, self._mode, self._launched_at, self._killed_at = True, Mode.RUNNING, now, None
        self._stepped, self._silent, self._told = False, {}, None
        self._asked.clear()
        return True

    def hear(self, state: says.State) -> None:
        """The leader's view of the attempt."""
        if state.attempt == self.limb.number and self.busy:
            self._stepped, self._silent = state.stepped, state.silent
            if state.stopping:
                self._mode = Mode.STOPPING

    def signal(self, attempt: int, name: str, reach: Reach, now: float) -> bool:
        """The signal is sent, once; a KILL is repeated at each look. False if nothing of that attempt runs here."""
        if attempt != self.limb.number or not self.busy:
            return False
        self._mode = Mode.STOPPING
        if name == "KILL":
            self._killed_at = self._killed_at or now
        elif (name, reach) in self._asked:
            return True
        self.limb.send(name, reach, now)
        self._asked.add((name, reach))
        return True

    def fence(self, now: float) -> None:
        """What runs here is killed, from now on at each look. This node may not be part of the run any more."""
        self.groups.drop_all()
        if self.busy and self._killed_at is None:
            self.signal(self.limb.number, "KILL", Reach.ALL, now)

    def dump(self, attempt: int) -> None:
        if attempt == self.limb.number:
            self.limb.dump()

    def ask_faults(self, attempt: int) -> None:
        if attempt == self.limb.number and self.limb.attempt is not None and self.limb.attempt.watch is not None:
            self.limb.attempt.watch.ask_faults()

    # ── look ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def look(self, now: float, ended: set[int]) -> Iterator[msgspec.Struct]:
        """Yields what the leader should know. `ended` are the fds that were readable."""
        attempt = self.limb.attempt
        trains = self._mode is Mode.RUNNING and self._stepped
        self.groups.tick(now, ended, calm=trains)
        if attempt is None or not self.busy:
            return
        if self._mode is Mode.RUNNING:
            attempt.raise_up(self.groups, now)
        if self._killed_at is not None:
            self.limb.send("KILL", Reach.ALL, now)
        seen, news = self.limb.look(now, ended, self._mode, self._silent)
        over = self._mode is Mode.STOPPING and not seen.alive
        news, urgent = self._kept(news), self._is_news(seen, news) or over
        if urgent or now >= self._fresh_at + _FRESH_EVERY:
            beats = attempt.watch.beats if attempt.watch is not None else []
            self._fresh_at = now
            # First the beat: none that comes after the message may be older.
            self.newest = says.Seen(attempt.number, seen, replace(news, notes=(), joined=()), beats)
            if urgent:
                yield says.Seen(attempt.number, seen, news, beats)
        if not urgent:
            self._notes = news
        for text in self.limb.settle(now) if trains else ():
            yield says.Told("warning", "warning", {"text": text})
        if over:
            self.busy, self._mode = False, Mode.BACKOFF
            self._freed = True
            yield says.Gone(attempt.number)

    def _kept(self, news: News) -> News:
        """The news with what was not told yet."""
        before, self._notes = self._notes, News()
        return replace(news, notes=(*before.notes, *news.notes), joined=(*before.joined, *news.joined))

    def _is_news(self, seen: Observation, news: News) -> bool:
        """Whether the leader should know at once."""
        phases = tuple((view.rank, view.phase, view.stopped, bool(view.held)) for view in seen.ranks)
        told = (len(seen.exits), len(seen.raised), seen.alive, seen.launch_error, seen.stacks, phases, bool(seen.steps))
        before, self._told = self._told, told
        return bool(told != before or news.notes or news.joined)

    def freed(self) -> bool:
        """Whether this node has got rid of its part of an attempt since the last call."""
        freed, self._freed = self._freed, False
        return freed

    @property
    def watch(self) -> Watch | None:
        """The watch of the attempt that runs here."""
        return self.limb.attempt.watch if self.busy and self.limb.attempt is not None else None

    def interval(self, now: float) -> float:
        """The most seconds until the next look."""
        if not self.busy:
            return URGENT if self.groups.making else CALM
        state = machine.State(
            self._mode, stepped=self._stepped, launched_at=self._launched_at, killed_at=self._killed_at
        )
        return min(poll_interval(state, now), URGENT if self.groups.making else CALM)

    def fds(self) -> list[int]:
        """The descriptors that are readable when something has ended."""
        return self.limb.fds()

    def close(self) -> None:
        """All evidence is on disk, and nothing is held any more. Its processes are gone."""
        self.limb.close()
        if self.limb.attempt is not None:
            self.limb.attempt.leave()
