"""The verdict on a round. Each fault is compared with the run's events, and every failure must have a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from supervisor.core.chaos.plan import Blow, Round
from supervisor.core.telling.attempt_story import AttemptStory
from supervisor.core.telling.story import Story, tell
from trainer.rundir.records.fault_kinds import DAMAGE, FAULTS, SUPERVISOR

_FINE = (None, "finished")


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one fault. Seconds count from the moment at which it fired."""

    spec: str
    moment: str
    attempt: int | None = None
    step: int | None = None
    at: float | None = None
    """Seconds since the run began."""
    detected: str | None = None
    detect_s: float | None = None
    recover_s: float | None = None
    """Seconds to the first step of the next attempt; None if another fault struck that attempt before it trained."""
    ended: bool = False
    """Whether the fault ended its attempt."""
    lost_steps: int | None = None
    leftovers: int = 0
    """Processes of the attempt that were alive when the supervisor said that none was."""
    helper: bool = False
    problem: str = ""
    """Why the fault did not pass the check; empty if it did."""

    @property
    def ok(self) -> bool:
        return not self.problem


@dataclass(frozen=True, slots=True)
class Span:
    """One attempt on the run's time line, in seconds since the run began."""

    attempt: int
    begin: float
    trained: float | None
    """The end of the attempt's first step."""
    over: float
    """The time when the attempt failed or ended."""
    gone: float
    cause: str


@dataclass
class _Case:
    """The run as it was, and the failures that a fault explains."""

    story: Story
    events: Sequence[Mapping[str, Any]]
    survivors: Mapping[int, int]
    explained: set[int] = field(default_factory=set)
    struck: set[int] = field(default_factory=set)
    """The attempts in which a fault has fired."""

    def attempt_at(self, mono: float) -> int:
        """The index of the attempt that ran at that time."""
        return max((i for i, a in enumerate(self.story.attempts) if a.started <= mono), default=0)

    def firings(self, spec: str) -> list[tuple[float, Mapping[str, Any]]]:
        """The times when that fault fired, with their events, in time order. There are several if the fault strikes all
        ranks."""
        told = [e for e in self.events if e.get("msg") == "fault_injected" and e.get("spec") == spec]
        found = [(e["fired_mono"], e) for e in told if isinstance(e.get("fired_mono"), int | float)]
        return sorted(found, key=lambda firing: firing[0])


def judge(round_: Round, events: Sequence[Mapping[str, Any]], survivors: Mapping[int, int]) -> list[Row]:
    """One row for each fault, in the order of the round, and one for each failure without a fault. `survivors` counts,
    by attempt, the processes found alive after the supervisor said that the attempt was gone."""
    events = [e for e in events if isinstance(e.get("mono"), int | float)]
    case = _Case(tell(events), events, survivors)
    case.struck = {case.attempt_at(at) for blow in round_.blows for at, _ in case.firings(blow.spec)}
    rows = [_row(case, blow) for blow in sorted(round_.blows, key=lambda b: not FAULTS[b.kind].ends)]
    rows.sort(key=lambda row: [b.spec for b in round_.blows].index(row.spec))
    attempts = case.story.attempts
    rows += [_unexplained(case.story, a) for i, a in enumerate(attempts) if i not in case.explained and _failed(a)]
    for number, attempt in enumerate(attempts[1:], start=1):
        before = attempts[number - 1]
        if before.gone is None or before.gone > attempt.started:
            rows.append(_overlap(case.story, attempt))
    return rows


def spans(story: Story) -> list[Span]:
    """The places of the run's attempts on its time line."""
    ends = [*(a.started for a in story.attempts[1:]), story.ended or story.last]
    found = []
    for attempt, end in zip(story.attempts, ends, strict=True):
        gone = attempt.gone if attempt.gone is not None else end
        over = attempt.failed if attempt.failed is not None and _failed(attempt) else gone
        trained = None if attempt.first_step is None else _since(story, attempt.first_step)
        times = [_since(story, at) for at in (attempt.started, over, gone)]
        found.append(Span(attempt.number, times[0], trained, times[1], times[2], attempt.cause or "running"))
    return found


def _since(story: Story, mono: float) -> float:
    return round(mono - (story.started or 0.0), 6)


def _failed(attempt: AttemptStory) -> bool:
    return attempt.cause not in _FINE


def _row(case: _Case, blow: Blow) -> Row:
    fired = case.firings(blow.spec)
    if not fired or not case.story.attempts:
        return Row(blow.spec, blow.moment.value, helper=blow.helper, problem="it never fired")
    at, first = fired[0]
    index = case.attempt_at(at)
    attempt = case.story.attempts[index]
    step = first.get("step")
    step = step if isinstance(step, int) else None
    detected, seen_at, problem = _detected(case, blow, index, at, step)
    for later in {case.attempt_at(again) for again, _ in fired[1:]} - {index}:
        # A rank may die with the first struck rank, before its own fault fires. The fault then fires in the next
        # attempt.
        if case.story.attempts[later].cause in FAULTS[blow.kind].causes:
            case.explained.add(later)
    ended = detected is not None and detected == attempt.cause
    after = _recovered(case.story, index) if ended else None
    return Row(
        spec=blow.spec,
        moment=blow.moment.value,
        attempt=attempt.number,
        step=step,
        at=_since(case.story, at),
        detected=detected,
        detect_s=None if seen_at is None else round(max(0.0, seen_at - at), 6),
        recover_s=_recover_s(case.story, index, at) if ended else None,
        ended=ended,
        lost_steps=_lost(attempt, after),
        leftovers=case.survivors.get(attempt.number, 0) if ended else 0,
        helper=blow.helper,
        problem=problem
        or ("processes of its attempt were left" if ended and case.survivors.get(attempt.number) else ""),
    )


