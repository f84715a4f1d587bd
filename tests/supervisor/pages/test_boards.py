"""The curves that a program has logged for TensorBoard are on its page, read without TensorBoard."""

from __future__ import annotations

import base64
import os
import random
import struct
from pathlib import Path

import pytest

from supervisor.core.telling.story import tell
from supervisor.live.curve import Sample
from supervisor.pages.boards import tags
from supervisor.pages.series import POINTS, curves
from supervisor.reading.event_file import points
from trainer.rundir.files.codec import encode
from trainer.rundir.layout import RunDir
from trainer.rundir.records.boards import Board, is_training_loss

WRITTEN = base64.b64decode(
    "SAAAAAAAAAD+kkidCZiJErNLwtpBGg1icmFpbi5FdmVudDoyUi4KLHRlbnNvcmJvYXJkLnN1bW1hcnkud3JpdGVyLmV2ZW50X2ZpbGVfd3JpdGVy"
    "mvqtqBoAAAAAAAAAEpvYLQmzqRKzS8LaQRADKg0KCwoEbG9zcxUAAAA/BVTWuiwAAAAAAAAA9K7MRQmgqhKzS8LaQRAEKh8KHQoEbG9zc0IICAEq"
    "BAAAgD5KCwoJCgdzY2FsYXJzVIS/uzYAAAAAAAAAT1eM7wkQqxKzS8LaQRAFKikKJwoOdC90ZXh0X3N1bW1hcnlCCwgHEgQSAggBQgF4SggKBgoE"
    "dGV4dH8C0WcZAAAAAAAAAIvxCCgJSqsSs0vC2kEQBioMCgoKA2JhZBUAAMB/omT/LQ=="
)
"""What torch.utils.tensorboard wrote for: a scalar, a scalar of the new style, a text, a scalar that is NaN."""


