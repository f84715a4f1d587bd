"""What samples of a silent rank are taken for: who moves is left alone, the frozen are found by what might wake
them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.core.hangs.motion import ENOUGH, Kind, Motion, follow
from supervisor.core.sample import Child, Loop, Sample, Thread, Wait
from supervisor.core.stack import Frame

SCRIPT = Frame("<module>", "/home/u/train.py", 90)
WORK = (Frame("evaluate", "/home/u/train.py", 40), SCRIPT)
COLLECTIVE = (Frame("barrier", "/x/site-packages/torch/distributed/distributed_c10d.py", 4000), *WORK)
JOIN = (Frame("join", "/usr/lib/python3.11/threading.py", 1100), *WORK)
FETCH = (Frame("_try_get_data", "/x/site-packages/torch/utils/data/dataloader.py", 1200), *WORK)
IDLE_WORKER = (
    Frame("poll", "/usr/lib/python3.11/multiprocessing/connection.py", 250),
    Frame("_worker_loop", "/x/site-packages/torch/utils/data/_utils/worker.py", 300),
)
STUCK_WORKER = (
    Frame("__getitem__", "/home/u/data.py", 7),
    IDLE_WORKER[1],
    Frame("BaseProcess.run", "/usr/lib/python3.11/multiprocessing/process.py", 108),
    Frame("BaseProcess._bootstrap", "/usr/lib/python3.11/multiprocessing/process.py", 314),
    Frame("Popen._launch", "/usr/lib/python3.11/multiprocessing/popen_fork.py", 71),
)
WANDB = (Frame("loop", "/x/site-packages/wandb/sdk/internal.py", 5),)


def thread(frames: tuple[Frame, ...] = WORK, **more: object) -> Thread:
    return Thread(frames, **more)  # type: ignore[arg-type]


def lock(frames: tuple[Frame, ...] = WORK) -> Thread:
    return Thread(frames, wait=Wait.LOCK)


def spin(**more: object) -> Thread:
    return thread(gil=True, wait=Wait.NONE, **more)


def sampled(*samples: Sample) -> Motion:
    motion = None
    for number, sample in enumerate(samples):
        motion = follow(motion, replace(sample, at=float(number)))
    assert motion is not None
    return motion


@pytest.mark.parametrize(
    ("sample", "kind"),
    [
        (Sample(0, spin(loop=Loop.WHILE, plain=True)), Kind.PYTHON),
        (Sample(0, spin()), Kind.BETWEEN),
        (Sample(0, spin(loop=Loop.FOR, plain=True)), Kind.BETWEEN),
        (Sample(0, thread(wait=Wait.NONE)), Kind.NATIVE),
        (Sample(0, lock()), Kind.LOCKED),
        (Sample(0, thread(wait=Wait.SOCKET)), Kind.ANSWERED),
        (Sample(0, thread(wait=Wait.TIMED)), Kind.ANSWERED),
        (Sample(0, thread(wait=Wait.FILE)), Kind.ANSWERED),
        (Sample(0, thread(wait=Wait.CHILD)), Kind.ANSWERED),
        (Sample(0, thread(wait=Wait.DISK)), Kind.DISK),
        (Sample(0, lock(COLLECTIVE)), Kind.MET),
        (Sample(0, thread(COLLECTIVE, wait=Wait.NONE)), Kind.MET),
        (Sample(0, lock(), traced=True), Kind.WATCHED),
        (Sample(0, thread((Frame("cmdloop", "/usr/lib/python3.11/pdb.py", 1), *WORK))), Kind.WATCHED),
        # A thread of a library that is no Python's may have the answer.
        (Sample(0, lock(), unknown=True), Kind.ANSWERED),
        # Who holds a lock does not sleep; who was given something to do may.
        (Sample(0, lock(), beside=(thread(wait=Wait.TIMED),)), Kind.LOCKED),
        (Sample(0, lock(JOIN), beside=(thread(wait=Wait.TIMED),)), Kind.ANSWERED),
        (Sample(0, lock(JOIN), beside=(thread(wait=Wait.SOCKET),)), Kind.ANSWERED),
        (Sample(0, lock(JOIN), beside=(spin(loop=Loop.WHILE, plain=True),)), Kind.PYTHON),
        # A tracker's thread answers for nobody.
        (Sample(0, lock(JOIN), beside=(thread(WANDB, wait=Wait.SOCKET), lock())), Kind.LOCKED),
        # Nor does a DataLoader's worker without work.
        (Sample(0, thread(FETCH, wait=Wait.SOCKET), children=(Child(7, 1, lock(IDLE_WORKER)),)), Kind.LOCKED),
        (Sample(0, thread(FETCH, wait=Wait.SOCKET), children=(Child(7, 1, lock(STUCK_WORKER)),)), Kind.LOCKED),
        (Sample(0, thread(FETCH), children=(Child(7, 1, thread(STUCK_WORKER, wait=Wait.SOCKET)),)), Kind.ANSWERED),
        (Sample(0, lock(), children=(Child(7, 1, thread(IDLE_WORKER, wait=Wait.SOCKET)),)), Kind.LOCKED),
        # Another program, which shows no frames.
        (Sample(0, thread(wait=Wait.CHILD), children=(Child(7, 1),)), Kind.ANSWERED),
    ],
)
def test_who_does_not_move(sample: Sample, kind: Kind) -> None:
    motion = sampled(*[sample] * 10)

    assert (motion.kind, motion.known, motion.frozen_for) == (kind, True, 9.0)
    assert sampled(*[sample] * (ENOUGH - 1)).known is False


MAIN = spin(loop=Loop.WHILE, plain=True)


@pytest.mark.parametrize(
    "samples",
    [
        # Another line of a caller, another function, a caller's variable.
        [Sample(0, spin()), Sample(0, thread((WORK[0], replace(SCRIPT, line=91)), wait=Wait.NONE))],
        [Sample(0, spin()), Sample(0, thread((Frame("forward", "/home/u/model.py", 3), *WORK), wait=Wait.NONE))],
        [Sample(0, replace(MAIN, outer=1)), Sample(0, replace(MAIN, outer=2))],
        # A write goes on inside one call.
        [Sample(0, MAIN, moved=1), Sample(0, MAIN, moved=4096)],
        # The thread, the worker, the program that it waits for moves.
        [Sample(0, lock(JOIN), beside=(replace(MAIN, outer=n),)) for n in range(2)],
        [Sample(0, thread(FETCH, wait=Wait.SOCKET), children=(Child(7, 1, replace(MAIN, outer=n)),)) for n in range(2)],
        [Sample(0, thread(wait=Wait.CHILD), children=(Child(7, float(n)),)) for n in range(2)],
    ],
)
def test_who_moves(samples: list[Sample]) -> None:
    motion = sampled(*samples * 8)

    assert (motion.kind, motion.known, motion.frozen_for) == (Kind.MOVING, True, 0.0)
    # And once it stands still it is known for how long.
    still = sampled(*samples * 8, *[samples[1]] * 5)
    assert still.frozen_for == 5.0


def test_a_function_that_goes_round() -> None:
    """Its own line may change, and a counter of its own: it goes round all the same, unless a `for` will end it."""
    lines = [Frame("spin", "/home/u/train.py", line) for line in (3, 4)]
    for loop, kind in ((Loop.WHILE, Kind.PYTHON), (Loop.FOR, Kind.MOVING)):
        samples = [Sample(0, spin(loop=loop, inner=n)) for n in range(9)]
        samples = [replace(s, main=replace(s.main, frames=(lines[n % 2], SCRIPT))) for n, s in enumerate(samples)]
        assert sampled(*samples).kind is kind


def test_a_loop_that_sleeps_and_looks() -> None:
    """It may run at any moment, the last one too, and is no lock: in the rank, or in the program that it waits for."""
    looks = [thread(wait=Wait.TIMED)] * 4 + [spin()]
    for last in range(5):
        own = [Sample(0, each) for each in (looks * 3)[: 10 + last]]
        child = [Sample(0, thread(wait=Wait.CHILD), children=(Child(7, 1, each.main),)) for each in own]
        assert sampled(*own).kind is sampled(*child).kind is Kind.ANSWERED
    # What is locked stays so, whatever a single sample shows.
    assert sampled(*[Sample(0, lock())] * 9, Sample(0, spin())).kind is Kind.LOCKED
    assert sampled(*[Sample(0, lock())] * 9, Sample(0, thread(wait=Wait.TIMED))).kind is Kind.LOCKED


THREADS = st.builds(
    Thread,
    st.sampled_from([WORK, COLLECTIVE, JOIN, FETCH, IDLE_WORKER, STUCK_WORKER, WANDB, ()]),
    st.integers(0, 1),
    st.integers(0, 1),
    st.booleans(),
    st.sampled_from(Wait),
    st.sampled_from(Loop),
    st.booleans(),
)
SAMPLES = st.builds(
    Sample,
    st.just(0.0),
    THREADS,
    st.lists(THREADS, max_size=2).map(tuple),
    st.booleans(),
    st.lists(st.builds(Child, st.integers(1, 2), st.floats(0, 2), st.none() | THREADS), max_size=2).map(tuple),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(SAMPLES, min_size=1, max_size=6))
def test_every_story_has_a_kind(samples: list[Sample]) -> None:
    """Whatever is sampled: there is a kind, it is of the last place, and who has just moved is not called frozen."""
    motion = sampled(*samples)

    assert motion.kind in Kind and motion.all == len(samples)
    assert motion.samples <= len(samples) and motion.frozen_for == motion.samples - 1
    if motion.samples == 1:
        assert motion.kind in (Kind.MOVING, Kind.DISK, Kind.WATCHED)
