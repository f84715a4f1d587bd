"""A chaos session. First comes the undisturbed run, then round after round with faults. Each round is judged and
compared with the undisturbed run."""

from __future__ import annotations

import contextlib
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from supervisor.chaos.compare import compare
from supervisor.chaos.runner import Outcome, Runner
from supervisor.core.chaos import plan
from supervisor.core.chaos.judge import judge, spans
from supervisor.core.chaos.plan import Job, Round
from supervisor.core.chaos.summary import Comparison, RoundResult
from supervisor.core.telling import ledger
from supervisor.core.telling.story import tell
from supervisor.errors import Refusal
from supervisor.reading.events_file import read_events
from supervisor.run.runs import RUNS
from trainer.rundir.layout import RunDir
from trainer.rundir.records.fault_kinds import FAULTS, SUPERVISOR, Moment, Tier

_NEEDS_CHECKPOINTER = ("enospc", "torn", "corrupt", "kill-flush")
_SPACIOUS = 3.0
"""Seconds that a run must train, so that a standby is surely made meanwhile."""


class Interrupted(Exception):
    """A person wants to stop the session."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The request, as given on the command line."""

    command: tuple[str, ...]
    """The command as for launch, or empty for the built-in trainer with `flags`."""
    flags: tuple[str, ...]
    nproc: int
    seed: int
    kinds: tuple[str, ...]
    moments: tuple[Moment, ...]
    matrix: bool
    count: int | None
    seconds: float | None
    size: int
    globs: tuple[str, ...]
    hang_timeout: float
    startup_timeout: float

    @property
    def built_in(self) -> bool:
        return not self.command


