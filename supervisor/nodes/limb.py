"""What one node does for a run: its part of the attempt, from its group to the proof that nothing of it is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from supervisor.attempt.attempt import Attempt, Groups, sweep
from supervisor.attempt.gpus import VISIBLE, Gpus, are_here
from supervisor.core.actions import Reach
from supervisor.core.machine import Mode
from supervisor.core.model import Observation
from supervisor.core.stack import Stacks
from supervisor.core.telling.news import News
from supervisor.nodes.proof import Proof
from supervisor.process.proctree import Process, inherited
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir

_INHERITED_EVERY = 1.0
"""Seconds between two looks at the processes below us that are not the run's."""


class Waiting(Groups, Protocol):
    """The groups of this node that wait, and where they come from."""

    @property
    def on_gpu(self) -> bool:
        """Whether a waiting group may hold memory of a GPU."""

    def spared(self) -> set[int]:
        """The root processes of the trees that belong to no attempt yet."""

    def fds(self) -> list[int]:
        """The descriptors that are readable when there is news of them."""


class Limb:
    """The attempts of this node. At most one runs at a time; `attempt` stays until the next one, even if it is over."""

    def __init__(self, run: RunDir, spec: Spec, environ: Mapping[str, str], helpers: Callable[[], set[int]]) -> None:
        """`helpers`: the pids of other processes of the run here, which belong to no attempt."""
        self.attempt: Attempt | None = None
        self.groups: Waiting
        """Set by the caller, before it launches or looks."""
        self._run, self._helpers, self._mark = run, helpers, spec.mark
        # A run that has lost a device goes on without it, also when it is resumed.
        self._environ = {**environ, **({VISIBLE: spec.devices} if spec.devices else {})}
        self._inherited_at = float("-inf")
        self._proof = Proof(spec.mark, spec.policy.stuck_after)
        self._gpus: Gpus | None = None
        self._left: list[Attempt] = []
        """Attempts that are over and whose evidence is not on disk yet."""

    @property
    def number(self) -> int:
        """The number of the newest attempt, or -1."""
        return -1 if self.attempt is None else self.attempt.number

    # ── look ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def look(self, now: float, ended: set[int], mode: Mode, silent: Mapping[int, float]) -> tuple[Observation, News]:
        """The state of this node's part as of `now`, and its news. `ended` are the fds that were readable, `silent`
        the ranks of which samples are wanted, with their seconds of silence."""
        attempt = self.attempt
        if now >= self._inherited_at + _INHERITED_EVERY:
            # What they have started is known by its parent, so it is seen before that ends.
            self._inherited_at = now
            inherited(self._mark)
        if attempt is None:
            return Observation(now), News()
        attempt.gpus = self._gpus
        attempt.sample(silent, now)
        attempt.ending.next_has_memory = self.groups.on_gpu
        return attempt.look(now, ended, mode, self.spared())

    def settle(self, now: float) -> Iterator[str]:
        """Does what no recovery may wait for, once the attempt trains: the evidence of earlier ones is on disk, and
        what they have left is ended. Yields what a person should know of it."""
        if self.attempt is None:
            return
        self._keep_evidence()
        if are_here():
            self.gpus()
        yield from self._proof.look(self.attempt, self.spared(), now)

    def gpus(self) -> Gpus:
        """The devices. The first question takes a moment, so it is asked while nothing is urgent."""
        if self._gpus is None:
            self._gpus = Gpus(self._environ)
            self._gpus.watch()
        return self._gpus

    def use(self, spec: Spec) -> None:
        """Later attempts are on the devices of `spec`. The others count no more."""
        self.gpus().use(spec.devices)

    def spared(self) -> set[int]:
        """Processes of the run that belong to no attempt."""
        return self.groups.spared() | self._helpers()

    def fds(self) -> list[int]:
        """The descriptors that are readable when something has ended."""
        return [*self.groups.fds(), *(self.attempt.fds() if self.attempt else [])]

    def slow_to_go(self, now: float) -> tuple[Process, ...]:
        """As Attempt.slow_to_go()."""
        return self.attempt.slow_to_go(now) if self.attempt else ()

    def living(self) -> int:
        """The number of its ranks that are alive, as far as is known."""
        return self.attempt.living() if self.attempt is not None else 0

    # ── act ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def leave(self, now: float) -> None:
        """Closes the attempt, which is over. Its evidence is written when the next one trains, so that the recovery
        has the machine for itself."""
        self._keep_evidence()
        if self.attempt is not None:
            self._proof.over(self.attempt, now)
            self.attempt.leave()
            self._left.append(self.attempt)

    def send(self, name: str, reach: Reach, now: float) -> int:
        """Sends the signal. Returns the number of receivers."""
        return self.attempt.send(name, reach, self.spared(), now) if self.attempt is not None else 0

    def let_go(self) -> None:
        """Every rank of every node has exited with 0. So the launcher that serves their store may end."""
        if self.attempt is not None:
            self.attempt.let_go()

    def dump(self) -> Stacks | None:
        """The stacks of the ranks here, now also in the attempt's folder. None before there are ranks."""
        return self.attempt.dump() if self.attempt is not None else None

    def _keep_evidence(self) -> None:
        while self._left:
            self._left.pop().keep_evidence()

    def close(self) -> None:
        """All evidence is on disk, and half-written files of ended attempts are removed."""
        self._keep_evidence()
        if self.attempt is not None:
            self.attempt.keep_evidence()
        for number in self._run.attempts():
            sweep(self._run, number)
