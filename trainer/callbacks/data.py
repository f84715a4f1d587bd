"""The place of a loop in its data, so that the batches after a restart are those that would have come.

A DataLoader's batch sampler is replaced by one that hands on the batches and notes the generators. It notes them when
an epoch begins, because the order of a shuffle follows from them. It also notes them before each of the newest batches,
because a data set may draw, too, and batches are fetched ahead of their step. After a restart the epoch begins with the
same generators, the batches that were trained on are drawn and left out, and those that had been fetched ahead are
fetched with the generators that they were fetched with.

Worker processes start with the seeds that they had. The draws that they had made by then are not repeated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ..checkpoint.state import rng

_AHEAD = 2
"""The most batches that are fetched ahead of the one in work. accelerate's loader keeps one."""


class Watched:
    """Takes the place of `sampler`, and hands on its batches. `draws`: the data set is called in this process, and may
    draw. `accumulated`: the number of batches of one step. `mark` is noted when an epoch begins."""

    def __init__(self, sampler: Any, draws: bool, accumulated: int = 1, mark: Callable[[], int] = lambda: 0) -> None:
        self.sampler = sampler
        """It has the name that it has in a batch sampler: frameworks look for it, to tell it the epoch."""
        self._draws = draws
        self._began: dict[str, Any] | None = None
        self._mark, self._marked = mark, 0
        self._notes: deque[tuple[int, Any]] = deque(maxlen=accumulated + _AHEAD)
        self._number = 0
        self._again: dict[str, Any] | None = None
        self._over: dict[str, Any] | None = None
        self._skip = 0
        self._settle: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)

    def __iter__(self) -> Iterator[Any]:
        again, skip = self._again or {}, self._skip
        over, self._over = self._over or {}, None
        self._again, self._skip = None, 0
        for part, generator in zip(self._parts(), over.get("generators", ()), strict=False):
            part.generator.set_state(generator)
        if again:
            self._put_back(again["began"])
        notes = dict(again.get("notes", ()))
        self._began, self._marked = self._now(), self._mark()
        self._notes.clear()
        self._number = 0
        for batch in self._drawn(iter(self.sampler), notes, again.get("number", -1)):
            if self._number > skip:
                yield batch

    def _drawn(self, batches: Iterator[Any], notes: dict[int, Any], last: int) -> Iterator[Any]:
        while True:
            if self._number in notes:
                rng.apply(notes[self._number])
            if self._number == last and self._draws:
                self._settle()
            if self._draws:
                self._notes.append((self._number, rng.capture()))
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._number += 1
            yield batch

    def state(self) -> dict[str, Any] | None:
        """Of this rank; None before the first epoch."""
        if self._began is None:
            return None
        now = [part.generator.get_state() for part in self._parts()]
        return {
            "began": self._began,
            "notes": list(self._notes),
            "number": self._number,
            "mark": self._marked,
            "generators": now,
        }

    def go_on(
        self,
        state: dict[str, Any] | None,
        settle: Callable[[], None],
        skip: int = 0,
        over: dict[str, Any] | None = None,
    ) -> None:
        """The next epoch to begin is the one of `state`, and its first `skip` batches are left out. `settle` puts the
        generators back into their state at the capture. It is called before the first batch that had not been drawn
        then, if nobody has called it by that time. `over` is a state at the end of an epoch: the next one begins with
        the samplers' own generators as they were then."""
        self._over = over
        self._again, self._settle, self._skip = state, settle, skip

    def _now(self) -> dict[str, Any]:
        generators = [part.generator.get_state() for part in self._parts()]
        epochs = [part.epoch for part in _chain(self.sampler) if isinstance(getattr(part, "epoch", None), int)]
        return {"rng": rng.capture(), "generators": generators, "epoch": epochs[-1] if epochs else None}

    def _put_back(self, began: dict[str, Any]) -> None:
        rng.apply(began["rng"])
        for part, state in zip(self._parts(), began["generators"], strict=False):
            part.generator.set_state(state)
        if began["epoch"] is not None:
            for part in _chain(self.sampler):
                if callable(getattr(part, "set_epoch", None)):
                    part.set_epoch(began["epoch"])

    def _parts(self) -> list[Any]:
        return [part for part in _chain(self.sampler) if getattr(part, "generator", None) is not None]


def _chain(sampler: Any) -> Iterator[Any]:
    """A sampler and those that it draws from, whatever a framework has put around them."""
    seen: list[Any] = []
    while sampler is not None and not any(sampler is one for one in seen):
        seen.append(sampler)
        yield sampler
        sampler = vars(sampler).get("batch_sampler") or vars(sampler).get("sampler")


def watch(loader: Any, accumulated: int = 1, mark: Callable[[], int] = lambda: 0) -> Watched | None:
    """Watches the batches of `loader` from its next epoch on. None if it has no batch sampler, as for an iterable:
    nobody knows its place in its data."""
    base = getattr(loader, "base_dataloader", loader)
    sampler = getattr(base, "batch_sampler", None)
    if sampler is None:
        return None
    if isinstance(sampler, Watched):
        return sampler
    watched = Watched(sampler, not getattr(base, "num_workers", 0), accumulated, mark)
    # DataLoader forbids this, for what it has made of its sampler would not follow. Of this one it makes nothing.
    object.__setattr__(base, "batch_sampler", watched)
    return watched


class Place:
    """The place of a rank in its data, as a part of a checkpoint."""

    def __init__(self) -> None:
        self.watched: Watched | None = None

    def state_dict(self) -> dict[str, Any]:
        """That of the watched sampler (see Watched.state). Empty if there is none yet."""
        return (self.watched and self.watched.state()) or {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do: the loader is made, and given its place, before the parts are put back."""

    def reshard(self, states: list[dict[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
        """Empty: with another number of ranks the order of the data is another. The framework counts its batches."""
        return {}
