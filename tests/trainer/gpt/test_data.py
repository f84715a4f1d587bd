"""Batches are a function of the seed and the step; how many ranks share them makes no difference."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import UsageError
from trainer.gpt.data import Batches, load_bytes


@given(
    seed=st.integers(0, 2**40), step=st.integers(0, 2**40), ranks=st.sampled_from([1, 2, 4]), block=st.integers(1, 9)
)
def test_the_whole_batch_is_the_same_at_any_world_size(seed: int, step: int, ranks: int, block: int) -> None:
    """The ranks' parts, one after the other, are the batch of one rank; targets are the inputs one byte on."""
    data = torch.arange(64, dtype=torch.uint8)
    whole = Batches(data, 8, block, seed, 0, 1)(step)
    parts = [Batches(data, 8, block, seed, rank, ranks)(step) for rank in range(ranks)]

    assert torch.equal(torch.cat([x for x, _ in parts]), whole[0])
    assert torch.equal(torch.cat([y for _, y in parts]), whole[1])
    assert torch.equal(whole[0] + 1, whole[1])


def test_batches_draw_nothing_from_the_global_generator() -> None:
    """A batch leaves dropout's generator as it was."""
    before = torch.get_rng_state()
    Batches(load_bytes("random", 1), 4, 8, 1, 0, 1)(3)

    assert torch.equal(torch.get_rng_state(), before)


def test_every_start_can_be_drawn() -> None:
    """The first and the last byte of the data are used."""
    batches = Batches(torch.arange(12, dtype=torch.uint8), 64, 9, 0, 0, 1)
    starts = {int(x[0]) for step in range(4) for x in batches(step)[0]}

    assert starts == {0, 1, 2}


def test_stdlib_is_quick_and_the_same_each_time() -> None:
    """The default data: megabytes of Python in well under half a second of the CPU, no download."""
    load_bytes("stdlib", 0)
    began = time.process_time()
    data = load_bytes("stdlib", 0)

    assert time.process_time() - began < 0.5
    assert data.numel() > 4_000_000
    assert torch.equal(data, load_bytes("stdlib", 1))


def test_random_depends_on_the_seed() -> None:
    """The same seed gives the same noise."""
    assert torch.equal(load_bytes("random", 1), load_bytes("random", 1))
    assert not torch.equal(load_bytes("random", 1), load_bytes("random", 2))


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    """Sorted by path, hidden ones left out."""
    (tmp_path / "b").mkdir()
    for name, text in (("c", b"3"), ("a", b"1"), ("b/x", b"2"), (".hidden", b"4")):
        (tmp_path / name).write_bytes(text)

    assert bytes(load_bytes(str(tmp_path), 0).tolist()) == b"123"


def test_what_cannot_be_used_is_a_usage_error(tmp_path: Path) -> None:
    """Nothing there, nothing in it, too little, or a batch that ranks cannot share."""
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="No such file"):
        load_bytes(str(tmp_path / "none"), 0)
    with pytest.raises(UsageError, match="nothing in it"):
        load_bytes(str(tmp_path / "empty"), 0)
    with pytest.raises(UsageError, match="at least 9"):
        Batches(torch.zeros(8, dtype=torch.uint8), 4, 8, 0, 0, 1)
    with pytest.raises(UsageError, match="4 ranks"):
        Batches(torch.zeros(99, dtype=torch.uint8), 6, 8, 0, 0, 4)


def test_other_data_is_noticed() -> None:
    """A checkpoint of other data says so when it is restored."""
    one, two = (Batches(load_bytes("random", seed), 4, 8, 0, 0, 1) for seed in (1, 2))
    one.load_state_dict(one.state_dict())
    two.load_state_dict(one.state_dict())

    assert (one.changed, two.changed) == (False, True)
