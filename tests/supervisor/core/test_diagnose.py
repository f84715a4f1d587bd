"""What happened: the first failure is named, its victims are not, for every way in which a rank can end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.diagnosis.diagnose import LAST_WORDS, LEAVES, SETTLE, diagnose
from supervisor.core.evidence import Evidence, Memory, OomKill
from supervisor.core.model import Cause, Exit, Observation, Raised, RankView
from tests.support.failures import FULL_DISK, GLOO, RECV, TRACEBACK, WATCHDOG, WORKER, error, seen, wait_in_vain
from trainer.rundir.codes import Phase


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


def test_victim_waits_for_the_last_words_of_one_that_has_raised() -> None:
    """Its connections may be closed long before it has ended."""
    raised = error(1, "ValueError", "bad", at=99.0), error(0, "RuntimeError", GLOO, at=99.1)
    early = Observation(now=99.0 + LAST_WORDS - 0.01, exits=(Exit(0, 1, 99.1),), raised=raised)

    assert diagnose(early, True, 5) is None
    verdict = diagnose(replace(early, now=99.0 + LAST_WORDS), True, 5)
    assert verdict is not None and (verdict.rank, verdict.collateral) == (1, (0,))


def test_victim_waits_for_one_that_is_leaving() -> None:
    """A rank that has come to the end of its script, or has called sys.exit(), says by its status how that was. If it
    does not leave, it is named all the same."""
    raised, exit_ = (error(0, "RuntimeError", GLOO, at=99.0),), Exit(0, 1, 99.0)
    leaving = RankView(1, 5, Phase.TEARDOWN, 98.9, True)
    early = Observation(now=99.0 + LEAVES / 2, exits=(exit_,), raised=raised, ranks=(leaving,))
    told = replace(early, now=99.0 + LEAVES, exits=(exit_, Exit(1, 3, 99.0 + LEAVES)), ranks=())

    assert diagnose(early, True, 5) is None
    verdict = diagnose(told, True, 5)
    assert verdict is not None and (verdict.rank, verdict.exit_code) == (1, 3)
    late = diagnose(replace(early, now=99.0 + 2 * LEAVES), True, 5)
    assert late is not None and late.rank == 1 and "had come to the end of its script" in late.reason


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


def test_timeout_of_all_is_nobodys_fault() -> None:
    """Every rank says that it waited in vain, or lost one that did: nccl_or_gloo_timeout, with the one that gave up
    first."""
    exits = Exit(0, 1, 99.4), Exit(1, 1, 99.3)
    both = error(0, "RuntimeError", RECV, 99.2), error(1, "RuntimeError", RECV, 99.1)
    one = error(0, "RuntimeError", GLOO, 99.05), error(1, "RuntimeError", RECV, 99.1)

    for raised in (both, one):
        verdict = wait_in_vain(*exits, raised=raised)
        assert (verdict.cause, verdict.rank, verdict.collateral) == (Cause.NCCL_OR_GLOO_TIMEOUT, 1, (0,))
        assert "Timed out waiting 2000ms" in verdict.reason


def test_timeout_of_some_is_a_hang_of_the_silent_rank() -> None:
    """Who has not even complained is the one that the others waited for, alive or ended by the launcher's TERM."""
    raised = (error(0, "RuntimeError", RECV, 99.0),)

    for verdict in (
        wait_in_vain(Exit(0, 1, 99.1), raised=raised, alive=(1,)),
        wait_in_vain(Exit(0, 1, 99.1), Exit(1, -15, 99.2), raised=raised),
    ):
        assert (verdict.cause, verdict.rank, verdict.collateral) == (Cause.HANG, 1, (0,))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("RuntimeError", "Wait timeout"),
        ("RuntimeError", "Timeout waiting for key: default_pg/0//cuda//0 after 600000 ms"),
        ("torch.distributed.DistStoreError", "wait timeout after 1000ms, keys: /worker/1"),
        ("torch.distributed.DistStoreError", "Timed out after 61 seconds waiting for clients. 1/2 clients joined."),
        (
            "torch.distributed.DistStoreError",
            "Timed out initializing process group in store based barrier on rank: 0, for key: "
            "store_based_barrier_key:1 (world_size=2, num_workers_joined=1, timeout=0:00:05 error=Wait timeout)",
        ),
        (
            "torch.distributed.DistNetworkError",
            "The client socket has timed out after 60000ms while trying to connect to (node-0, 29500).",
        ),
        (
            "torch.distributed.DistBackendError",
            "[1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by key "
            "'0', but store->get('0') got error: Timeout waiting for key: default_pg/0//cuda//0 after 600000 ms. This "
            "may indicate a possible application crash on rank 0 or a network set up issue.",
        ),
    ],
)
def test_who_does_not_come_to_the_meeting_place_is_silent(kind: str, text: str) -> None:
    """And whoever waited there in vain is not at fault, in the words of any of torch's stores."""
    raised = (error(0, kind, text),)
    verdict = wait_in_vain(Exit(0, 1, 99.1), raised=raised, alive=(1,))
    assert (verdict.cause, verdict.rank) == (Cause.HANG, 1)
    own = wait_in_vain(Exit(0, 1, 99.1), raised=(error(0, "ValueError", text),), alive=(1,))
    talk = wait_in_vain(Exit(0, 1, 99.1), raised=(error(0, "RuntimeError", f"my queue: {text[:12]}"),), alive=(1,))
    assert (own.cause, talk.cause) == (Cause.EXCEPTION, Cause.EXCEPTION)


