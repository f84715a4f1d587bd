"""Looks at the ranks of all nodes, for people who ask the node that leads by a file in the run's folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from supervisor.nodes.look import Answer, Eyes
from supervisor.nodes.talk import messages as says
from supervisor.run.folder.stops import looked_for
from trainer.rundir.files.codec import encode
from trainer.rundir.files.durable import replace_file
from trainer.rundir.layout import RunDir

_LATE = 15.0
"""Seconds that an answer may come later than it could: py-spy reads the symbols of every library first."""
_OWN = -1
"""In place of a node's number: the node that leads."""


@dataclass
class _Ask:
    attempt: int
    until: float
    waits: set[int]
    answers: list[Answer] = field(default_factory=list)


class Looks:
    """Nothing here blocks; tick() does the work."""

    def __init__(self, run: RunDir, send: Callable[[int, msgspec.Struct], None]) -> None:
        self._run, self._send = run, send
        self._eyes = Eyes()
        self._asks: dict[str, _Ask] = {}
        self.pids: Mapping[int, int] = {}
        """The ranks of this node, set by the caller."""

    @property
    def fd(self) -> int:
        return self._eyes.fd

    def tick(self, attempt: int, others: Sequence[int]) -> None:
        """Takes the next request about the attempt, of which the `others` are members, too, and answers those that are
        complete or late."""
        now = time.monotonic()
        if asked := looked_for(self._run.look):
            name, seconds = asked
            self._asks[name] = _Ask(attempt, now + seconds + _LATE, {_OWN, *others})
            for node in others:
                self._send(node, says.Look(attempt, name, seconds))
            self._eyes.look(name, self.pids, self._run.attempt(attempt).stacks, seconds)
        for answer in self._eyes.take():
            self.answered(_OWN, answer)
        for name, ask in list(self._asks.items()):
            if not ask.waits or now >= ask.until:
                del self._asks[name]
                self._write(name, ask)

    def answered(self, node: int, answer: Answer) -> None:
        """A node has looked."""
        ask = self._asks.get(answer.ask)
        if ask is not None and node in ask.waits:
            ask.waits.discard(node)
            ask.answers.append(answer)

    def _write(self, name: str, ask: _Ask) -> None:
        """The answer of all is in the attempt's folder."""
        whole = Answer(
            name,
            sorted((s for each in ask.answers for s in each.stacks), key=lambda s: (s.rank, s.child or 0)),
            {rank: found for each in ask.answers for rank, found in each.samples.items()},
            next((each.problem for each in ask.answers if each.problem), ""),
            sorted(ask.waits - {_OWN}),
        )
        folder = self._run.attempt(ask.attempt).stacks
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            replace_file(folder / f"look.{name}.json", encode(whole))