def checksum(data: bytes) -> int:
    """TFRecord's masked CRC-32C, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def record(at: float, step: int, tag: str, value: float) -> bytes:
    """One scalar, as TensorBoard writes it. The checksum of the content is left out: no reader of ours looks at it."""
    name = tag.encode()
    one = b"\x0a" + varint(len(name)) + name + b"\x15" + struct.pack("<f", value)
    summary = b"\x0a" + varint(len(one)) + one
    event = b"\x09" + struct.pack("<d", at) + b"\x10" + varint(step) + b"\x2a" + varint(len(summary)) + summary
    head = struct.pack("<Q", len(event))
    return head + struct.pack("<I", checksum(head)) + event + bytes(4)


def a_file(folder: Path, at: int, *records: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"events.out.tfevents.{at}.host.1.0"
    path.write_bytes(b"".join(records))
    return path


def run_with(folder: Path, *boards: Path) -> RunDir:
    run = RunDir(folder)
    run.trackers.mkdir(parents=True)
    run.boards.write_bytes(b"".join(encode(Board(str(board))) + b"\n" for board in boards) + b"garbage\n{\n")
    return run


def test_what_tensorboard_writes_is_read(tmp_path: Path) -> None:
    """Numbers of both styles; texts and NaN are none; what a kill has cut off is left out."""
    file = tmp_path / "file"
    for size in (len(WRITTEN), len(WRITTEN) - 3):
        file.write_bytes(WRITTEN[:size])
        assert [(one.step, one.tag, one.value) for one in points(file, 1 << 20)] == [
            (3, "loss", 0.5),
            (4, "loss", 0.25),
        ]
    for begin in range(8, len(WRITTEN)):
        file.write_bytes(WRITTEN[begin:])
        points(file, 1 << 20)
    generator = random.Random(0)
    for _ in range(200):
        garbled = bytearray(WRITTEN)
        garbled[generator.randrange(len(garbled))] = generator.randrange(256)
        file.write_bytes(garbled)
        assert all(one.step < 1 << 53 for one in points(file, 1 << 20))
    os.mkfifo(tmp_path / "pipe")
    assert points(tmp_path / "pipe", 1 << 20) == points(tmp_path / "none", 1 << 20) == []


def test_a_note_that_names_no_folder_hides_no_other(tmp_path: Path) -> None:
    """A path with a NUL in it, one that is too long, and one that is not there."""
    a_file(tmp_path / "board", 1, record(0, 1, "loss", 1))
    odd = [Path("a\0b"), Path("a/" * 5000), tmp_path / "none"]
    assert [tag.kept for tag in tags(run_with(tmp_path / "run", *odd, tmp_path / "board"))] == [{1: 1.0}]


def test_an_attempt_that_goes_on_replaces_what_was_lost(tmp_path: Path) -> None:
    """From the first step that comes again, name by name. Another process that writes there at the same time does not
    count."""
    board = tmp_path / "board"
    a_file(board, 1, *(record(n, n, "Loss/train", n) for n in range(50)), record(50, 4, "by epoch", 4))
    a_file(board, 2, *(record(100 + n, n, "Loss/train", 2 * n) for n in range(30, 60)), record(160, 5, "by epoch", 5))
    a_file(board, 3, *(record(110 + n, n, "Loss/train", 9) for n in range(60)))
    loss, epochs = tags(run_with(tmp_path / "run", board, board))

    assert (loss.name, loss.breaks) == ("Loss/train", [49]) and (epochs.name, epochs.lost) == ("by epoch", {})
    assert loss.kept == {n: n if n < 30 else 2 * n for n in range(60)}
    assert loss.lost == {n: n for n in range(30, 50)} and epochs.kept == {4: 4, 5: 5}


def test_the_page_has_the_loss_of_each_step(tmp_path: Path) -> None:
    """In place of what the supervisor saw, if it counts the run's steps; restarts are marked on no curve that counts
    something else. Two folders with the same name are told apart; the numbers that we have added are left out."""
    numbers = (record(n, n, "supervise/goodput", 0.5) for n in range(100))
    a_file(tmp_path / "a", 1, *(record(n, n, "train/loss", n) for n in range(100)), *numbers)
    a_file(tmp_path / "a", 0, *(record(0, n, "accuracy", n) for n in range(5)))
    a_file(tmp_path / "b", 1, *(record(0, n, "accuracy", n) for n in range(7)))
    run = run_with(tmp_path / "run", tmp_path / "a", tmp_path / "b")
    seen = [Sample(0, n, float(n), loss=1.0, loss_step=n) for n in range(0, 100, 10)]
    found = {series.name: series for series in curves(run, tell([]), seen)}

    assert (
        found.keys() == {"loss", "time of a step", "accuracy (a)", "accuracy (b)"} and len(found["loss"].points) == 100
    )
    assert [found["loss"].own, found["accuracy (a)"].own, found["accuracy (b)"].own] == [False, True, True]
    run.metrics.write_text("".join(f'{{"step":{n},"loss":7.0}}\n' for n in range(100)))
    found = {series.name: series for series in curves(run, tell([]), seen)}
    assert {value for _, value in found["loss"].points} == {7.0} and "train/loss" in found


def test_of_a_million_numbers_a_part_is_read(tmp_path: Path) -> None:
    """The curve spans the run, and every number of it was logged."""
    one = [record(float(n), n, f"m/{n % 3}", n % 1000) for n in range(20_000)]
    text = b"".join(one)
    a_file(tmp_path / "board", 1, text, b"".join(record(2e4, 20_000 + n, "m/0", n % 1000) for n in range(20_000)))
    found = {tag.name: tag.kept for tag in tags(run_with(tmp_path / "run", tmp_path / "board"))}

    assert sum(map(len, found.values())) < 20_000
    assert found.keys() == {"m/0", "m/1", "m/2"} and min(found["m/0"]) < 100 and max(found["m/0"]) == 39_999
    assert len(found["m/0"]) > POINTS
    assert all(value == step % 1000 for step, value in found["m/1"].items())


def test_a_run_of_somebody_else_names_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_file(tmp_path / "board", 1, record(0, 1, "secret", 1), record(0, 2, "secret", 2))
    run = run_with(tmp_path / "run", tmp_path / "board")
    assert len(tags(run)) == 1
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert tags(run) == []


@pytest.mark.parametrize("tag", ["loss", "train/loss", "Loss/train", "train_loss_step", "training loss"])
def test_the_loss_is_known_by_its_name(tag: str) -> None:
    assert is_training_loss(tag)


@pytest.mark.parametrize("tag", ["val/loss", "eval_loss", "loss_box", "lr", "lossless", "test loss", ""])
def test_what_is_not_the_loss(tag: str) -> None:
    assert not is_training_loss(tag)
