"""What people are told of a run arrives, though its senders are children of the supervisor, which ends all others."""

from __future__ import annotations

import signal

from tests.support.scripts import STEPPING
from tests.support.supervised import Run
from tests.support.waiting import until

WAITS = """
case "$1" in
*hangs) while [ ! -e {folder}/ended ]; do sleep 0.02; done ;;
*) touch {folder}/ended ;;
esac
echo "$1" >> {folder}/said
"""
"""The message of a hang is on its way until that of the run's end is sent."""


def test_a_hang_is_told_while_its_attempt_and_the_run_are_ended(run: Run) -> None:
    command = WAITS.format(folder=run.folder)
    run.script(f"[notify]\non = ['hang', 'failed']\ncommand = '''{command}'''", "supervise.toml")
    hang = ["--inject", "hang:rank=0@step=3", "--hang-timeout", "1s", "--max-restarts", "0"]

    assert run.launch(*hang, run.script(STEPPING), "100") == 100

    assert [cause for cause, _ in run.verdicts()] == ["hang"]
    told = sorted(line.rpartition(" ")[2] for line in (run.folder / "said").read_text().splitlines())
    assert (told, run.warnings()) == (["failed", "hangs"], "")


def test_a_signal_after_the_end_changes_nothing(run: Run) -> None:
    """The message of the end is on its way. Somebody still presses Ctrl-C, and the machine's owner asks again."""
    command = f"touch {run.folder}/sends; while [ ! -e {run.folder}/go ]; do sleep 0.02; done; touch {run.folder}/sent"
    run.script(f"[notify]\non = ['failed']\ncommand = '''{command}'''", "supervise.toml")
    run.start("--no-standby", run.script("import sys; sys.exit(78)"))
    assert run.process is not None
    until(lambda: run.events("run_ended"))
    until((run.folder / "sends").exists)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGINT):
        run.process.send_signal(number)
    (run.folder / "go").touch()

    assert run.wait() == 104
    assert (run.folder / "sent").exists()
