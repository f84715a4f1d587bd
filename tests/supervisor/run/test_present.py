"""The present of a run, wherever it is read."""

from __future__ import annotations

import time

import pytest

from supervisor.core.telling.story import tell
from supervisor.process.place import here
from supervisor.run.status import now_of


@pytest.mark.parametrize(("boot", "present"), [("another", 5030.0), (here()["boot"], 77.0), (None, 77.0)])
def test_a_run_that_is_read_on_another_machine(
    boot: str | None, present: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock is not ours, so the wall clock tells how long ago its last event was."""
    monkeypatch.setattr(time, "monotonic", lambda: 77.0)
    monkeypatch.setattr(time, "time", lambda: 1030.0)
    story = tell([{"msg": "run_started", "mono": 5000.0, "ts": "1970-01-01T00:16:40Z", "boot": boot}])

    assert now_of(story) == present
