"""What is told after a supervisor that died: nothing twice, and no note of what it has told counts again."""

from __future__ import annotations

from pathlib import Path

from supervisor.core.actions import Emit
from supervisor.core.telling.news import News
from supervisor.loop.narrator import Narrator
from supervisor.loop.tracker import Tracker
from supervisor.reading.events_file import read_events
from supervisor.run.events import EventLog
from supervisor.run.previous import Previous
from trainer.rundir.layout import RunDir


def test_nothing_is_told_twice(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    log = EventLog(run, "gpt")
    narrator = Narrator(log)
    tracker = Tracker(run, Previous(), narrator)
    narrator.go_on(
        [
            {"msg": "group_ready", "pids": [11, 12]},
            {"msg": "rank_joined", "pid": 13},
            {"msg": "checkpoint_committed", "step": 7, "noted_mono": 1.5},
        ]
    )

    # Step 7 was told of, and has been removed since: the run cannot go on from there.
    saved = [(0, {"kind": "checkpoint_saved", "mono": at, "step": step}) for at, step in ((1.5, 7), (2.5, 3))]
    tracker.see(News(pids={0: 11, 1: 12}, joined=((2, 13), (3, 14)), notes=tuple(saved)), attempt=0, nproc=2)
    assert tracker.progress.checkpoint == 3
    narrator.new_attempt(1)
    narrator.tell([Emit("group_ready", fields={"pids": [21, 22]}, once="group_ready")] * 2)
    log.close()

    told = [(event["msg"], event.get("pid", event.get("step"))) for event in read_events(run.events)[0]]
    assert told == [("rank_joined", 14), ("checkpoint_committed", 3), ("group_ready", None)]
