"""The schedule: the faults that strike in each round, as specs of --inject. It is made from a seed alone.

    cells ──pack──> rounds of one tier ──slots──> blows with steps that lie apart

A round is one run of the job. Some faults strike while an attempt comes up (startup, restore, standby). Such a fault is
a passenger. It is put after a carrier: a fault that ends an attempt, so that another one comes up. The supervisor
rightly gives up after two failures in a row before the first step, or after the same failure twice at one step. The
carriers and the steps are chosen to prevent both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trainer.rundir.records.fault_kinds import DAMAGE, FAULTS, WAITED_FOR, Moment, Tier


class Pick(Protocol):
    """The source of randomness: a random.Random."""

    def choice(self, seq: Sequence[Any], /) -> Any: ...
    def randrange(self, start: int, stop: int, /) -> int: ...
    def shuffle(self, x: list[Any], /) -> None: ...


@dataclass(frozen=True, slots=True)
class Cell:
    """A fault at a moment."""

    kind: str
    moment: Moment


@dataclass(frozen=True, slots=True)
class Job:
    """The properties of the training job that a schedule needs."""

    steps: int
    nproc: int
    every: int
    """Steps between checkpoints; 0 if that is not known."""
    moments: tuple[Moment, ...] = tuple(Moment)
    """The moments that its script passes through."""
    tiers: tuple[Tier, ...] = tuple(Tier)
    """The tiers that can be chosen. The first one is used if a fault wants a tier that is not there."""


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault of a round."""

    spec: str
    kind: str
    moment: Moment
    shows: bool = True
    """Whether the fault must be seen. Damage to a checkpoint cannot be seen if nobody reads the checkpoint."""
    helper: bool = False
    """The fault was not asked for. It is there so that another fault can strike."""


@dataclass(frozen=True, slots=True)
class Round:
    """One run of the job with its faults."""

    number: int
    tier: Tier
    blows: tuple[Blow, ...]

    @property
    def same_bits(self) -> bool:
        """Whether the run must end with the same bits as an undisturbed run."""
        return all(FAULTS[blow.kind].same_bits for blow in self.blows)


_PHASES = {
    Moment.STARTUP: "phase=startup",
    Moment.SAVE: "phase=save",
    Moment.RESTORE: "phase=restore",
    Moment.STANDBY: "standby=warming",
}
_CARRIED = (Moment.STARTUP, Moment.RESTORE, Moment.STANDBY)


def matrix(kinds: Sequence[str], moments: Sequence[Moment]) -> list[Cell]:
    """Every fault at every moment at which it can strike."""
    return [Cell(kind, moment) for kind in kinds for moment in moments if moment in FAULTS[kind].moments]


def deal(pick: Pick, kinds: Sequence[str], moments: Sequence[Moment]) -> Iterator[Cell]:
    """Cells without end. Each kind comes once before any kind comes again."""
    playable = [kind for kind in kinds if set(moments) & set(FAULTS[kind].moments)]
    while playable:
        deck = list(playable)
        pick.shuffle(deck)
        for kind in deck:
            yield Cell(kind, pick.choice([m for m in moments if m in FAULTS[kind].moments]))


def schedule(
    pick: Pick, kinds: Sequence[str], job: Job, size: int, count: int | None, stride: int = 12
) -> Iterator[Round]:
    """Rounds of at most `size` faults. There are `count` faults in all (helpers are not counted), or no end."""
    cells = deal(pick, kinds, job.moments)
    number, left = 0, count
    waiting: list[Cell] = []
    while True:
        room = stride - len(waiting)
        for _, cell in zip(range(room if left is None else min(left, room)), cells, strict=False):
            # A run has one first checkpoint. If too many faults must come before it, some would wait for ever.
            crowded = cell.moment is Moment.EARLY and any(c.moment is Moment.EARLY for c in waiting)
            waiting.append(Cell(cell.kind, Moment.STEP) if crowded and Moment.STEP in job.moments else cell)
            left = None if left is None else left - 1
        if not waiting:
            return
        number += 1
        yield _next(pick, waiting, job, size, number)


def pack(pick: Pick, cells: Sequence[Cell], job: Job, size: int) -> list[Round]:
    """Rounds of at most `size` of `cells` each. A round has one tier, and every cell is in one round."""
    rounds: list[Round] = []
    waiting = list(cells)
    while waiting:
        rounds.append(_next(pick, waiting, job, size, len(rounds) + 1))
    return rounds


