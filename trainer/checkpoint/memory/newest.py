"""The newest snapshot where no node has a whole one: whether it is safe, before an older one is written over.

step 7   all ranks begin their snapshot of 7, over that of 5
step 8   a file of 7 is still on its way      no snapshot of 8: it would be written over that of 6
step 9   all have it, and what they keep      their snapshot of 9 is written over that of 6
         or one has left it out               what there is of 7 is taken back, 9 is written over it
"""

from __future__ import annotations

from ..group import Ranks
from ..nodes.twins import Twins
from . import snapshots
from .place import Place
from .segment import Segment


class Newest:
    """That of one rank: `step`, None if there is none. Nothing of it is under way when a method is called."""

    def __init__(self, segment: Segment, twins: Twins | None, place: Place) -> None:
        self.step: int | None = None
        self._segment, self._twins, self._place = segment, twins, place

    @property
    def missing(self) -> bool:
        """Whether this rank lacks something of it: its own file, or one that it should keep."""
        if self.step is None:
            return False
        return not (self._segment.has(self.step) and (self._twins is None or self._twins.has(self.step)))

    def take_back(self) -> None:
        """What this rank has of it does not count."""
        if self.step is not None:
            self._segment.take_back(self.step)
            if self._twins is not None:
                self._twins.take_back(self.step)
        self.step = None

    def shed(self) -> bool:
        """Whether this node has no files but those of its ranks and those that these keep: others came for a restore.
        It is safe on all ranks."""
        nodes, rank = self._place.nodes, self._place.rank
        if self.step is None or nodes is None:
            return False
        here = nodes.beside(rank)
        kept = {*here, *(other for one in here for other in nodes.kept_by(one))}
        return not nodes.leads(rank) or snapshots.keep_only(self._place.folder, kept)


def segment_of(place: Place, rank: int) -> Segment:
    """The files of `rank` on this node, written here."""
    nodes = place.nodes
    alone = nodes is not None and nodes.several and not nodes.keeps(place.rank)
    return Segment(place.folder, rank, place.world_size, place.attempt, alone, nodes is not None and nodes.ring)


def twins_of(place: Place, ranks: Ranks, pins: bool) -> Twins | None:
    """What passes the rank's snapshots on, and keeps others'; None on one node. `pins`: see Twins."""
    nodes, rank = place.nodes, place.rank
    if nodes is None or not nodes.several:
        return None
    return Twins(ranks, nodes.twins(rank), {of: segment_of(place, of) for of in nodes.kept_by(rank)}, pins)
