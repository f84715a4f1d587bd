"""Several wait for one signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from trainer.checkpoint.preemption import StopFlag

NUMBER = signal.SIGUSR2


@pytest.fixture(autouse=True)
def heard() -> Iterator[list[int]]:
    """What the program's own handler has received."""
    received: list[int] = []
    before = signal.signal(NUMBER, lambda number, frame: received.append(number))
    yield received
    signal.signal(NUMBER, before)


@pytest.mark.parametrize("first", [0, 1])
def test_all_are_set_by_one_signal(heard: list[int], first: int) -> None:
    """Whichever is closed first, the other one still gets the signal; after both the program's handler does."""
    flags = [StopFlag(NUMBER), StopFlag(NUMBER)]
    os.kill(os.getpid(), NUMBER)
    assert [flag.is_set for flag in flags] == [True, True]

    flags[first].close()
    flags[1 - first].is_set = False
    os.kill(os.getpid(), NUMBER)
    assert (flags[1 - first].is_set, heard) == (True, [])
    flags[first].close()
    flags[1 - first].close()
    os.kill(os.getpid(), NUMBER)
    assert heard == [NUMBER]


def test_one_that_was_never_closed(heard: list[int]) -> None:
    """It is gone with its owner, and the signal is the program's again."""
    flag = StopFlag(NUMBER)
    del flag
    os.kill(os.getpid(), NUMBER)
    assert heard == [NUMBER]


def test_a_handler_that_came_between(heard: list[int]) -> None:
    """One that is made after somebody has taken the signal takes it back, for all; then it is theirs again."""
    first = StopFlag(NUMBER)
    theirs: list[int] = []
    signal.signal(NUMBER, lambda number, frame: theirs.append(number))
    second = StopFlag(NUMBER)
    os.kill(os.getpid(), NUMBER)
    assert (first.is_set, second.is_set, theirs) == (True, True, [])

    first.close()
    second.close()
    os.kill(os.getpid(), NUMBER)
    assert (theirs, heard) == ([NUMBER], [])


def test_a_handler_that_calls_ours(heard: list[int]) -> None:
    """As Lightning's does, which stays when all of ours are closed: the signal gets to the program's own, once."""
    first = StopFlag(NUMBER)
    ours = signal.getsignal(NUMBER)
    assert callable(ours)
    signal.signal(NUMBER, lambda number, frame: ours(number, frame))
    second = StopFlag(NUMBER)
    first.close()
    second.close()
    os.kill(os.getpid(), NUMBER)
    assert heard == [NUMBER]
    os.kill(os.getpid(), NUMBER)
    assert heard == [NUMBER] * 2
