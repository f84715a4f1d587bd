"""Faults asked for on purpose: their specs, their triggers, and the files that make each fire once per run.

A spec reads `KIND[:key=value,...][@trigger]`: `kill:rank=1@step=40`, `stop:rank=0@after=3s`,
`corrupt:checkpoint=latest`.

    @step=40                      once 40 steps are done
    @after=3s                     three seconds after it was asked for
    @phase=save                   when its rank enters that phase: startup restore first_step train save eval teardown
    @standby=warming              while the next worker group is being started (`,step=N`: begun after N steps)
    @phase=restore,step=40        the same, but not before the run has done 40 steps

A fault is a file `faults/0001.spec`. Before it fires on a rank, `faults/0001.rank1.fired` is created exclusively and
synced by the process that fires it. So it fires once per run, whatever dies in between. A rank cannot know everything
about its trigger: the steps of the run before this rank was born, or the state of the standby. The supervisor tells the
rank by a file `faults/0001.ripe`.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import msgspec

from ..codes import Phase
from ..duration import parse_duration
from ..files.codec import encode, read
from ..files.durable import DISK, ensure_dir
from ..nearest import did_you_mean
from .fault_kinds import FAULTS, KEYS, KINDS, By, Kind

_TRIGGERS = ("step", "after", "phase", "standby")
_PHASES = {phase.word: phase for phase in Phase if phase is not Phase.NONE}
_EARLY = (Phase.STARTUP, Phase.RESTORE, Phase.FIRST_STEP)
"""Phases in which a rank does not know yet which step the run has reached."""
_TOGETHER = ({"step"}, {"after"}, {"phase"}, {"standby"}, {"phase", "step"}, {"standby", "step"})


class FaultSpecError(ValueError):
    """A spec that cannot be read. The text says what is wrong and what would be right."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `rank` None means every rank. No trigger means as soon as possible."""

    kind: str
    rank: int | None = 0
    checkpoint: int | None = None
    """The step of the checkpoint to damage. None: the newest."""
    code: int = 1
    seconds: float = 2.0
    """Seconds that `slow` sleeps, once."""
    step: int | None = None
    after: float | None = None
    phase: Phase | None = None
    standby: bool = False
    """It fires only while a standby is being started that was begun after `step`."""
    text: str = ""
    number: int = 0
    armed: float = 0.0
    """The time of the request, by CLOCK_MONOTONIC in seconds."""
    ripe: bool = False
    """Whether the moment for `waits` has come."""

    @property
    def what(self) -> Kind:
        return FAULTS[self.kind]

    @property
    def by_supervisor(self) -> bool:
        """Whether the supervisor carries it out."""
        match self.what.by:
            case By.RANK:
                return False
            case By.SIGNAL:
                return self.after is not None
            case By.FILE:
                return self.step is None and self.phase is None and not self.standby
            case By.SUPERVISOR:
                return True

    @property
    def waits(self) -> bool:
        """Whether only the supervisor can tell that its moment has come: see ripens()."""
        return self.standby or (self.phase in _EARLY and self.step is not None)

    def ripens(self, step: int, begun: int | None) -> bool:
        """Whether its moment has come, now that the run has done `step` steps. `begun`: the steps that were done when
        the current standby was begun. None if there is no standby."""
        since = begun if self.standby else step
        return since is not None and (self.step is None or since >= self.step)

    def on(self, rank: int) -> bool:
        return self.rank is None or self.rank == rank

    def due(self, step: int, now: float, phase: Phase | None = None) -> bool:
        """Whether its trigger has come, with `step` steps done (and `phase` being entered)."""
        if self.waits and not self.ripe:
            return False
        if self.phase is not None:
            return phase == self.phase and (self.waits or step >= (self.step or 0))
        if self.standby:
            return True
        if self.step is not None:
            return step >= self.step
        if self.after is not None:
            return now >= self.armed + self.after
        return True


def _pairs(text: str, known: tuple[str, ...], what: str, spec: str) -> dict[str, str]:
    found = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if key not in known:
            raise FaultSpecError(f"fault {spec!r}: unknown {what} {key!r}; {did_you_mean(key, known)}")
        if not equals or not value:
            raise FaultSpecError(f"fault {spec!r}: {key} needs a value, as in {key}=1")
        found[key] = value
    return found


def _whole(value: str, key: str, spec: str) -> int:
    if not re.fullmatch(r"\d{1,9}", value):
        raise FaultSpecError(f"fault {spec!r}: {key} must be a whole number, not {value!r}")
    return int(value)


def _seconds(value: str, key: str, spec: str) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise FaultSpecError(f"fault {spec!r}: {key}: {error}") from None


