"""The attempts of a run in words: their steps, the reasons for their ends, and the cost."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.core.size import counted
from supervisor.core.telling.attempt_story import AttemptStory
from supervisor.core.telling.ledger import lost_steps, recoveries, successors
from supervisor.core.telling.story import Story
from supervisor.reading.wording import signal_name


@dataclass(frozen=True, slots=True)
class Words:
    """One attempt. `number` as in the folders; `cost` is what its end has cost."""

    number: int
    steps: str
    cause: str
    cost: str


def attempt_words(story: Story) -> list[Words]:
    """For each attempt of the run."""
    told = zip(story.attempts, successors(story), recoveries(story), lost_steps(story), strict=True)
    return [Words(a.number, _steps(a), _cause(a), _cost(a, b, recovered, lost)) for a, b, recovered, lost in told]


def attempt_lines(story: Story) -> list[str]:
    """One line for each attempt."""
    return [f"#{one.number} {one.steps:<10} {one.cause:<28} {one.cost}".rstrip() for one in attempt_words(story)]


def _steps(attempt: AttemptStory) -> str:
    if attempt.unplaced:
        return "?→?"
    first = attempt.from_step if attempt.from_step is not None else 0
    return f"{first}→{attempt.to_step}" if attempt.to_step >= 0 else "no step"


def _cause(attempt: AttemptStory) -> str:
    cause = attempt.cause or "running"
    if attempt.signal:
        cause += f" ({signal_name(attempt.signal)})"
    return cause if attempt.rank is None else f"{cause} rank {attempt.rank}"


def _cost(attempt: AttemptStory, following: AttemptStory | None, recovered: float | None, lost: int | None) -> str:
    cost = []
    if following is not None and following.unplaced:
        cost.append("went on from a step that is not known")
    elif following is not None and lost is not None:
        began = "began again at step 0" if not following.from_step else f"went on from step {following.from_step}"
        cost += [began, f"lost {counted(lost, 'step')}"]
        cost += ["what it had saved was not loaded"] if following.over else []
    cost += [f"detected in {attempt.detect_s:.3f} s"] if attempt.detect_s and recovered is not None else []
    cost += [f"back in {recovered:.2f} s"] if recovered is not None else []
    return ", ".join(cost)
