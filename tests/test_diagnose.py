"""What happened: the first failure is named, its victims are not, for every way in which a rank can end."""

from __future__ import annotations

import pytest

from supervisor.core.diagnose import LAST_WORDS, SETTLE, diagnose
from supervisor.core.model import Cause, Exit, Observation, Raised

GLOO = "Connection closed by peer [127.0.0.1]:4242"


def seen(*exits: Exit, raised: tuple[Raised, ...] = (), now: float = 100.0) -> Observation:
    return Observation(now=now, exits=exits, raised=raised)


def error(rank: int, kind: str = "ValueError", message: str = "bad", at: float = 99.0) -> Raised:
    return Raised(rank, kind, message, "train.py:7 step", at)


@pytest.mark.parametrize(
    ("status", "stepped", "cause"),
    [
        (-9, True, Cause.KILLED),
        (-9, False, Cause.KILLED),
        (-15, True, Cause.KILLED),
        (-11, True, Cause.SEGFAULT),
        (-7, True, Cause.SEGFAULT),
        (-6, True, Cause.ABORT),
        (7, True, Cause.EXCEPTION),
        (7, False, Cause.STARTUP_ERROR),
        (2, False, Cause.USER_ERROR),
        (2, True, Cause.EXCEPTION),
        (75, True, Cause.PREEMPTED),
        (78, True, Cause.USER_ERROR),
    ],
)
def test_exit_status_gives_cause(status: int, stepped: bool, cause: Cause) -> None:
    """Every exit status of a rank has one cause, and the verdict keeps signal or exit code."""
    verdict = diagnose(seen(Exit(1, status, 99.0)), stepped, 40)

    assert verdict is not None
    assert verdict.cause is cause
    assert verdict.rank == 1
    assert (verdict.signal, verdict.exit_code) == ((-status, None) if status < 0 else (None, status))


@pytest.mark.parametrize("kind", ["SyntaxError", "ModuleNotFoundError", "ImportError"])
def test_import_and_syntax_errors_are_the_users(kind: str) -> None:
    """Before the first step they cannot be cured by a restart; after it they can (a file system that went away)."""
    before = diagnose(seen(Exit(0, 1, 99.5), raised=(error(0, kind),)), False, -1)
    after = diagnose(seen(Exit(0, 1, 99.5), raised=(error(0, kind),)), True, 3)

    assert before is not None and before.cause is Cause.USER_ERROR
    assert after is not None and after.cause is Cause.EXCEPTION


def test_first_exception_wins_over_first_exit() -> None:
    """The rank that raised first is the cause, though another one was quicker to leave."""
    exits = Exit(0, 1, 99.5), Exit(1, 1, 99.9)
    raised = error(0, "RuntimeError", GLOO, at=99.3), error(1, "ValueError", "bad", at=99.2)

    verdict = diagnose(seen(*exits, raised=raised), True, 5)

    assert verdict is not None
    assert (verdict.rank, verdict.cause, verdict.collateral) == (1, Cause.EXCEPTION, (0,))
    assert "ValueError: bad" in verdict.reason and "train.py:7" in verdict.reason
    assert verdict.failed_at == 99.2


def test_victim_is_never_the_cause() -> None:
    """A lost peer is reported by the survivor before anybody sees who was lost; the killed one is still named."""
    exits = Exit(0, 1, 99.1), Exit(1, -9, 99.2)

    verdict = diagnose(seen(*exits, raised=(error(0, "RuntimeError", GLOO, at=99.05),)), True, 5)

    assert verdict is not None
    assert (verdict.rank, verdict.signal, verdict.collateral) == (1, 9, (0,))


def test_victim_alone_waits_for_its_cause() -> None:
    """When only a victim is known, judgement waits for a moment; when nobody else shows up, it is named after all."""
    raised = (error(0, "RuntimeError", GLOO, at=99.0),)
    exit_ = Exit(0, 1, 99.0)

    assert diagnose(seen(exit_, raised=raised, now=99.0 + SETTLE / 2), True, 5) is None
    late = diagnose(seen(exit_, raised=raised, now=99.0 + SETTLE * 2), True, 5)
    assert late is not None and late.rank == 0


def test_raised_counts_before_the_exit() -> None:
    """A rank that has raised has failed, even if its teardown hangs for ever."""
    raised = (error(1, at=99.0),)

    assert diagnose(seen(raised=raised, now=99.0 + LAST_WORDS / 2), True, 5) is None
    verdict = diagnose(seen(raised=raised, now=99.0 + LAST_WORDS), True, 5)
    assert verdict is not None and verdict.rank == 1


def test_launcher_says_finished_only_with_zero() -> None:
    """The run is finished when the launcher exits with 0; killed alone, it is the cause; failed early, start-up is."""
    finished = diagnose(seen(Exit(0, 0, 99.0), Exit(1, 0, 99.0), Exit(None, 0, 99.1)), True, 9)
    killed = diagnose(seen(Exit(None, -9, 99.1)), True, 9)
    early = diagnose(seen(Exit(None, 1, 99.1)), False, -1)

    assert finished is not None and finished.cause is Cause.FINISHED
    assert killed is not None and (killed.cause, killed.signal) == (Cause.LAUNCHER_DIED, 9)
    assert early is not None and early.cause is Cause.STARTUP_ERROR


def test_nothing_has_happened_yet() -> None:
    """Ranks that leave with 0 while others still work are no verdict."""
    assert diagnose(seen(), True, 9) is None
    assert diagnose(seen(Exit(0, 0, 99.0)), True, 9) is None
