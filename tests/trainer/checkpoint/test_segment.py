"""The protocol of snapshots: whatever dies between any two writes, there is a whole snapshot that all ranks have."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoint.memory import snapshots
from trainer.checkpoint.memory.board import RECORD_BYTES, Board
from trainer.checkpoint.memory.segment import Segment
from trainer.rundir.machine import shm
from trainer.rundir.machine.proc import stat
from trainer.rundir.variables import LEAVING

SIZE = 64


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """All segments that a test makes are closed after it: a rank has few, and these tests make hundreds, whose
    descriptors would be too many for select() in the tests that follow."""
    made, init = list[Segment](), Segment.__init__

    def remembered(segment: Segment, *arguments: Any, **options: Any) -> None:
        init(segment, *arguments, **options)
        made.append(segment)

    monkeypatch.setattr(Segment, "__init__", remembered)
    monkeypatch.setattr(shm, "ROOT", tmp_path)
    monkeypatch.setattr("trainer.checkpoint.memory.segment._SLACK", 0)
    yield shm.segment_of("test")
    for segment in made:
        segment.close()


def _content(step: int, rank: int) -> bytes:
    return bytes([step % 256, rank]) * (SIZE // 2)


def _write(segment: Segment, step: int, pin: bool = False) -> Iterator[str]:
    """One snapshot, stopping after each of its writes."""
    buffer = segment.begin(SIZE, step if pin else None)
    if buffer is None:
        segment.skip(step)
        yield "skipped"
        return
    yield "begun"
    content = _content(step, segment.rank)
    for at in (0, SIZE // 2):
        buffer.memory[at : at + SIZE // 2] = content[at : at + SIZE // 2]
        yield "filling"
    segment.commit(buffer, step, SIZE, 0)
    yield "committed"


def _all(segment: Segment, step: int, pin: bool = False) -> str:
    return list(_write(segment, step, pin))[-1]


def _whole(folder: Path) -> int:
    """The newest snapshot that all ranks have, every byte of it right."""
    found = snapshots.find(folder)
    assert found is not None
    for rank in range(found.world_size):
        assert found.path(rank).read_bytes()[:SIZE] == _content(found.step, rank), (found.step, rank)
    return found.step


def _ranks(folder: Path, world_size: int = 2, attempt: int = 0, kind: type[Segment] = Segment) -> list[Segment]:
    return [kind(folder, rank, world_size, attempt) for rank in range(world_size)]


def test_a_torn_record_is_none(folder: Path) -> None:
    """The commit record is cut after any of its bytes: the snapshot before it is the newest, and the next one works."""
    segment = Segment(folder, 0, 1, 0)
    _all(segment, 1)
    _all(segment, 2)
    board = Board(shm.board_path(folder, 0))
    slot = next(s for s, record in board.records().items() if record.step == 2)
    record = board.read(slot)
    assert record is not None
    # A record that ends with zeros is whole without them.
    for cut in range(len(record.encode().rstrip(b"\0"))):
        board.invalidate(slot)
        board.put(slot, record.encode()[:cut])
        assert _whole(folder) == 1
    for at in range(RECORD_BYTES):
        flipped = bytearray(record.encode())
        flipped[at] ^= 1
        board.put(slot, bytes(flipped))
        assert _whole(folder) == 1

    assert _all(segment, 3) == "committed"
    assert _whole(folder) == 3


def _in_loop_order(ranks: list[Segment], step: int, order: list[int]) -> Iterator[None]:
    """All ranks snapshot `step`, their writes in that order; none begins the next before all have committed."""
    running = [_write(segment, step) for segment in ranks]
    for rank in order:
        next(running[rank])
        yield


def _orders(left: int, right: int) -> Iterator[list[int]]:
    if not left and not right:
        yield []
    for rank, (a, b) in enumerate(((left - 1, right), (left, right - 1))):
        if min(a, b) >= 0:
            for rest in _orders(a, b):
                yield [rank, *rest]


def test_a_death_between_any_two_writes(folder: Path) -> None:
    """Two ranks, all orders of their writes that the loop's collective allows, death after each: at most the step that
    was being copied is lost."""
    ranks = _ranks(folder)
    for step, order in enumerate(_orders(4, 4), 1):
        for _ in _in_loop_order(ranks, step, order):
            if step > 1:
                assert _whole(folder) in (step - 1, step)
        assert _whole(folder) == step


def _free_run(folder: Path, seed: int, kind: type[Segment] = Segment) -> int:
    """Ranks that nothing keeps together, with pins, deaths and other world sizes; checked after every write."""
    chance = random.Random(seed)
    world, attempt, newest = 2, 0, 0
    ranks = _ranks(folder, world, attempt, kind)
    steps = [0] * world
    running: list[Iterator[str]] = [iter(()) for _ in ranks]
    for _ in range(200):
        rank = chance.randrange(world)
        if next(running[rank], None) is None:
            steps[rank] += 1
            if chance.random() < 0.3:
                # Ahead of its begin, which comes after writes of the others, or never.
                ranks[rank].prepare()
            running[rank] = _write(ranks[rank], steps[rank], pin=chance.random() < 0.1)
        if chance.random() < 0.05:
            snapshots.clear_pins(folder)
        if chance.random() < 0.05 and (there := snapshots.find(folder)) is not None:
            snapshots.pin(there)
        if newest or snapshots.newest_snapshot(folder):
            found = _whole(folder)
            assert found >= newest
            newest = found
        if newest and chance.random() < 0.02:
            world, attempt = chance.choice((1, 2, 3)), attempt + 1
            snapshots.clear_pins(folder)
            ranks, running = _ranks(folder, world, attempt, kind), [iter(()) for _ in range(world)]
            steps = [newest] * world
    return newest


@pytest.mark.parametrize("seed", range(60))
def test_ranks_that_nothing_keeps_together(folder: Path, seed: int) -> None:
    """Any order of writes, deaths, pins and world sizes: the newest common snapshot is whole, never an older one than
    before, and ranks that are late for each other meet again."""
    assert _free_run(folder, seed) >= 3


class _Heedless(Segment):
    def _past(self, record: Any, newest: Any) -> bool:
        return True

    def newest(self) -> Any:
        return None


def test_a_rank_that_does_not_look_is_convicted(folder: Path) -> None:
    """A rank that writes over its older buffer without looking at the others leaves a moment without any snapshot."""
    with pytest.raises(AssertionError):
        for seed in range(60):
            _free_run(folder, seed, _Heedless)
            snapshots.remove(folder)


@pytest.mark.parametrize("pin", [False, True])
def test_the_next_buffer_is_ready_before_the_step(folder: Path, pin: bool) -> None:
    """What is begun then is what was prepared, pinned if asked. The newest snapshot is there all the time. Nothing
    is prepared while another rank has yet to copy it, nor taken if it was pinned meanwhile or is too small."""
    one, other = _ranks(folder)
    for step in (1, 2, 3):
        _all(one, step)
        one.prepare()  # too early: the other has no such snapshot, or none that is newer
        assert step == 1 or _whole(folder) == step - 1
        _all(other, step)
    for segment in (one, other):
        segment.prepare()
        assert _whole(folder) == 3
    board = Board(shm.board_path(folder, 0))
    ready = next(slot for slot in "ab" if slot not in board.records())
    begun = one.begin(SIZE, 4 if pin else None)
    assert begun is not None and begun.slot == ready
    assert board.pins() == ({ready: frozenset({4})} if pin else {})
    one.commit(begun, 4, SIZE, 0)
    larger = other.begin(8 * SIZE)
    assert larger is not None and len(larger.memory) >= 8 * SIZE
    other.commit(larger, 4, SIZE, 0)

    snapshots.clear_pins(folder)
    one.prepare()
    ready = next(slot for slot in "ab" if slot not in board.records())
    board.pin(ready, 3, by_flush=True)
    third = one.begin(SIZE)
    assert third is not None and third.slot == "c"


def test_a_late_rank_costs_a_snapshot_not_safety(folder: Path) -> None:
    """Rank 1 is still copying step 2: rank 0 takes no snapshot of step 3, and of step 4 it does once rank 1 has 2."""
    one, other = _ranks(folder)
    for segment in (one, other):
        _all(segment, 1)
    _all(one, 2)
    late = _write(other, 2)
    next(late)

    assert _all(one, 3) == "skipped"
    assert _whole(folder) == 1
    list(late)
    assert _all(one, 4) == "committed"
    assert _whole(folder) == 2


def test_a_pinned_snapshot_stays_and_a_third_buffer_comes_and_goes(folder: Path) -> None:
    """While one is pinned the others alternate; after that the third is gone."""
    segment = Segment(folder, 0, 1, 0)
    _all(segment, 1)
    _all(segment, 2, pin=True)
    pinned = snapshots.find(folder, 2)
    for step in range(3, 7):
        assert _all(segment, step) == "committed"
        assert pinned is not None
        assert snapshots.unchanged(pinned)
        assert _whole(folder) == step
    assert len(list(folder.glob("rank0.*"))) == 3
    snapshots.clear_pins(folder)
    for step in range(7, 10):
        assert _all(segment, step) == "committed"
        assert _whole(folder) == step
    assert len(list(folder.glob("rank0.*"))) == 2


@pytest.mark.parametrize("promised", [False, True])
def test_pins_of_a_larger_world(folder: Path, promised: bool) -> None:
    """Four ranks pinned a step, and one died before it had committed: with two ranks no pin of it is left, nor a file
    of the others. If all had committed, the pins stay until a flush has read it."""
    for segment in _ranks(folder, 4):
        _all(segment, 6)
        if segment.rank == 1 and not promised:
            next(_write(segment, 7, pin=True))
        else:
            _all(segment, 7, pin=True)
    ranks = _ranks(folder, 2, attempt=1)
    assert snapshots.pinned(folder) == ([7] if promised else [])
    assert snapshots.any_pinned(snapshots.boards(folder).values()) == promised

    for step in range(8, 11):
        if step == 9:
            snapshots.clear_pins(folder)
        for segment in ranks:
            _all(segment, step)
    assert _whole(folder) == 10
    assert shm.ranks_in(folder) == [0, 1]


def test_no_room_for_the_third_buffer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no snapshots while the pin lasts, the pinned one is safe, and then it goes on."""
    segment = Segment(folder, 0, 1, 0)
    _all(segment, 1)
    _all(segment, 2, pin=True)
    _all(segment, 3)

    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert _all(segment, 4) == "skipped"
    assert segment.cramped
    assert _whole(folder) == 3
    snapshots.clear_pins(folder)
    assert _all(segment, 5) == "committed"
    assert _whole(folder) == 5


