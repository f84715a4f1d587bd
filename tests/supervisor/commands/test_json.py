"""What a program is told of a run: status, report and ls as JSON, over its life."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.supervised import Run
from tests.support.waiting import until


def test_json_of_a_run(run: Run) -> None:
    """status, report and ls give one JSON document each, with the keys of the contract."""
    run.script("pass")
    assert run.launch("--json", "script.py") == 0

    on_stdout = json.loads((run.folder / "stdout").read_text())
    status = json.loads(run.cli("status", "run", "--json").stdout)
    report = json.loads(run.cli("report", "run", "--json").stdout)
    assert on_stdout["state"] == status["state"] == report["state"] == "finished"
    assert set(status) >= set(
        "schema run run_dir state exit_code attempt restarts supervisor_pid launcher_pid workers standby snapshot "
        "checkpoint last_failure budget".split()
    )
    assert set(report) >= set("schema run state wall_s goodput lost_steps attempts ledger recover_s".split())
    assert set(report["attempts"][0]) >= set(
        "attempt from_step to_step cause rank signal reason lost_steps detect_s recover_s".split()
    )
    names = "productive redone detect stop launch restore first_step stall standby backoff stopped other".split()
    assert set(report["ledger"]) == {f"{name}_s" for name in names}
    assert sum(report["ledger"].values()) == pytest.approx(report["wall_s"], abs=1e-3)
    assert set(report["recover_s"]) == {"p50", "p95", "max"}
    run.cli("status", "run", "--exit-code")


def test_running_run_in_status(run: Run) -> None:
    """While it runs, status names the processes, and --exit-code says 101."""
    run.script("import time, torch\no = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)\n"
               "while True:\n    o.step()\n    time.sleep(0.05)")  # fmt: skip
    process = run.start("--nproc", "2", "script.py")

    def trains() -> dict[str, Any] | None:
        if not run.dir.run_json.exists():
            return None
        status: dict[str, Any] = json.loads(run.cli("status", "run", "--json", "--exit-code", check=101).stdout)
        # Ranks tell of their step before the supervisor does, and of its learning rate after it.
        told = status["state"] == "running" and status["lr"] is not None
        return status if told and [w["phase"] for w in status["workers"]] == ["train", "train"] else None

    status = until(trains)
    run.cli("stop", "run", "--now")

    assert status["supervisor_pid"] == process.pid
    assert [w["rank"] for w in status["workers"]] == [0, 1]
    assert all(w["step"] >= 1 and w["pid"] > 0 and w["beat_age_s"] < 60 for w in status["workers"])
    assert (status["lr"], status["loss"], status["total"], status["eta_s"]) == (0.1, None, None, None)
    assert run.wait() == 103


def test_torn_events_are_mended(run: Run) -> None:
    """A torn last line of events.jsonl is cut off by the next supervisor; readers and numbering go on."""
    run.script("import sys, os; sys.exit(0 if os.path.exists('ok') else 78)")
    assert run.launch("script.py") == 104
    whole = run.events()
    with run.dir.events.open("ab") as file:
        file.write(b'{"ts":"2026-11-24T0')
    assert json.loads(run.cli("status", "run", "--json").stdout)["exit_code"] == 104

    Path(run.folder / "ok").touch()
    assert run.launch() == 0

    events = run.events()
    assert events[: len(whole)] == whole
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert all(json.loads(line) for line in run.dir.events.read_bytes().splitlines())
