"""`supervise policy`: what is done about each cause, as in force."""

from __future__ import annotations

import json

import click

from supervisor.core.policy import RULES
from supervisor.reading.table import table
from supervisor.runs import SCHEMA


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(as_json: bool) -> None:
    """The rules, in their order: the first that matches holds."""
    if as_json:
        rules = [{"when": when, "do": do, "exit_code": code} for when, do, code in RULES]
        click.echo(json.dumps({"schema": SCHEMA, "rules": rules}))
        return
    click.echo(table(("when", "do", "exit code"), RULES), nl=False)