def test_snapshots_of_others_are_not_ours(folder: Path) -> None:
    """Copied under another run's name they are none; a rank that never committed keeps no pin; removed, nothing is
    left."""
    segment = Segment(folder, 0, 1, 0)
    _all(segment, 1)
    next(_write(segment, 2, pin=True))
    other = folder.with_name("supervise-other")
    folder.rename(other)

    assert snapshots.newest_snapshot(other) is None
    other.rename(folder)
    Segment(folder, 0, 1, 1)
    assert not snapshots.any_pinned(snapshots.boards(folder).values())
    assert snapshots.newest_snapshot(folder) == 1
    snapshots.remove(folder)
    assert not folder.exists()
    snapshots.remove(folder)


def test_somebody_elses_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    """A folder that others may enter, or a link, is not written to."""
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError):
        Segment(folder, 0, 1, 0)
    folder.rmdir()
    (tmp_path / "trap").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "trap")
    with pytest.raises(PermissionError):
        Segment(folder, 0, 1, 0)
    assert shm.segment_here({"SUPERVISE_MARK": "../x.0"}) is None
    assert shm.segment_here({"SUPERVISE_MARK": "ab-1.group"}) == shm.segment_of("ab-1")


def test_no_buffer_while_a_dead_process_has_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU still copies for it would land there."""
    process = subprocess.Popen(["sleep", "600"])
    started = stat(process.pid)
    assert started is not None
    segment = Segment(folder, 0, 1, 1)
    monkeypatch.setenv(LEAVING, f"{process.pid}:{started.started} {process.pid}:1")
    try:
        assert segment.begin(100) is None
    finally:
        process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert segment.begin(100) is not None  # a zombie has closed its files
    process.wait()
    segment.close()
