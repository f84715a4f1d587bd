"""`supervise service`: a run that goes on by itself after a reboot."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

from supervisor.commands.flags import run_argument
from supervisor.commands.meant import to_go_on
from supervisor.commands.resume import go_on
from supervisor.commands.unit import name, unit
from supervisor.core.words import RunState
from supervisor.errors import Refusal
from supervisor.reading.plain import plain
from supervisor.run import spec as specs
from supervisor.run.runs import Known, find
from supervisor.run.status import story_of
from trainer.rundir.files.durable import replace_file
from trainer.rundir.layout import committed_steps

_LINGER = Path("/var/lib/systemd/linger")
"""A file for each user whose manager runs without a login (systemd-logind.service(8))."""


@click.group("service")
def command() -> None:
    """Let systemd go on with a run after a reboot."""


@command.command("install")
@run_argument
@click.option("--print", "only_print", is_flag=True, help="Print the unit, and change nothing.")
def install(run: str | None, only_print: bool) -> None:
    """After a reboot, the user's systemd goes on with RUN, from its newest checkpoint on disk.

    What was only in memory is lost with the machine: at most the steps since that checkpoint. A shutdown that leaves
    time (--grace) loses nothing. It needs systemd and `loginctl enable-linger`.
    """
    known = to_go_on(run)
    if story_of(known.run).state == RunState.FINISHED and not only_print:
        raise Refusal(f"{known.label} has finished; there is nothing to go on with")
    text = _unit(known)
    if only_print:
        click.echo(text, nl=False)
        return
    _able()
    path = _folder() / name(known.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())
    _systemctl("daemon-reload")
    _systemctl("enable", path.name)
    steps = committed_steps(known.run.checkpoints)
    since = f"step {steps[-1]} is on disk now" if steps else "no checkpoint of ours is on disk yet"
    click.echo(
        plain(
            f"after a reboot {known.label} goes on from its newest checkpoint on disk ({since}); "
            f"not before: to undo it, supervise service remove {known.name}"
        )
    )


@command.command("remove")
@run_argument
def remove(run: str | None) -> None:
    """A reboot is the end of RUN again. The run itself is not touched."""
    known = to_go_on(run)
    path = _folder() / name(known.id)
    if not path.exists():
        raise Refusal(f"{known.label} has no service; see: ls {_folder()}")
    _systemctl("disable", path.name)
    path.unlink()
    _systemctl("daemon-reload")


@command.command("start", hidden=True)
@run_argument
def start(run: str | None) -> int:
    """What the unit runs: goes on with RUN, unless it is over. A run that somebody stopped stays stopped."""
    known = find(run)
    state = story_of(known.run).state
    if state in (RunState.FINISHED, RunState.FAILED, RunState.STOPPED, RunState.STUCK):
        click.echo(plain(f"{known.label} is {state}: nothing to go on with"), err=True)
        return 0
    return go_on(known, quiet=True)


def _unit(known: Known) -> str:
    spec = specs.restore(known.spec)
    try:
        # A unit has no secrets of this shell.
        specs.revealed(spec, {})
    except Refusal as refusal:
        raise Refusal(f"a service would not know the secrets of this run's command line: {refusal}") from None
    script = shutil.which("supervise", path=str(Path(sys.executable).parent))
    program = [script] if script else [sys.executable, "-m", "supervisor"]
    return unit(known.id, known.run.path.resolve(), spec.cwd, program, spec.policy.grace, os.environ)


def _able() -> None:
    """Refusal if the user has no manager, or one that ends with the last login."""
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        raise Refusal("systemd does not run here; --print shows the unit for a machine where it does")
    user = getpass.getuser()
    if not (_LINGER / user).exists():
        raise Refusal(
            f"after a reboot nothing of {user} would start before a login; "
            f"first: loginctl enable-linger {user}, then again"
        )


def _folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _systemctl(*words: str) -> None:
    done = subprocess.run(["systemctl", "--user", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refusal(f"systemctl --user {' '.join(words)}: {done.stderr.strip() or f'exit {done.returncode}'}")