def parse_fault(spec: str) -> Fault:
    """The fault that `spec` asks for, or FaultSpecError."""
    head, at, trigger = spec.strip().partition("@")
    kind, _, parameters = head.partition(":")
    if kind not in KINDS:
        raise FaultSpecError(f"fault {spec!r}: unknown fault {kind!r}; {did_you_mean(kind, KINDS)}")
    given = _pairs(parameters, tuple(KEYS), "parameter", spec)
    when = _pairs(trigger, _TRIGGERS, "trigger", spec)
    # A moment that recurs may be delayed until some step. No other triggers can be combined.
    if at and set(when) not in _TOGETHER:
        raise FaultSpecError(
            f"fault {spec!r}: after '@' comes one of step=N, after=DURATION, phase=NAME, standby=warming; "
            "the last two may have ,step=N"
        )
    if when.get("standby", "warming") != "warming":
        raise FaultSpecError(f"fault {spec!r}: standby must be 'warming', not {when['standby']!r}")
    phase = when.get("phase")
    if phase is not None and phase not in _PHASES:
        raise FaultSpecError(f"fault {spec!r}: unknown phase {phase!r}; {did_you_mean(phase, _PHASES)}")
    rank, checkpoint = given.get("rank", "0"), given.get("checkpoint", "latest")
    return Fault(
        kind=kind,
        rank=None if rank == "all" else _whole(rank, "rank", spec),
        checkpoint=None if checkpoint == "latest" else _whole(checkpoint, "checkpoint", spec),
        code=_whole(given["code"], "code", spec) % 256 if "code" in given else 1,
        seconds=_seconds(given["seconds"], "seconds", spec) if "seconds" in given else 2.0,
        step=_whole(when["step"], "step", spec) if "step" in when else None,
        after=_seconds(when["after"], "after", spec) if "after" in when else None,
        phase=_PHASES[phase] if phase else None,
        standby="standby" in when,
        text=spec.strip(),
    )


class Fired(TypedDict, total=False):
    """0001.rank1.fired: the fault that fired, its time and place."""

    spec: str
    rank: int | None
    attempt: int
    step: int
    mono: float


class _Armed(msgspec.Struct):
    """0001.spec: the spec, with the time of the request by CLOCK_MONOTONIC and by the wall clock."""

    spec: str
    armed: float
    time: float = 0.0


def arm(folder: Path, fault: Fault) -> int:
    """Gives the fault a file and a number of its own in `folder`. The fault waits there for its trigger."""
    ensure_dir(folder)
    body = encode(_Armed(fault.text, time.monotonic(), time.time()))
    number = 1 + max((int(p.name[:4]) for p in folder.glob("[0-9][0-9][0-9][0-9].*")), default=0)
    while True:
        # The file is written aside first, then linked to its number. So a reader never sees half a spec.
        temporary = folder / f".spec-{os.getpid()}"
        try:
            DISK.create(temporary, [body])
            os.link(temporary, folder / f"{number:04d}.spec")
            return number
        except FileExistsError:
            number += 1
        finally:
            temporary.unlink(missing_ok=True)


def armed(folder: Path) -> list[Fault]:
    """Every fault of the run, fired or not, by number. A file that is not a spec is skipped."""
    faults = []
    for path in sorted(folder.glob("[0-9][0-9][0-9][0-9].spec")):
        try:
            asked = read(path, _Armed)
            fault = parse_fault(asked.spec)
        except (OSError, ValueError):
            continue
        ripe = path.with_suffix(".ripe").exists()
        faults.append(replace(fault, number=int(path.name[:4]), armed=asked.armed, ripe=ripe))
    return faults


def ripen(folder: Path, fault: Fault) -> None:
    """Marks `fault` as ripe for all later readers."""
    (folder / f"{fault.number:04d}.ripe").touch(0o600)


def _mark(folder: Path, fault: Fault, rank: int | None) -> Path:
    return folder / (f"{fault.number:04d}.fired" if rank is None else f"{fault.number:04d}.rank{rank}.fired")


def has_fired(folder: Path, fault: Fault, rank: int | None) -> bool:
    return _mark(folder, fault, rank).exists()


def claim(folder: Path, fault: Fault, rank: int | None, attempt: int, step: int) -> bool:
    """True once per run for each fault and rank. Then the disk records that the fault fires: now fire it."""
    body: Fired = {"spec": fault.text, "rank": rank, "attempt": attempt, "step": step, "mono": time.monotonic()}
    path = _mark(folder, fault, rank)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        os.write(fd, encode(body))
        os.fsync(fd)
        # Syncs the names of the mark and of the spec. Without the spec the same words would be armed anew.
        DISK.sync_dir(folder)
    except OSError:
        # A fault that cannot be recorded must not fire: it would fire again after every restart.
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(fd)
    return True


def fired(folder: Path) -> dict[str, Fired]:
    """The faults that have fired, by file name."""
    found: dict[str, Fired] = {}
    for path in sorted(folder.glob("*.fired")):
        with contextlib.suppress(OSError, ValueError):
            found[path.name] = read(path, Fired)
    return found
