"""A batch job runs what was asked for, word for word, and knows how much time it has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from supervisor.commands import slurm
from supervisor.commands.cli import run
from trainer.rundir.codes import ExitCode

ODD = ["--name", 'it\'s "so"', "--x=$HOME `id` \\", "", "a\nb", "é*?~"]


def program(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name, first on the PATH."""
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH'].removeprefix(f'{folder}:')}")


def test_the_script_runs_the_command_and_ends_as_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever words it has."""
    program(
        tmp_path,
        "srun",
        f'while [ "${{1#--}}" != "$1" ]; do shift; done; printf "%s\\0" "$@" > {tmp_path}/got; exit 75',
        monkeypatch,
    )
    path = tmp_path / "job.sh"
    path.write_text(slurm.batch_script(["supervise", "launch", *ODD], ["-p", "gpu", "--time=8:00:00"], "train"))
    done = subprocess.run(["bash", str(path)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (75, "")
    assert (tmp_path / "got").read_text().split("\0")[:-1] == ["supervise", "launch", *ODD]
    lines = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    assert lines[-2:] == ["#SBATCH -p gpu", "#SBATCH --time=8:00:00"], "the user's are last, so they are stronger"


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ([], 1),
        (["-N1"], 1),
        (["-N", "2"], 2),
        (["-N4"], 4),
        (["--nodes=2-4", "-p", "gpu"], 4),
        (["-p", "gpu", "--nodes", "3"], 3),
        (["-N2", "--nodes=1"], 1),
        (["--nodelist=n2", "--ntasks=2"], 1),
    ],
)
def test_once_on_each_node(asked: list[str], count: int) -> None:
    """One task a node, in a job that outlives a node, if there is more than one."""
    assert slurm.nodes_asked(asked) == count
    script = slurm.batch_script(["supervise"], asked, "train")
    assert ("#SBATCH --ntasks-per-node=1\n#SBATCH --no-kill\n" in script) == (count > 1)
    each = "--nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 --no-kill"
    assert f"exec srun {each if count > 1 else '--ntasks=1'} --kill-on-bad-exit=0 supervise\n" in script


def test_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The number of the job comes on stdout; two submissions are two runs, and each has its folder before it starts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    program(tmp_path, "sbatch", f'cat >> {tmp_path}/script; echo "17;cluster"', monkeypatch)
    for _ in range(2):
        assert run(["submit", "--slurm", "--gres=gpu:8", "--", "--nproc", "2", "train.py", "--lr", "1"]) == 0
    commands = [line for line in (tmp_path / "script").read_text().splitlines() if line.startswith("exec srun")]
    folders = {command.split("--run-dir ")[1].split()[0] for command in commands}
    assert capsys.readouterr().out == "17\n17\n" and len(folders) == 2
    assert all(folder.startswith(f"{tmp_path}/runs/train-") for folder in folders)
    assert all(command.endswith("--nproc 2 train.py --lr 1") for command in commands)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--", "train.py"], "--slurm"),
        (["--slurm", "train.py"], "no --"),
        (["--slurm", "--", "nothing.py"], "no script"),
        (["--slurm", "--", "--ncpro", "2", "train.py"], "--nproc"),
        (["--slurm", "--", "-d", "train.py"], "-d"),
        (["--slurm", "--", "--name", "a b", "train.py"], "letters, digits"),
        (["--slurm", "--", "--inject", "kill:rank=2", "--nproc", "2", "train.py"], "there is no rank 2"),
        (["--slurm", "--", "--spawns", "-n", "2", "train.py"], "--spawns is for"),
        (["--slurm", "--", "--adapter", "nothing", "train.py"], "no adapter"),
    ],
)
def test_what_would_fail_in_the_queue_is_refused_now(
    arguments: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    program(tmp_path, "sbatch", f"touch {tmp_path}/submitted", monkeypatch)
    assert run(["submit", *arguments]) == ExitCode.USAGE
    assert why in capsys.readouterr().err and not (tmp_path / "submitted").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["-N2", "--", "--inject", "kill:rank=3", "--nproc", "2"],
        ["--", "--inject", "kill:rank=900", "--nproc", "auto"],
        ["--", "--inject", "kill:rank=900", "--nproc=gpu"],
        ["--", "--local-addr", "192.0.2.7"],
    ],
)
def test_what_only_the_node_can_tell_is_left_to_it(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its devices, its addresses, and how many nodes there are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    assert run(["submit", "--slurm", "--print", *arguments, "train.py"]) == 0


def test_a_job_has_the_time_that_slurm_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KillWait less a margin, inside of a job alone; without an answer nothing is cut."""
    program(tmp_path, "scontrol", "echo 'KillWait                = 30 sec'", monkeypatch)
    job = {"SLURM_JOB_ID": "4"}
    assert (slurm.grace(45.0, job), slurm.grace(20.0, job), slurm.grace(45.0, {})) == (25.0, None, None)
    program(tmp_path, "scontrol", "exit 1", monkeypatch)
    assert slurm.grace(45.0, job) is None


def test_a_job_that_was_warned_is_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/asked', monkeypatch)
    assert slurm.requeue({}) == "" and not (tmp_path / "asked").exists()
    assert "queue again" in slurm.requeue({"SLURM_JOB_ID": "4"})
    assert (tmp_path / "asked").read_text() == "requeue 4\n"
    program(tmp_path, "scontrol", "exit 1", monkeypatch)
    assert "submit it again" in slurm.requeue({"SLURM_JOB_ID": "4"})
