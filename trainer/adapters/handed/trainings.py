"""The trainings of one program: several calls of fit() or train(), for folds or stages, each with checkpoints of its
own. A call gets what the same call of an earlier attempt has saved. Otherwise a fold would begin with weights that have
seen the data that it is judged by.

A program may leave out the trainings that are done. Then the second one of an earlier attempt is the first one now, and
its folder tells.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

TRIAL = -1
"""In place of the number of a training: a trial of a search, whose checkpoints are for no other attempt."""


def of(facts: Mapping[str, str], name: str) -> dict[int, str]:
    """The folders of the trainings of the framework `name`, by number, as `facts` have them (see fact())."""
    known = (key.removeprefix(f"{name}.") for key in facts if key.startswith(f"{name}."))
    return {int(number): facts[fact(name, int(number))] for number in known if number.isdecimal()}


def fact(name: str, number: int) -> str:
    """The name of the fact about that training: its folder, or "" if that is not known."""
    return f"{name}.{number}"


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known from earlier attempts."""

    offers: Sequence[str] = ()
    """The checkpoints, the best first."""
    calls: Mapping[str, int] = field(default_factory=dict)
    """By offer: the number of the training that has saved it. Some may be missing."""
    folders: Mapping[int, str] = field(default_factory=dict)
    """By number: the folder of a training, without links, or ""."""

    @property
    def several(self) -> bool:
        """Whether the program has more than one training."""
        return max((*self.calls.values(), *self.folders), default=1) > 1


@dataclass(frozen=True, slots=True)
class Begun:
    """A training that begins."""

    number: int
    """Those that the program left out are counted."""
    checkpoint: str | None = None
    """It goes on from that."""
    doubtful: str = ""
    """It goes on from nothing, because nobody can tell whether this checkpoint is its own."""


class Trainings:
    """Those of one framework in this process, in the order of their calls."""

    def __init__(self) -> None:
        self._number = 0
        self._used: set[str] = set()

    def begin(self, folders: Sequence[str], earlier: Earlier) -> Begun:
        """One begins, and saves into `folders`, without links; without any, nobody knows where yet. The first of them
        is the one that is kept as a fact."""
        new = not self._used.intersection(folders)
        self._used.update(folders)
        self._number += 1
        if new and folders and earlier.folders.get(self._number) != folders[0]:
            later = [n for n, folder in earlier.folders.items() if folder == folders[0] and n > self._number]
            self._number = min(later, default=self._number)
        within = [offer for offer in earlier.offers if _folder(offer) in folders]
        if within:
            return self._of_folder(within, new, earlier)
        if not folders:
            return self._begun(offer for offer in earlier.offers if earlier.calls.get(offer, 1) == self._number)
        if folders[0] in earlier.folders.values():
            return Begun(self._number)
        # A new folder: it has the time in its name.
        before = earlier.folders.get(self._number)
        found = [offer for offer in earlier.offers if earlier.calls.get(offer, self._number) == self._number]
        begun = self._begun(offer for offer in found if _folder(offer) == before)
        doubtful = earlier.several and begun.checkpoint is None and any(offer in earlier.calls for offer in found)
        return Begun(self._number, doubtful=found[0]) if doubtful else begun

    def ended(self, folders: Sequence[str]) -> None:
        """The newest one is over, and has saved into `folders`."""
        self._used.update(folders)

    def _of_folder(self, within: list[str], new: bool, earlier: Earlier) -> Begun:
        own = [offer for offer in within if earlier.calls.get(offer, self._number) == self._number]
        if not own and new:
            numbers = {earlier.calls[offer] for offer in within}
            if len(numbers) > 1 or min(numbers) < self._number:
                return Begun(self._number, doubtful=within[0])
            self._number, own = min(numbers), within
        return self._begun(own)

    def _begun(self, own: Iterable[str]) -> Begun:
        return Begun(self._number, next(iter(own), None))


def doubt(which: str, checkpoint: str) -> str:
    """A warning that the training `which` has got no checkpoint."""
    return (
        f"{which} of the program begins anew: nothing tells whether {checkpoint} is its own. A program with several "
        "trainings goes on from each one's newest checkpoint if each has a folder of its own, the same in each attempt"
    )


def _folder(path: str) -> str:
    return os.path.dirname(os.path.realpath(path))  # noqa: PTH120 (names, to compare)
