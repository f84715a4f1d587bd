"""Disks that are full or read-only, and shared memory that fills up: training goes on where it can, the newest good
checkpoint is never lost, the trouble is told, and the end has the right code."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import TINY, final_state, same
from tests.support.scripts import PACED, PRINTS, printed
from tests.support.supervised import Run
from tests.support.undisturbed import undisturbed
from tests.support.waiting import until
from trainer.checkpoint.disk import store
from trainer.checkpoint.memory.snapshots import newest_snapshot
from trainer.rundir.layout import committed_steps, step_name
from trainer.rundir.machine.shm import segment_of
from trainer.rundir.records.beats import last_beats

STEPS = 60
_SIZE = "--n-layer 2 --n-head 2 --n-embd 48 --block-size 64 --batch-size 2".split()
JOB = ["paced.py", *TINY, *_SIZE, "--steps", str(STEPS), "--checkpoint-every", "5"]
GROWS = """
import os, time, torch
from trainer.checkpoint import Checkpointer
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
held = {"more": torch.zeros(1)}
ckpt = Checkpointer(model=model, optimizer=optimizer, extra=lambda: held, every=10, snapshot_every=1)
for step in range(ckpt.restore(), 100_000):
    if os.path.exists("../grow"):
        held = {"more": torch.zeros(1 << 20)}
    model(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    ckpt.step(step + 1)
    time.sleep(0.005)
    if os.path.exists("../finish"):
        break
ckpt.close()
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, or a user namespace, to mount a small disk")


@pytest.mark.skipif(os.geteuid() == 0, reason="is root already")
def test_as_root_of_a_namespace() -> None:
    """The tests of this file that mount, run where a user may only do so in a namespace of its own."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not allowed here")
    done = subprocess.run(["unshare", "-rm", sys.executable, "-m", "pytest", "-q", __file__], check=False, timeout=250)
    assert done.returncode == 0


class SmallDisk:
    """A file system of its own on `path`, that can be filled to the last byte and freed again."""

    def __init__(self, path: Path, megabytes: int) -> None:
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(path)], check=True)
        self.path, self._filler = path, path / "filler"

    def fill(self) -> None:
        fill(self._filler)

    def free(self) -> None:
        self._filler.unlink()


def fill(path: Path) -> None:
    """The file at `path` has taken all the room that there was."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


@pytest.fixture
def disk(run: Run) -> Iterator[SmallDisk]:
    """The folder of `run` is a small disk."""
    made = SmallDisk(run.dir.path, 8)
    yield made
    run.kill()
    subprocess.run(["umount", "-l", str(made.path)], check=True)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The end of a run that nothing disturbed."""
    return undisturbed(tmp_path_factory, "full-disk", STEPS, JOB, lambda run: run.script(PACED, "paced.py"))


def start(run: Run, *options: str) -> None:
    """The job runs, some 60 ms a step, and has come to the middle, where it stays: its first checkpoint is on disk."""
    run.script(PACED, "paced.py")
    run.script("0.05", "pace")
    run.script("9", "hold")
    # For the time that it is held.
    run.start("--nproc", "2", "--hang-timeout", "60s", *options, *JOB)
    run.until_event("checkpoint_committed")


def go_on(run: Run) -> None:
    (run.folder / "hold").unlink()


def assert_same_end(run: Run, reference: Any) -> None:
    assert same(final_state(run.dir.path, STEPS), reference)
    steps = [json.loads(line)["step"] for line in run.dir.metrics.read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


@needs_root
def test_a_disk_that_is_full_for_a_while(run: Run, disk: SmallDisk, reference: Any) -> None:
    """Saves, metrics, logs and events meet a full disk; there is room again before the end: the same bits, no restart,
    and the trouble is in the events."""
    start(run)
    disk.fill()
    run.script("30", "hold")
    until(lambda: _step(run) >= 29)
    disk.free()
    go_on(run)
    assert run.wait() == 0

    assert_same_end(run, reference)
    assert run.verdicts() == [("finished", None)]
    assert "space" in run.events("checkpoint_failed")[0]["error"].lower()
    seqs = [e["seq"] for e in run.events()]
    assert seqs == list(range(1, len(seqs) + 1))


def _step(run: Run) -> int:
    """The step that the ranks of the first attempt have done."""
    return max((beat.step for beat in last_beats(run.dir.attempt(0).beats)), default=-1)


@needs_root
def test_a_disk_that_stays_full(run: Run, disk: SmallDisk, reference: Any) -> None:
    """The run cannot save its end: it fails, and says why. No checkpoint is lost; the last step stays in memory, and
    once there is room the run is resumed to the same bits."""
    start(run, "--max-restarts", "1")
    kept = committed_steps(run.dir.checkpoints)
    disk.fill()
    go_on(run)
    assert run.process is not None
    code = run.process.wait(60)
    assert code in (100, 105)
    causes = {event["cause"]: event["reason"] for event in run.events("verdict")}
    assert causes.keys() == {"no_space"}, causes
    assert committed_steps(run.dir.checkpoints) == kept and kept
    for step in kept:
        store.verify(run.dir.checkpoints / step_name(step))
    assert newest_snapshot(segment_of(run.mark())) == STEPS

    disk.free()
    assert run.cli("resume", "run").returncode == 0
    run.assert_nothing_left()
    assert_same_end(run, reference)


def _print(run: Run, *options: str) -> None:
    (run.folder / "work").mkdir()
    run.script(PRINTS, "work/prints.py")
    run.start("--no-standby", *options, "-m", "prints", cwd=run.folder / "work")
    until(lambda: printed(run.folder) > 20)


@needs_root
def test_prints_on_a_full_disk(run: Run, disk: SmallDisk) -> None:
    """A script that knows nothing of us prints on while its log cannot take it: words are lost, the training is not."""
    _print(run)
    disk.fill()
    full = printed(run.folder)
    until(lambda: printed(run.folder) > full + 30)
    disk.free()
    freed = printed(run.folder)
    until(lambda: printed(run.folder) > freed + 10)
    (run.folder / "finish").touch()
    assert run.wait() == 0

    log = run.dir.attempt(0).rank_log(0).read_text()
    assert "step 0 " in log and f"step {freed + 9} " in log and f"step {full + 15} " not in log
    assert "the log cannot be written (No space left on device)" in run.warnings()
    assert "the log can be written again: " in run.warnings()


@needs_root
def test_the_reason_of_a_failure_on_a_full_disk(run: Run, disk: SmallDisk) -> None:
    """Room was kept for the record of an exception: the verdict has the script's own words."""
    _print(run, "--max-restarts", "0")
    disk.fill()
    (run.folder / "fail").touch()
    assert run.wait() in (100, 104)
    assert "ValueError: in my own words" in (run.folder / "stderr").read_text()


@needs_root
def test_a_stop_on_a_full_disk(run: Run, disk: SmallDisk) -> None:
    """A run can be stopped though its disk has no room for the word; room was kept to tell of that, and of lost
    lines."""
    _print(run)
    disk.fill()
    until(lambda: "printed text is lost" in run.warnings())
    run.cli("stop", "run", "--now")
    assert run.wait() == 103
    assert [ended["exit_code"] for ended in run.events("run_ended")] == [103]


@needs_root
def test_a_disk_that_becomes_read_only(run: Run) -> None:
    """As ext4 does on an error: training goes on to its last step, which cannot be saved; the run fails and says why,
    and the checkpoints are as they were."""
    image = run.folder / "image"
    image.write_bytes(b"")
    os.truncate(image, 48 << 20)
    run.dir.path.mkdir()
    options = "loop,errors=remount-ro"
    made = subprocess.run(["mkfs.ext4", "-q", "-F", "-m0", str(image)], capture_output=True, check=False)
    if (
        made.returncode
        or subprocess.run(["mount", "-o", options, str(image), str(run.dir.path)], check=False).returncode
    ):
        pytest.skip("no loop device, or no ext4")
    try:
        (run.dir.path / "lost+found").rmdir()
        start(run, "--max-restarts", "0")
        subprocess.run(["mount", "-o", "remount,abort", str(run.dir.path)], check=True)
        kept = committed_steps(run.dir.checkpoints)
        go_on(run)
        assert run.process is not None
        assert run.process.wait(60) in (100, 104, 105)

        assert "Read-only file system" in (run.folder / "stderr").read_text()
        assert committed_steps(run.dir.checkpoints) == kept
        for step in kept:
            store.verify(run.dir.checkpoints / step_name(step))
        assert newest_snapshot(segment_of(run.mark())) == STEPS
    finally:
        run.kill()
        subprocess.run(["umount", "-l", str(run.dir.path)], check=True)


@needs_root
def test_shared_memory_that_fills_up(run: Run) -> None:
    """In the middle of a run there is no room for a larger snapshot: one warning, and checkpoints go on, on disk."""
    (run.folder / "work").mkdir()
    run.script(GROWS, "work/grows.py")
    mounted = 'mount -t tmpfs -o size=12m none /dev/shm && exec "$@"'
    run.start(
        "--no-standby", "-m", "grows", cwd=run.folder / "work", through=["unshare", "-m", "sh", "-c", mounted, "sh"]
    )
    assert run.process is not None
    run.until_event("checkpoint_committed")
    fill(Path(f"/proc/{run.process.pid}/root/dev/shm/filler"))
    (run.folder / "grow").touch()
    until(lambda: "checkpoints go on, on disk" in run.warnings())
    before = run.events("checkpoint_committed")[-1]["step"]
    until(lambda: run.events("checkpoint_committed")[-1]["step"] > before + 20)
    (run.folder / "finish").touch()
    assert run.wait() == 0
    assert run.warnings().count("no snapshots: ") == 1
    assert run.verdicts() == [("finished", None)]
