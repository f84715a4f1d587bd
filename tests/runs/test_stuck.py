"""A process that the kernel does not let go of: no second group beside it, an end that says so, a way to go on after
it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.scripts import STEPPING
from tests.support.supervised import Run
from tests.support.waiting import until


class Freezer:
    """A frozen cgroup (version 1): what is in it is in state D, and dies of its SIGKILL only once it thaws."""

    def __init__(self, mount: Path) -> None:
        self._mount, self._group = mount, mount / f"test-{os.getpid()}"
        self._group.mkdir()

    def freeze(self, pid: int) -> None:
        (self._group / "cgroup.procs").write_text(str(pid))
        self._set("FROZEN")

    def thaw(self) -> None:
        self._set("THAWED")

    def _set(self, state: str) -> None:
        file = self._group / "freezer.state"
        file.write_text(state)
        until(lambda: file.read_text().strip() == state)

    def close(self) -> None:
        self.thaw()
        until(lambda: not (self._group / "cgroup.procs").read_text())
        self._group.rmdir()


@pytest.fixture
def freezer(tmp_path: Path, run: Run) -> Iterator[Freezer]:
    mount = tmp_path / "freezer"
    mount.mkdir()
    mounting = ["mount", "-t", "cgroup", "-o", "freezer", "none", str(mount)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("needs root, and version 1 of the freezer, to make a process that cannot be killed")
    made = Freezer(mount)
    try:
        yield made
    finally:
        run.kill()
        with contextlib.ExitStack() as stack:
            stack.callback(subprocess.run, ["umount", "-l", str(mount)], check=True)
            stack.callback(made.close)


STEPS_ON = f"""{STEPPING}    if os.path.exists("finish"):
        break
"""


def test_what_cannot_be_killed_is_106(run: Run, freezer: Freezer) -> None:
    """One rank dies, the other cannot be killed: the run ends with 106 and names it, a resume is refused as long as it
    is there, and once it is gone the run goes on."""
    run.start("--nproc", "2", run.script(STEPS_ON), "100000", "0.03")
    dying, frozen = run.until_event("group_ready")["pids"]
    run.until_event("first_step")
    freezer.freeze(frozen)
    os.kill(dying, signal.SIGKILL)
    assert run.process is not None

    assert run.process.wait(90) == 106

    assert psutil.Process(frozen).status() == psutil.STATUS_DISK_SLEEP
    assert run.dir.attempts() == [0]
    assert json.loads(run.cli("status", "run", "--json").stdout)["state"] == "stuck"

    # It trains nowhere, but it could write into the run once it thaws.
    run.cli("resume", "run", check=106)
    assert run.dir.attempts() == [0]
    for end in run.events("run_ended"):
        assert (end["state"], end["exit_code"]) == ("stuck", 106)
        assert f"pid {frozen} is alive" in end["reason"]

    freezer.thaw()
    until(lambda: not Path(f"/proc/{frozen}/exe").exists())
    (run.folder / "finish").touch()
    run.cli("resume", "run")
    run.assert_nothing_left()
    assert run.verdicts()[-1] == ("finished", None)
