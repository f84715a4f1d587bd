"""metrics.jsonl has each finished step once, whatever the run went through."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from trainer.gpt.metrics import Metrics


def _file(tmp_path: Path, content: bytes) -> Metrics:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    return Metrics(tmp_path / "metrics.jsonl")


LINES = b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'


@pytest.mark.parametrize(
    ("content", "step", "kept"),
    [
        (LINES, 3, LINES),
        (LINES, 9, LINES),
        (LINES, 2, b'{"step": 1}\n{"step": 2}\n'),
        (LINES, 0, b""),
        (LINES + b'{"ste', 3, LINES),
        (LINES + b'{"step": 4}', 4, LINES),
        (LINES + b"\0\0\0\0\n", 3, LINES),
        (b"", 0, b""),
        (b"\0\0", 5, b""),
    ],
)
def test_resume_cuts_to_the_step(tmp_path: Path, content: bytes, step: int, kept: bytes) -> None:
    """Lines beyond the step resumed at are gone, and so is a torn or garbled last one; the next line follows."""
    metrics = _file(tmp_path, content)
    metrics.resume_at(step)
    metrics.write(step=step + 1)
    metrics.close()

    assert metrics.path.read_bytes() == kept + b'{"step": %d}\n' % (step + 1)


def test_a_full_disk_delays_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines refused or written by half are completed once there is room; until then a checkpoint is not sealed."""
    metrics = _file(tmp_path, b"")
    genuine = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 4:
            return genuine(fd, data[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    metrics.write(step=1)
    metrics.write(step=2)
    with pytest.raises(OSError, match="No space"):
        metrics.sync()
    monkeypatch.setattr(os, "write", genuine)
    metrics.sync()

    assert metrics.path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    """The file is JSON also when the loss is not a number."""
    metrics = _file(tmp_path, b"")
    metrics.write(step=1, loss=float("nan"), norm=float("inf"))
    metrics.close()

    assert metrics.path.read_bytes() == b'{"step": 1, "loss": null, "norm": null}\n'


def test_start_over_keeps_the_old_lines(tmp_path: Path) -> None:
    """The file begins anew; what it held lies beside it."""
    for number in (1, 2):
        metrics = _file(tmp_path, LINES)
        metrics.start_over()
        metrics.close()
        assert metrics.path.read_bytes() == b""
        assert (tmp_path / f"metrics-superseded-{number}.jsonl").read_bytes() == LINES
