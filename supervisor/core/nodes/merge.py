"""What all nodes of an attempt see, as one observation, by the clock of the node that leads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from supervisor.core.evidence import Evidence
from supervisor.core.members import Group
from supervisor.core.model import Exit, Observation, Raised, RankView
from supervisor.core.stack import Stacks


def same(at: float) -> float:
    """For a clock that is ours, or of which nothing is known yet."""
    return at


@dataclass(frozen=True, slots=True)
class LimbView:
    """What one node sees of its part."""

    node: int
    seen: Observation
    ours: Callable[[float], float] = same
    """A time of its clock, by that of the node that leads. The same time must be the same at each look: a beat that has
    moved is a sign of life."""


def merge(now: float, views: Sequence[LimbView], members: int, world: int) -> Observation:
    """The observation of an attempt with `members` nodes and `world` ranks, as of `now`. The first of `views` is that
    of the node that leads; a node that has not looked yet is missing."""
    seen = [_by_our_clock(view) for view in views]
    own = seen[0]
    exits = [exit_ for each in seen for exit_ in each.exits if exit_.rank is not None]
    return replace(
        own,
        now=now,
        ranks=tuple(view for each in seen for view in each.ranks),
        steps={rank: step for each in seen for rank, step in each.steps.items()},
        group=_group(seen, world),
        exits=(*exits, *_launcher(seen, members)),
        raised=tuple(raised for each in seen for raised in each.raised),
        alive=tuple(pid for each in seen for pid in each.alive),
        frees=all(each.frees for each in seen),
        saves=max(each.saves for each in seen),
        stacks=_stacks([each.stacks for each in seen if each.stacks is not None]),
        log_grew_at=max(each.log_grew_at for each in seen),
        launch_error=_launch_error(views),
        evidence=_evidence(seen),
    )


def _by_our_clock(view: LimbView) -> Observation:
    seen, ours = view.seen, view.ours
    return replace(
        seen,
        now=ours(seen.now),
        ranks=tuple(_rank(rank, ours) for rank in seen.ranks),
        exits=tuple(replace(exit_, at=ours(exit_.at)) for exit_ in seen.exits),
        raised=tuple(_raised(raised, ours) for raised in seen.raised),
        stacks=replace(seen.stacks, at=ours(seen.stacks.at)) if seen.stacks is not None else None,
        log_grew_at=ours(seen.log_grew_at) if seen.log_grew_at else 0.0,
    )


def _rank(view: RankView, ours: Callable[[float], float]) -> RankView:
    sample = replace(view.sample, at=ours(view.sample.at)) if view.sample is not None else None
    return replace(view, beat_at=ours(view.beat_at), sample=sample)


def _raised(raised: Raised, ours: Callable[[float], float]) -> Raised:
    return replace(raised, at=ours(raised.at), because=tuple(_raised(each, ours) for each in raised.because))


def _group(seen: Sequence[Observation], world: int) -> Group | None:
    """The group of the leader's node, with the processes of the others."""
    if seen[0].group is None:
        return None
    groups = [each.group for each in seen if each.group is not None]
    launcher = next((group.launcher for group in groups if group.launcher is not None), None)
    return Group(world, launcher, tuple(member for group in groups for member in group.unborn))


def _launcher(seen: Sequence[Observation], members: int) -> tuple[Exit, ...]:
    """The end of the launchers, as of one: it has failed when one has, and it is done when all are."""
    ended = [exit_ for each in seen for exit_ in each.exits if exit_.rank is None]
    failed = [exit_ for exit_ in ended if exit_.status != 0]
    if failed:
        return (min(failed, key=lambda exit_: exit_.at),)
    return (max(ended, key=lambda exit_: exit_.at),) if ended and len(ended) >= members else ()


def _stacks(found: Sequence[Stacks]) -> Stacks | None:
    if not found:
        return None
    return Stacks(min(each.at for each in found), tuple(stack for each in found for stack in each.stacks))


def _launch_error(views: Sequence[LimbView]) -> str:
    return next((f"on node {view.node}: {view.seen.launch_error}" for view in views if view.seen.launch_error), "")


def _evidence(seen: Sequence[Observation]) -> Evidence:
    """The evidence of all. The counters are those of the node where something failed first: a pid means nothing on
    another one."""

    def failed_at(each: Observation) -> float:
        failed = [exit_.at for exit_ in each.exits if exit_.status != 0]
        return min([*failed, *(raised.at for raised in each.raised)], default=float("inf"))

    first = min(seen, key=failed_at).evidence
    every = [first, *(each.evidence for each in seen if each.evidence is not first)]
    return replace(
        first,
        pids={rank: pid for each in reversed(every) for rank, pid in each.pids.items()},
        lines={rank: lines for each in reversed(every) for rank, lines in each.lines.items()},
        full=tuple(dict.fromkeys(path for each in every for path in each.full)),
        xids=tuple(xid for each in every for xid in each.xids),
        odd=next((each.odd for each in every if each.odd is not None), None),
    )