@pytest.mark.parametrize("text", [GLOO, RECV])
def test_who_left_with_0_is_the_root_of_a_lost_peer(text: str) -> None:
    """A rank that has left is not at fault until another one needs it: then it is, and not the one that says so."""
    exits = Exit(1, 0, 98.0), Exit(0, 1, 99.1)

    verdict = wait_in_vain(*exits, raised=(error(0, "RuntimeError", text, 99.0),))
    own = wait_in_vain(*exits, raised=(error(0, at=99.0),))
    ended = wait_in_vain(Exit(1, 0, 98.0), Exit(0, -15, 99.1))

    assert (verdict.cause, verdict.rank, verdict.exit_code, verdict.collateral) == (Cause.EXCEPTION, 1, 0, (0,))
    assert "rank 1 left with 0" in verdict.reason and text in verdict.reason
    assert own.rank == ended.rank == 0


def test_timeout_is_never_the_root_of_a_death() -> None:
    """A rank that died or raised is, though the others' watchdogs were quicker to tell."""
    lines = {0: WATCHDOG}
    dead = wait_in_vain(Exit(0, -6, 99.1), Exit(1, -9, 99.6), lines=lines)
    raised = wait_in_vain(Exit(0, -6, 99.1), Exit(1, 1, 99.9), lines=lines, raised=(error(1, at=99.8),))

    assert (dead.cause, dead.rank) == (Cause.KILLED, 1)
    assert (raised.cause, raised.rank) == (Cause.EXCEPTION, 1)


_MESSAGES = st.one_of(st.text(max_size=80), st.sampled_from([GLOO, RECV, FULL_DISK, WORKER, "", *TRACEBACK, *WATCHDOG]))
_KINDS = st.sampled_from(
    ["RuntimeError", "ValueError", "OSError", "torch.distributed.DistBackendError", "__main__.E", ""]
)
_TIMES = st.floats(0.0, 200.0)
_RANKS = st.integers(0, 3)
_EXITS = st.builds(Exit, st.one_of(st.none(), _RANKS), st.one_of(st.none(), st.integers(-64, 255)), _TIMES)
_RAISED = st.builds(
    lambda rank, kind, message, at, code: Raised(rank, kind, message, "", at, code, (kind,)),
    _RANKS,
    _KINDS,
    _MESSAGES,
    _TIMES,
    st.integers(0, 255),
)
_VICTIMS = st.builds(
    OomKill, st.integers(1, 9), st.text(max_size=9), st.none() | st.integers(0), st.none() | st.integers(0)
)
_MEMORY = st.builds(Memory, st.none() | st.integers(0, 9), st.none() | st.tuples(_VICTIMS))
_LINES = st.dictionaries(st.none() | _RANKS, st.lists(_MESSAGES, max_size=6).map(tuple))
_EVIDENCE = st.builds(
    Evidence, _MEMORY, st.dictionaries(st.none() | _RANKS, st.integers(1, 9)), _LINES, st.just(("/data",))
)


@given(st.lists(_EXITS, max_size=6), st.lists(_RAISED, max_size=5), _EVIDENCE, _TIMES, st.booleans())
def test_any_evidence_has_a_verdict_or_none(
    exits: list[Exit], raised: list[Raised], evidence: Evidence, now: float, stepped: bool
) -> None:
    """Nothing that a machine could be made to say crashes the diagnosis, and the verdict names somebody who failed, or
    who was silent while others waited."""
    found = diagnose(Observation(now=now, exits=tuple(exits), raised=tuple(raised), evidence=evidence), stepped, 5)

    if found is not None:
        assert found.reason and found.at == now
        assert found.rank not in found.collateral
        assert found.rank is None or found.rank in {e.rank for e in exits} | {r.rank for r in raised}


@given(
    st.permutations([0, 1, 2]),
    st.lists(st.tuples(st.sampled_from([GLOO, RECV]), _TIMES), min_size=2, max_size=2),
    st.one_of(st.sampled_from([-9, -11, -6, -7, 3]), st.tuples(_KINDS, st.text(max_size=20))),
    _TIMES,
)
def test_collateral_is_never_the_root(
    ranks: list[int], victims: list[tuple[str, float]], own: int | tuple[str, str], at: float
) -> None:
    """Whatever the clocks say, a rank that lost a peer or waited in vain is not the root while another failed by
    itself."""
    culprit, *others = ranks
    raised = [Raised(rank, "RuntimeError", text, "", time) for rank, (text, time) in zip(others, victims, strict=True)]
    exits = [Exit(rank, 1, time) for rank, (_, time) in zip(others, victims, strict=True)]
    if isinstance(own, tuple):
        raised.append(Raised(culprit, own[0], own[1], "", at, kinds=(own[0],)))
    exits.append(Exit(culprit, own if isinstance(own, int) else 1, at))

    verdict = diagnose(Observation(now=1000.0, exits=tuple(exits), raised=tuple(raised)), True, 5)

    assert verdict is not None
    assert (verdict.rank, verdict.collateral) == (culprit, tuple(sorted(others)))
