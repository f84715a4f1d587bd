"""The options of several commands, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from supervisor.commands.completion import known_runs, running_runs

run_argument = click.argument("run", required=False, shell_complete=known_runs)
running_argument = click.argument("run", required=False, shell_complete=running_runs)
json_flag = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def session_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a supervisor's session: `detached`, `as_json`, `quiet`."""
    for flag in (
        click.option("--quiet", is_flag=True, help="Say nothing but errors."),
        click.option("--json", "as_json", is_flag=True, help="At the end, the run's status as JSON on stdout."),
        click.option("-d", "--detach", "detached", is_flag=True, help="Run in the background; the terminal may close."),
    ):
        command = flag(command)
    return command
