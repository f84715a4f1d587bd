"""What an attempt is told of the ones before it: how long a flush took, and how often the run fails."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.failures import NEWEST, Failures
from tests.support.supervised import Run
from tests.support.training import Here, Notes, Training

SCRIPT = """
import json, os, time, torch
from trainer.checkpoint import Checkpointer
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
checkpointer = Checkpointer(model=model, optimizer=optimizer, every=50, snapshot_every=1)
start = checkpointer.restore()
told = {name: os.environ[f"SUPERVISE_{name}_SECONDS"] for name in ("FLUSH", "MTBF")}
json.dump(told, open(f"told-{os.environ['SUPERVISE_ATTEMPT']}", "w"))
for step in range(start, 1_000_000):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpointer.step(step + 1)
    time.sleep(0.01)
    if os.environ["SUPERVISE_ATTEMPT"] == "1":
        break
    # Once the supervisor has heard how long a flush took: it has told it.
    if '"by":"flush"' in open(os.environ["SUPERVISE_RUN_DIR"] + "/events.jsonl").read():
        os._exit(1)
checkpointer.close()
"""


def test_an_attempt_is_told(run: Run) -> None:
    """The first knows nothing; the second how long its flushes took and how long it lived."""
    assert run.launch(run.script(SCRIPT)) == 0
    first, second = (json.loads((run.folder / f"told-{attempt}").read_text()) for attempt in (0, 1))
    assert first == {"FLUSH": "", "MTBF": ""}
    assert 0 < float(second["FLUSH"]) < float(second["MTBF"])
    run.assert_nothing_left()


def test_the_interval_knows_the_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Notes) -> None:
    """The first checkpoint of an attempt comes when it pays, and not at once to find out what it costs."""
    Here(tmp_path, monkeypatch)
    for told, due in (("", True), ("0.5", False)):
        monkeypatch.setenv("SUPERVISE_FLUSH_SECONDS", told)
        train = Training(every="auto")
        # Later than 6 s, and earlier than 19 s: sqrt(2 x a tenth of 0.5 s x an hour).
        with monkeypatch.context() as later:
            since = train.ckpt._interval.since
            later.setattr(time, "monotonic", lambda since=since: since + 7.0)
            assert train.ckpt.wish().save == due
        train.ckpt.close()


@given(st.lists(st.floats(0.0, 1e6), max_size=20))
def test_mtbf(gaps: list[float]) -> None:
    """The mean of the newest times between failures; none before the first failure."""
    failures = Failures()
    failures.launched(now := 0.0)
    assert failures.mtbf() is None
    for gap in gaps:
        failures.launched(now := now + gap)
    newest = gaps[-NEWEST:]
    assert not gaps or failures.mtbf() == pytest.approx(sum(newest) / len(newest), rel=1e-6, abs=1e-6)
