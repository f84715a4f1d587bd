"""Which data a run passes over, what counts as a spike, and a loss that is not finite in anybody's loop."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.support.jobs import on_ranks
from trainer.checkpoint import Checkpointer
from trainer.checkpoint.guard import BASE, LASTING, Guard, data_step, is_spike, joined
from trainer.errors import LossSpike, NotFinite
from trainer.rundir.layout import committed_steps
from trainer.rundir.records.rollback import Rollback, decode

windows = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda w: (w[0], w[0] + w[1])), max_size=5)


@given(windows)
def test_data_step_counts_what_is_not_skipped(chosen: list[tuple[int, int]]) -> None:
    """Step k trains on the k-th index that is in no window: none twice, none left out, however the windows came
    about."""
    skip: tuple[tuple[int, int], ...] = ()
    for window in chosen:
        skip = joined(skip, window)
    left = [i for i in range(200) if not any(start <= i < end for start, end in chosen)]

    assert [data_step(step, skip) for step in range(100)] == left[:100]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(skip))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(-1, 9), st.integers(0, 9), windows)
def test_taking_an_order(step: int, skip_to: int, attempt: int, ordered: int, before: list[tuple[int, int]]) -> None:
    """The data from the step gone back to up to the order's is passed over, by whoever takes it up, as often as that
    happens; a state saved after the order has it already."""
    order = Rollback(ordered, 99, skip_to)
    guard, again = Guard(), Guard()
    for window in before:
        guard.skip = again.skip = joined(guard.skip, window)
    at = guard.data_step(step)

    window = guard.take(order, step, attempt)

    assert window == ((at, skip_to) if attempt <= ordered and at < skip_to else None)
    assert again.take(order, step, attempt) == window
    assert guard.state_dict() == again.state_dict()
    assert guard.data_step(step) >= (skip_to if attempt <= ordered else at)
    # Its own attempt's states hold the window: the order adds nothing to them.
    assert guard.take(order, step, ordered + 1) is None


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_orders_travel_as_text(attempt: int, before: int, skip_to: int) -> None:
    """What encode() made, decode() reads; what is no order is none."""
    order = Rollback(attempt, before, skip_to)

    assert decode(order.encode()) == order
    assert [decode(text) for text in ("", "1:2", "a:b:c", "1:2:3:4", "1:2:")] == [None] * 5


@given(st.text(max_size=12))
def test_any_text_is_an_order_or_none(text: str) -> None:
    """The environment may hold anything."""
    assert decode(text) is None or isinstance(decode(text), Rollback)


def test_spike_rule() -> None:
    """Only losses that stay far above what they were; a single bad batch, a slow rise and a flat line are none."""
    noisy = [3.0 + 0.01 * (i % 7) for i in range(BASE)]

    assert is_spike(noisy + [9.0] * LASTING, 10)
    assert not is_spike(noisy + [9.0] * (LASTING - 1) + [3.0], 10)
    assert not is_spike([3.0] * BASE + [3.002] * LASTING, 10)
    assert not is_spike(noisy[1:] + [9.0] * LASTING, 10)
    assert not is_spike([5.0 - 0.02 * i for i in range(BASE + LASTING)], 10)
    # A loss that is zero for most batches (hinge, triplet) says nothing about how much is much.
    assert not is_spike([0.0, 0.0, 0.0, 0.1, 0.2] * (BASE // 5) + [1e-6] * LASTING, 10)
    assert not is_spike([0.0] * BASE + [9.0] * LASTING, 10)


def test_spike_survives_a_resume() -> None:
    """A guard that was restored half-way judges as one that was not."""
    losses = [3.0 + 0.01 * (i % 7) for i in range(60)] + [9.0] * LASTING
    whole, first = Guard(10.0), Guard(10.0)
    for step, loss in enumerate(losses, 1):
        whole.judge(step, loss)
    for step, loss in enumerate(losses[:40], 1):
        first.judge(step, loss)
    second = Guard(10.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step, loss in enumerate(losses[40:], 41):
        second.judge(step, loss)

    assert whole.spiked()
    assert second.spiked()
    with pytest.raises(LossSpike, match="step 64 "):
        second.judge(64, 9.0, spiked=second.spiked())
    assert not Guard().spiked()


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("resumed", [False, True])
def test_the_first_step_of_a_spike(every: int, resumed: bool) -> None:
    """Where not every step has a loss, too, and for a run that went on within the spike."""
    guard, first = Guard(10.0), (BASE + 7) * every
    with pytest.raises(LossSpike) as raised:
        for step in itertools.count(1):
            loss = (9.0 if step >= first else 3.0 + 0.01 * (step // every % 7)) if step % every == 0 else None
            guard.judge(step, loss, guard.spiked())
            if resumed and step == first + 1:
                state, guard = json.loads(json.dumps(guard.state_dict())), Guard(10.0)
                guard.load_state_dict(state)
    assert raised.value.step == first


def test_a_spike_over_a_checkpoint_of_an_older_version() -> None:
    """It has losses without their steps."""
    guard = Guard(10.0)
    guard.load_state_dict({"losses": [3.0 + 0.01 * (i % 7) for i in range(BASE)] + [9.0, 9.0]})
    guard.judge(BASE + LASTING, 9.0, guard.spiked())
    with pytest.raises(LossSpike) as raised:
        guard.judge(BASE + LASTING + 1, 9.0, guard.spiked())
    assert raised.value.step == BASE + 1


def _train(folder: Path, losses: list[float], **more: Any) -> Checkpointer:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ckpt = Checkpointer(model=model, optimizer=optimizer, directory=folder, every=1, **more)
    for step in range(ckpt.restore(), len(losses)):
        optimizer.step()
        ckpt.step(step + 1, loss=losses[step])
    return ckpt


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_not_saved(tmp_path: Path, bad: float) -> None:
    """NotFinite from step(), with everything up to the step before it on disk and nothing after."""
    with pytest.raises(NotFinite, match="step 3"):
        _train(tmp_path, [1.0, 1.0, bad, 1.0])

    assert committed_steps(tmp_path) == [1, 2]


def test_spikes_end_a_loop_that_asked_for_it(tmp_path: Path) -> None:
    """Off by default; with `spike`, LossSpike one step after it is one, and the history of losses is in the
    checkpoint."""
    losses = [3.0 + 0.01 * (i % 7) for i in range(BASE)] + [9.0] * (LASTING + 1)

    _train(tmp_path / "off", losses).close()
    with pytest.raises(LossSpike):
        _train(tmp_path / "on", losses, spike=10.0)

    assert committed_steps(tmp_path / "on")[-1] == BASE + LASTING


def test_all_ranks_raise_at_the_same_step(tmp_path: Path) -> None:
    """One rank's NaN is every rank's, at that step, by the collective that step() has anyway."""

    def body(ranks: Any) -> int:
        ckpt = Checkpointer(model=nn.Linear(2, 2), directory=tmp_path, every=None)
        ckpt._ranks = ranks
        ckpt.restore()
        for step in range(5):
            try:
                ckpt.step(step + 1, loss=float("nan") if ranks.rank == 1 and step == 2 else 1.0)
            except NotFinite:
                return step
        return -1

    assert on_ranks(2, body) == [2, 2]