def _next(pick: Pick, waiting: list[Cell], job: Job, size: int, number: int) -> Round:
    """A round of cells from `waiting` that fit together. The first cell is always in it; the rest stays in
    `waiting`."""
    tier = _tier(pick, waiting[0], job)
    taken: list[Cell] = []
    # Each fault may have to wait for the next checkpoint. No two faults may strike at the same step.
    most = min(size, max(1, (job.steps - _begin(job)) // (job.every + 3) - 1))
    for cell in waiting:
        if len(taken) < most and _fits(cell, taken, tier, job):
            taken.append(cell)
    for cell in taken:
        waiting.remove(cell)
    return Round(number, tier, _blows(pick, taken, job, tier))


def _tier(pick: Pick, cell: Cell, job: Job) -> Tier:
    possible = [tier for tier in job.tiers if tier in FAULTS[cell.kind].tiers]
    chosen: Tier = pick.choice(possible) if possible else job.tiers[0]
    return chosen


def _fits(cell: Cell, taken: Sequence[Cell], tier: Tier, job: Job) -> bool:
    expected = FAULTS[cell.kind]
    if tier not in expected.tiers and set(expected.tiers) & set(job.tiers):
        return False
    # A run has one first checkpoint and one end.
    if cell.moment is Moment.EARLY and any(other.moment is Moment.EARLY for other in taken):
        return False
    return all(FAULTS[other.kind].same_bits == expected.same_bits for other in taken)


def _blows(pick: Pick, cells: Sequence[Cell], job: Job, tier: Tier) -> tuple[Blow, ...]:
    slots = _slots(pick, cells)
    room = max(1, (job.steps - _begin(job)) // (len(slots) + 1))
    blows: list[Blow] = []
    free = 0
    for index, slot in enumerate(slots):
        start = _begin(job) + index * room
        step = _aligned(slot, job, max(free, start + pick.randrange(0, max(1, room // 4))))
        free = step + len(slot) + 1
        blows += _placed(pick, slot, job, tier, step)
    return tuple(blows)


def _begin(job: Job) -> int:
    """The first step at which there is surely a checkpoint."""
    return min(2 * job.every + 2, job.steps // 3) if job.every else max(1, job.steps // 8)


def _slots(pick: Pick, cells: Sequence[Cell]) -> list[list[Cell | None]]:
    """Groups of cells that strike together, in order. None stands for a helper."""
    carriers = [c for c in cells if c.moment is Moment.STEP and FAULTS[c.kind].carries]
    slots: list[list[Cell | None]] = []
    early = [c for c in cells if c.moment is Moment.EARLY]
    # The first attempt comes up without a carrier.
    opening = [c for c in cells if c.moment is Moment.STARTUP and _opens(c, early)][:1] + early
    for cell in [c for c in cells if c not in carriers and c not in opening]:
        if cell.moment in _CARRIED:
            slots.append([_carrier(carriers, cell.moment), cell])
        elif cell.kind in DAMAGE and cell.moment is Moment.STEP:
            slots.append([cell, carriers.pop() if carriers else None])
        else:
            slots.append([cell])
    slots += [[cell] for cell in carriers]
    pick.shuffle(slots)
    first: list[list[Cell | None]] = [[cell] for cell in opening]
    return first + slots


def _carrier(carriers: list[Cell], moment: Moment) -> Cell | None:
    """Takes one cell out of `carriers`; None if none fits. A hang does not fit if the moment is STANDBY: the next
    standby may be in the making before the hang is over."""
    fit = [c for c in carriers if moment is not Moment.STANDBY or not FAULTS[c.kind].causes & {*WAITED_FOR}]
    if not fit:
        return None
    carriers.remove(fit[-1])
    return fit[-1]


def _opens(cell: Cell, early: Sequence[Cell]) -> bool:
    """Whether the fault shows in the first attempt, which has no checkpoint to damage and no save before an early
    end."""
    return cell.kind not in DAMAGE and not (early and FAULTS[cell.kind].before)


def _aligned(slot: Sequence[Cell | None], job: Job, step: int) -> int:
    """The first step from `step` on at which the slot can strike."""
    if slot[0] is not None and slot[0].kind in DAMAGE and slot[0].moment is Moment.STEP and job.every:
        # Right after a checkpoint and well before the next one. So the damaged checkpoint is the one that will be read.
        return step + -step % job.every + 1
    # If a rank is struck at the step of a save, the ranks that save wait for it, and a save may take long.
    return step + 1 if job.every > 1 and step % job.every == 0 else step


def _placed(pick: Pick, slot: Sequence[Cell | None], job: Job, tier: Tier, step: int) -> list[Blow]:
    """The blows of a slot at `step`."""
    blows = []
    for index, cell in enumerate(slot):
        carried = cell is not None and cell.moment in _CARRIED
        # Without a carrier, the fault is for the first attempt.
        at = (step if index else None) if carried else step + index
        blows.append(_blow(pick, cell or Cell("kill", Moment.STEP), job, tier, at, helper=cell is None))
    return blows


def _blow(pick: Pick, cell: Cell, job: Job, tier: Tier, step: int | None, helper: bool) -> Blow:
    if cell.moment is Moment.EARLY:
        # Some steps are done, and there is no checkpoint yet.
        step = pick.randrange(1, job.every) if job.every > 1 else 1
    # A flush is already a save.
    phase = None if cell.kind == "kill-flush" else _PHASES.get(cell.moment)
    when = ",".join(filter(None, [phase, f"step={step}" if step is not None else None]))
    parameters = [FAULTS[cell.kind].parameters] if FAULTS[cell.kind].parameters else []
    if FAULTS[cell.kind].ranked:
        parameters.insert(0, f"rank={_rank(pick, cell.kind, job)}")
    head = ":".join(filter(None, [cell.kind, ",".join(parameters)]))
    # If a newer checkpoint is on its way, the damaged one may never be read.
    read = tier is Tier.DISK and cell.moment in (Moment.STARTUP, Moment.STEP, Moment.RESTORE)
    return Blow(f"{head}@{when}", cell.kind, cell.moment, read or cell.kind not in DAMAGE, helper)


def _rank(pick: Pick, kind: str, job: Job) -> int | str:
    ranks: list[int | str] = list(range(job.nproc))
    rank: int | str = pick.choice([*ranks, "all"] if kind == "kill" and job.nproc > 1 else ranks)
    return rank
