"""What a run shows whose supervisor was killed: who lives, and that nothing is told twice."""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.supervised import Run
from trainer.rundir.records.beats import BeatReader


def exists(pid: int) -> bool:
    """Whether that process runs; a zombie has no exe."""
    return Path(f"/proc/{pid}/exe").exists()


def living(run: Run) -> dict[int, list[int]]:
    """By attempt, the ranks that registered in it and are alive."""
    found = {}
    for number in run.dir.attempts():
        with contextlib.suppress(OSError, ValueError):
            reader = BeatReader(run.dir.attempt(number).beats)
            pids = [beat.pid for beat in reader.read() if exists(beat.pid)]
            reader.close()
            if pids:
                found[number] = pids
    return found


def step_of(run: Run) -> int:
    """The step that rank 0 of the newest attempt has done."""
    reader = BeatReader(run.dir.attempt(run.dir.attempts()[-1]).beats)
    step = max((beat.step for beat in reader.read()), default=-1)
    reader.close()
    return step


def adopted(run: Run, count: int = 1) -> dict[str, Any]:
    return run.until_event("adopted", count)


def assert_told_once(run: Run) -> None:
    """No attempt has one of its events twice, no number is given to two groups, and no checkpoint is told of twice."""
    names = ("attempt_started", "group_ready", "resumed", "first_step", "caught_up", "verdict", "group_gone")
    told = Counter((event["attempt"], event["msg"]) for event in run.events(*names))
    assert max(told.values()) == 1, told
    started = [event["attempt"] for event in run.events("attempt_started")]
    assert started == sorted(set(started))
    checkpoints = [event["step"] for event in run.events("checkpoint_committed")]
    assert len(checkpoints) == len(set(checkpoints))
    armed = [event["number"] for event in run.events("fault_armed")]
    assert len(armed) == len(set(armed))


def claim(beats: Path, rank: int, pid: int) -> None:
    """The rank's beat says that it was `pid` all along: as if the kernel had given its pid to that process since."""
    words = array("q", beats.read_bytes())
    words[16 * (rank + 1)] = pid
    beats.write_bytes(words)
