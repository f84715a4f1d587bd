"""Standard streams that are closed, full or without a reader: a command does what it is for, and ends with its code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.runs_on_disk import Writer
from tests.support.shells import UNREAD
from tests.support.supervised import SUPERVISE


def shell(folder: Path, redirected: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The command of supervise, with streams as the shell's words `redirected` have them."""
    command = ["bash", "-c", f'"$@" {redirected}', "bash", SUPERVISE, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", ["ls", "events", "tail --no-follow", "status nothing"])
def test_a_closed_stream_leads_nowhere(tmp_path: Path, words: str) -> None:
    """What would come on it is lost, and nothing else."""
    w = Writer(tmp_path / "runs" / "gpt-7f3a")
    w.event("run_started", attempt=-1)
    w.event("run_ended", 9.0, exit_code=0, state="finished", reason="done")
    usual = shell(tmp_path, "", *words.split())

    unread, unsaid = (shell(tmp_path, closed, *words.split()) for closed in ("<&- >&-", "<&- 2>&-"))

    assert (unread.returncode, unread.stdout, unread.stderr) == (usual.returncode, "", usual.stderr)
    assert (unsaid.returncode, unsaid.stdout, unsaid.stderr) == (usual.returncode, usual.stdout, "")


def test_a_program_that_is_started_has_all_streams(tmp_path: Path) -> None:
    """None of its files gets the number of a stream that was closed before."""
    (tmp_path / "streams.py").write_text("import os, sys\nprint(*(os.fstat(n).st_rdev for n in range(3)))")
    code = (
        "from supervisor.commands.standard import all_there\nimport subprocess, sys\nall_there()\n"
        "subprocess.run([sys.executable, 'streams.py'], check=True)"
    )
    (tmp_path / "starts.py").write_text(code)
    done = subprocess.run(
        ["bash", "-c", '"$@" <&- 2>&-', "bash", Path(SUPERVISE).with_name("python"), "starts.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    number = Path("/dev/null").stat().st_rdev
    assert done.stdout.split()[::2] == [str(number)] * 2


def test_a_full_stdout_is_an_error_in_one_line(tmp_path: Path) -> None:
    """Who asks for JSON in a file must know that it is not there."""
    done = shell(tmp_path, ">/dev/full", "policy", "--json")

    assert (done.returncode, done.stderr) == (2, "supervise: No space left on device\n")


@pytest.mark.parametrize("nowhere", ["exec 2>/dev/full", UNREAD])
def test_what_is_said_to_nobody_is_no_error(tmp_path: Path, nowhere: str) -> None:
    """A hint, or the line about a mistake."""
    for code, words in (0, ["policy"]), (102, ["status", "nothing"]):
        command = ["bash", "-c", f'{nowhere}; "$@"', "bash", SUPERVISE, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (code, "")