def _detected(case: _Case, blow: Blow, index: int, at: float, step: int | None) -> tuple[str | None, float | None, str]:
    """The tuple (the name under which the fault was noticed, the time, the reason why that is wrong)."""
    expected, attempt = FAULTS[blow.kind], case.story.attempts[index]
    if blow.kind == SUPERVISOR:
        return _supervisor(case, attempt, index, at)
    if attempt.cause in expected.causes and index not in case.explained:
        case.explained |= _alike(case, index) if expected.recurs else {index}
        return attempt.cause, attempt.verdict, ""
    done = max(step or 0, attempt.from_step or 0)
    if expected.event and (shown := _shown(case.events, blow, at, done)) is not None:
        return expected.event, shown, ""
    if expected.ends and attempt.cause in FAULTS[SUPERVISOR].causes:
        # The supervisor was dead by then, so nobody could see the fault.
        return attempt.cause, attempt.verdict, ""
    if expected.ends:
        if index not in case.explained and _failed(attempt):
            case.explained.add(index)
            return attempt.cause, attempt.verdict, f"detected as {attempt.cause}, not as {_or(expected.causes)}"
        return None, None, f"nobody noticed; {_or(expected.causes)} was expected"
    if blow.shows and expected.event:
        return None, None, f"nobody noticed; {expected.event} was expected"
    return ("not read" if blow.kind in DAMAGE else None), None, ""


def _alike(case: _Case, index: int) -> set[int]:
    """`index`, and the attempts right after it that died of the same cause and were not struck by any other fault."""
    attempts, end = case.story.attempts, index + 1
    while end < len(attempts) and attempts[end].cause == attempts[index].cause and end not in case.struck:
        end += 1
    return set(range(index, end))


def _supervisor(case: _Case, attempt: AttemptStory, index: int, at: float) -> tuple[str | None, float | None, str]:
    """The supervisor's death ends the attempt, or the next supervisor adopts it. Some supervisor must take up the
    run."""
    taken = next((e["mono"] for e in case.events if e.get("msg") == "run_started" and e["mono"] > at), None)
    if taken is None:
        return None, None, "no other supervisor took up the run"
    if attempt.cause in FAULTS[SUPERVISOR].causes and index not in case.explained:
        case.explained.add(index)
        return attempt.cause, None, ""
    return "adopted", None, ""


def _shown(events: Sequence[Mapping[str, Any]], blow: Blow, at: float, done: int) -> float | None:
    """The time of the event that tells of a fault which fired at `at`, after `done` steps. None if no event told of
    it."""
    expected = FAULTS[blow.kind]
    for event in events:
        if event["mono"] < at:
            continue
        if event.get("msg") == expected.event and (blow.shows or _number(event) <= done):
            mono: float = event["mono"]
            return mono
        # An event comes some time after its cause. So the save of an earlier step proves nothing.
        if event.get("msg") == expected.before and (expected.before == "resumed" or _number(event) > done):
            return None
    return None


def _number(event: Mapping[str, Any]) -> int:
    """The step of an event: from its own field, or from the path in it."""
    step, path = event.get("step"), str(event.get("path", ""))
    if isinstance(step, int):
        return step
    digits = path.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def _recover_s(story: Story, index: int, at: float) -> float | None:
    following = story.attempts[index + 1 : index + 2]
    first_step = following[0].first_step if following else None
    return None if first_step is None else round(first_step - at, 6)


def _recovered(story: Story, index: int) -> AttemptStory | None:
    """The first attempt after `index` that trained."""
    return next((a for a in story.attempts[index + 1 :] if a.first_step is not None), None)


def _lost(attempt: AttemptStory, after: AttemptStory | None) -> int | None:
    if after is None or after.from_step is None or attempt.first_step is None:
        return None
    return max(0, attempt.to_step - after.from_step)


def _unexplained(story: Story, attempt: AttemptStory) -> Row:
    return Row(
        spec="(no fault)",
        moment="",
        attempt=attempt.number,
        step=attempt.to_step if attempt.to_step >= 0 else None,
        at=None if attempt.failed is None else _since(story, attempt.failed),
        detected=attempt.cause,
        problem=f"no fault explains it: {attempt.reason}",
    )


def _overlap(story: Story, second: AttemptStory) -> Row:
    text = "it began before the previous attempt was gone"
    return Row(spec="(no fault)", moment="", attempt=second.number, at=_since(story, second.started), problem=text)


def _or(causes: frozenset[str]) -> str:
    return " or ".join(sorted(causes))
