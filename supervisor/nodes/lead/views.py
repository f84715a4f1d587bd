"""What the members of an attempt have seen and told last, as one observation and one piece of news."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from supervisor.core.model import Observation
from supervisor.core.nodes.merge import LimbView, merge, same
from supervisor.core.telling.news import News, Note
from supervisor.core.telling.progress import Trained
from supervisor.nodes.talk.messages import Seen

_ANSWER = 3.0
"""Seconds that the stacks of all nodes are waited for."""


_BLIND = 1.0
"""Seconds without a look, of which there are five in a second. What was seen before says nothing about now."""


class Views:
    """The newest look of each node at its part of one attempt."""

    def __init__(self) -> None:
        self.offsets: dict[int, float] = {}
        """By node whose clock is known: its monotonic clock minus ours, in seconds."""
        self._times: dict[int, dict[float, float]] = {}
        """By node: the times of its newest look, and what they are by our clock."""
        self._attempt = -1
        self._seen: dict[int, Observation] = {}
        self._news: dict[int, News] = {}
        self._looked: dict[int, float] = {}
        """By node: when its newest look came."""
        self._notes: list[Note] = []
        self._joined: list[tuple[int, int]] = []
        self._asked_at, self._unanswered = float("-inf"), set[int]()

    def begin(self, attempt: int) -> None:
        """The looks are at that attempt from now on."""
        self._attempt = attempt
        self._seen.clear()
        self._news.clear()
        self._looked.clear()
        self._times.clear()
        self._notes.clear()
        self._joined.clear()
        self._unanswered.clear()

    def asked(self, now: float, nodes: Collection[int]) -> None:
        """The nodes were asked for the stacks of their ranks."""
        self._asked_at, self._unanswered = now, set(nodes)

    def take(self, node: int, message: Seen, now: float) -> None:
        """A node has looked."""
        if message.attempt != self._attempt:
            return
        self._looked[node] = now
        before = self._seen.get(node)
        if before is None or before.now <= message.seen.now:
            # Else it came with a beat that is older than a message.
            self._seen[node], self._news[node] = message.seen, message.news
        if message.seen.stacks is not None and self._here(node, message.seen.stacks.at) >= self._asked_at:
            self._unanswered.discard(node)
        self._notes += [(rank, self._dated(node, note)) for rank, note in message.news.notes]
        self._joined += message.news.joined

    def blind(self, node: int, now: float) -> bool:
        """Whether that node has looked at the attempt, and then not for a while: it may wait for a disk."""
        return now >= self._looked.get(node, now) + _BLIND

    def _here(self, node: int, at: float) -> float:
        return at - self.offsets.get(node, 0.0)

    def _clock(self, node: int) -> Callable[[float], float]:
        """The times of that node's newest look by our clock. Those of the look before stay where they were: its clock
        is known better with each beat, and a rank that stands still must not seem to move by that."""
        if node not in self.offsets:
            return same
        offset, before = self.offsets[node], self._times.get(node, {})
        times = self._times[node] = dict[float, float]()
        return lambda at: times.setdefault(at, before.get(at, at - offset))

    def _dated(self, node: int, note: Mapping[str, Any]) -> Mapping[str, Any]:
        at = note.get("mono")
        return {**note, "mono": self._here(node, at)} if isinstance(at, float) else note

    def observation(self, own: LimbView, others: Sequence[int], world: int, now: float) -> Observation:
        """What this node and the `others` see of an attempt with `world` ranks, as of `now`, by our clock."""
        views = [own]
        views += [LimbView(node, self._seen[node], self._clock(node)) for node in others if node in self._seen]
        found = merge(now, views, 1 + len(others), world)
        late = now >= self._asked_at + _ANSWER
        return replace(found, stacks=None) if self._unanswered.intersection(others) and not late else found

    def news(self, own: News, others: Sequence[int]) -> News:
        """The news of all of them since the last call."""
        each = [own, *(self._news[node] for node in others if node in self._news)]
        steps = [own.trained]
        for node in others:
            if node in self._news and (trained := self._news[node].trained) is not None:
                steps.append(replace(trained, at=self._here(node, trained.at)))
        notes, self._notes = (*own.notes, *self._notes), []
        joined, self._joined = (*own.joined, *self._joined), []
        return replace(
            own,
            pids={rank: pid for news in each for rank, pid in news.pids.items()},
            replaced=frozenset().union(*(news.replaced for news in each)),
            joined=joined,
            notes=notes,
            trained=_together([trained for trained in steps if trained is not None]),
            quiet=any(news.quiet for news in each),
        )


def _together(parts: Sequence[Trained]) -> Trained | None:
    """The progress of an attempt, from that of its parts."""
    if not parts:
        return None
    starts = [part.start for part in parts]
    teller = next((part for part in parts if part.loss is not None), parts[0])
    return Trained(
        max(part.step for part in parts),
        None if None in starts else min(start for start in starts if start is not None),
        min(part.at for part in parts),
        loss=teller.loss,
        loss_step=teller.loss_step,
        lr=next((part.lr for part in parts if part.lr is not None), None),
    )
