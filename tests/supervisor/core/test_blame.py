"""Who is to blame when a group stands still: the odd rank by its stack and its step, in words that name the place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.hangs.blame import odd
from supervisor.core.stack import Frame, Stack, Stacks, grouped, named, summary

LIB = "/venv/lib/python3.11/site-packages/torch"
MAIN = Frame("main", "/home/me/train.py", 30)
REDUCE = (Frame("all_reduce", f"{LIB}/distributed/distributed_c10d.py", 2501), MAIN)
BARRIER = (Frame("barrier", f"{LIB}/distributed/distributed_c10d.py", 4000), MAIN)
BACKWARD = (
    Frame("_engine_run_backward", f"{LIB}/autograd/graph.py", 979),
    Frame("backward", f"{LIB}/_tensor.py", 6),
    MAIN,
)
READ = (Frame("load", "/home/me/data.py", 31), MAIN)
IN_FORWARD = (READ[0], Frame("forward", f"{LIB}/nn/parallel/distributed.py", 1600), MAIN)


def stacks(*frames: tuple[Frame, ...]) -> Stacks:
    return Stacks(0.0, tuple(Stack(rank, each) for rank, each in enumerate(frames)))


@pytest.mark.parametrize(
    ("frames", "steps", "rank"),
    [
        ((REDUCE, READ), (5, 5), 1),
        ((BACKWARD, IN_FORWARD), (5, 5), 1),
        ((READ, REDUCE, BACKWARD), (5, 5, 5), 0),
        # Two skipped nothing and do nothing for others: the one further behind holds the group.
        ((READ, READ, REDUCE), (6, 5, 5), 1),
        # Everyone is in a collective: rank 2 went on without the others', or is in another than most are.
        ((REDUCE, REDUCE, REDUCE), (5, 5, 6), 2),
        ((REDUCE, BARRIER, REDUCE), (5, 5, 5), 1),
        ((REDUCE, BARRIER), (5, 5), None),
        ((REDUCE, REDUCE), (5, 5), None),
        # No stacks: the one that has done less.
        ((), (5, 4), 1),
        ((), (5, 5), None),
    ],
)
def test_the_odd_rank(frames: tuple[tuple[Frame, ...], ...], steps: tuple[int, ...], rank: int | None) -> None:
    """Victims wait in collectives; the one they wait for does not, or is alone in where it waits."""
    assert odd(dict(enumerate(steps)), stacks(*frames)) == rank


@given(
    st.lists(
        st.tuples(st.sampled_from([REDUCE, BARRIER, BACKWARD, READ, ()]), st.integers(0, 2)), min_size=1, max_size=8
    )
)
def test_blame_is_on_a_living_rank_that_is_not_a_victim(ranks: list[tuple[tuple[Frame, ...], int]]) -> None:
    """Whatever the mixture; and where somebody is outside of every collective, nobody inside one is blamed."""
    found = stacks(*(frames for frames, _ in ranks))
    rank = odd({number: step for number, (_, step) in enumerate(ranks)}, found)

    assert rank is None or 0 <= rank < len(ranks)
    if rank is not None and any(not s.exchanges for s in found.stacks):
        assert not found.stacks[rank].exchanges


def test_groups_in_words() -> None:
    """Ranks that stand together are one line, the odd one first; the place is the library's and the script's own."""
    found = [Stack(rank, REDUCE) for rank in (0, 2, 3, 4)] + [Stack(1, READ, "read of /data/fifo")]
    found.append(Stack(1, READ, child=77))

    assert [ranks for ranks, _ in grouped(found)] == [[1], [0, 2, 3, 4]]
    assert summary(found) == [
        "rank 1: load (data.py:31), in read of /data/fifo",
        "ranks 0, 2-4: all_reduce (distributed_c10d.py:2501) in main (train.py:30)",
        "rank 1, its child 77: load (data.py:31)",
    ]
    assert named([3]) == "rank 3" and named([0, 1, 2, 7]) == "ranks 0-2, 7"