@dataclass
class Session:
    """Runs the session. `say` gets a line for each thing that is finished."""

    wanted: Wanted
    say: Callable[[str], None]
    id: str = field(default_factory=lambda: secrets.token_hex(2))
    results: list[RoundResult] = field(default_factory=list)

    def run(self) -> None:
        """Every round has been judged.

        Refusal if the undisturbed job fails. Interrupted on a signal. Then nothing is left running.
        """
        began = time.monotonic()
        with interruptible():
            reference, took = self._reference()
            job = self._job(reference, took)
            until = None if self.wanted.seconds is None else began + self.wanted.seconds
            for round_ in self._rounds(job):
                # The first round is always run: else an undisturbed run that takes all of the time would tell nothing.
                if self.results and until is not None and time.monotonic() >= until:
                    return
                self.results.append(self._round(round_, reference, took))

    def folder(self, name: str) -> RunDir:
        return RunDir((RUNS / f"chaos-{self.id}-{name}").resolve())

    def _rounds(self, job: Job) -> Iterator[Round]:
        pick = random.Random(self.wanted.seed)
        kinds = self._kinds(job)
        size = max(1, min(self.wanted.size, job.steps // 20))
        if self.wanted.matrix:
            return iter(plan.pack(pick, plan.matrix(kinds, job.moments), job, size))
        return plan.schedule(pick, kinds, job, size, self.wanted.count, stride=2 * size)

    def _kinds(self, job: Job) -> list[str]:
        """The faults that are possible for this job."""
        able = Moment.RESTORE in job.moments
        left_out = [kind for kind in self.wanted.kinds if not able and kind in _NEEDS_CHECKPOINTER]
        if left_out:
            self.say(f"left out, because the script does not use our Checkpointer: {' '.join(left_out)}")
        kinds = [kind for kind in self.wanted.kinds if kind not in left_out]
        if not any(set(FAULTS[kind].moments) & set(job.moments) for kind in kinds):
            raise Refusal("none of these faults can strike this script at these moments")
        return kinds

    # ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _reference(self) -> tuple[RunDir, float]:
        """The undisturbed run, and the seconds that it took."""
        run = self.folder("reference")
        outcome = self._train(run, Tier.MEMORY, [], 24 * 3600.0, 0)
        if outcome.exit_code != 0:
            raise Refusal(
                f"the job ends with {outcome.exit_code} even undisturbed; see: supervise report {run.path.name}, "
                f"{run.path}.log"
            )
        story = tell(read_events(run.events)[0])
        took = (story.ended or story.last) - (story.started or 0.0)
        self.say(f"undisturbed: {max(0, story.high_step)} steps in {took:.1f} s  ({run.path.name})")
        return run, took

    def _job(self, reference: RunDir, took: float) -> Job:
        """The properties of the job, as the undisturbed run has shown them."""
        events = read_events(reference.events)[0]
        story = tell(events)
        if story.high_step < 8:
            seen = f"only {story.high_step} steps were" if story.high_step >= 0 else "no step was"
            raise Refusal(f"{seen} seen in the undisturbed run; chaos needs a script that trains for at least 8")
        committed = [int(e["step"]) for e in events if e["msg"] == "checkpoint_committed"]
        every = min((step for step in committed if step < story.high_step), default=0)
        moments, steps = list(self.wanted.moments), story.high_step
        if not any(e["msg"] == "resumed" for e in events):
            moments = [m for m in moments if m not in (Moment.RESTORE, Moment.SAVE)]
            # An optimizer that does not count steps begins at 0 after each resume. Then it must reach the fault's step
            # again.
            steps //= 2
        if took < _SPACIOUS:
            moments = [m for m in moments if m is not Moment.STANDBY]
        tiers = tuple(Tier) if self.wanted.built_in else (Tier.MEMORY,)
        return Job(steps, self.wanted.nproc, every, tuple(moments), tiers)

    def _train(self, run: RunDir, tier: Tier, inject: Sequence[str], deadline: float, lives: int) -> Outcome:
        wanted = self.wanted
        faults = [part for spec in inject for part in ("--inject", spec)]
        # The budgets are generous: this tests the recovery, not the end of a budget.
        limits = f"--max-restarts 100000 --no-progress-limit 100000 --backoff 10ms:50ms --nproc {wanted.nproc}".split()
        limits += ["--hang-timeout", f"{wanted.hang_timeout}s", "--startup-timeout", f"{wanted.startup_timeout}s"]
        if wanted.built_in:
            snapshots = ["--snapshot-every", "off"] if tier is Tier.DISK else []
            command = ["--", *wanted.flags, *snapshots]
        else:
            command = ["--", *(part.replace("{run}", str(run.path)) for part in wanted.command)]
        if wanted.command[:1] == ("-m",):
            command = ["-m", *command[2:]]
        run.path.parent.mkdir(parents=True, exist_ok=True)
        return Runner(run, ["--name", "chaos", *limits, *faults, *command], deadline).run(lives)

    def _round(self, round_: Round, reference: RunDir, took: float) -> RoundResult:
        run = self.folder(str(round_.number))
        lives = sum(blow.kind == SUPERVISOR for blow in round_.blows)
        time_limit = self.wanted.hang_timeout + self.wanted.startup_timeout + 30.0
        deadline = 120.0 + 10.0 * took + time_limit * len(round_.blows)
        self.say(f"round {round_.number}, {round_.tier.value}: {' '.join(blow.spec for blow in round_.blows)}")
        outcome = self._train(run, round_.tier, [blow.spec for blow in round_.blows], deadline, lives)
        events = read_events(run.events)[0]
        story = tell(events)
        result = RoundResult(
            round=round_,
            run=run.path.name,
            exit_code=outcome.exit_code,
            rows=tuple(judge(round_, events, outcome.survivors)),
            spans=tuple(spans(story)),
            comparison=self._compare(round_, reference, run, outcome),
            leftovers=outcome.leftovers,
            report=ledger.report(story, story.last),
            problem=outcome.problem,
        )
        passed = sum(row.ok for row in result.rows)
        self.say(
            f"  {'pass' if result.ok else 'FAIL'}: {passed} of {len(result.rows)} faults passed, "
            f"{result.comparison.words}, {len(result.leftovers)} leftovers, {result.report['wall_s']:.1f} s  "
            f"({result.run})"
        )
        for problem in result.problems():
            self.say(f"  FAIL {problem}")
        return result

    def _compare(self, round_: Round, reference: RunDir, run: RunDir, outcome: Outcome) -> Comparison:
        if outcome.exit_code != 0:
            return Comparison(None, difference="it did not finish")
        if not round_.same_bits:
            return Comparison(None, difference="its faults change what is trained")
        # The built-in trainer stores its flags in that part, and they name the tier.
        return compare(reference, run, self.wanted.globs, ("extra",) if self.wanted.built_in else ())


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted, once. So the clean-up that follows is not interrupted. A session
    under nohup ignores the hang-up of its terminal, as a run does."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def interrupt(number: int, frame: Any) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
