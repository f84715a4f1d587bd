"""What a new supervisor knows of the attempts before it."""

from __future__ import annotations

from pathlib import Path

from supervisor.run.previous import previous_of
from tests.support.runs_on_disk import recovered_run


def test_the_nodes_of_an_attempt_that_nobody_has_told_of(tmp_path: Path) -> None:
    """Its supervisor died after the release: its folder is there, no event is. The nodes of the one before it may run
    it."""
    w = recovered_run(tmp_path / "run")
    assert previous_of(w.run).nodes == {}
    w.event("run_started", 22, attempt=-1)
    w.event("attempt_started", 23, attempt=2, nodes={"0": "a", "1": "b"})
    w.event("verdict", 24, attempt=2, cause="killed", rank=0, step=50, reason="")
    w.event("relaunch_scheduled", 25, attempt=2, delay_s=0.0)
    w.run.attempt(3).path.mkdir()
    previous = previous_of(w.run)

    assert (previous.last_attempt, previous.unfinished) == (3, True)
    assert previous.told("attempt_started") is None and previous.nodes == {0: "a", 1: "b"}


def test_nodes_that_are_none(tmp_path: Path) -> None:
    """Events of somebody else's run decide nothing."""
    w = recovered_run(tmp_path / "run")
    for number, nodes in enumerate(([1], {"x": 1, "1": 2}), 2):
        w.event("attempt_started", 20 + number, attempt=number, nodes=nodes)
        assert previous_of(w.run).nodes == ({} if isinstance(nodes, list) else {1: "2"})
